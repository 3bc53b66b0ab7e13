"""`dive-fast reid train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.commands.common import Device, Json, LastFile, PhotoSet, finish, following, torch_device
from dive_fast.commands.reid_inputs import (
    Real,
    Recipe,
    SamePeople,
    config_from,
    join_training,
    label,
    protocol_of,
    warn_of_pocket,
)
from dive_fast.data.sets import PAIRED, SetSpec, read_set
from dive_fast.options import Changes
from dive_fast.progress import log
from dive_fast.reid.training.config import ReidConfig
from dive_fast.settings import PositiveInt
from dive_fast.types import InputError
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.types import Sample


def train(
    out: Annotated[Path, "Checkpoint folder to write."],
    config: Changes[ReidConfig],
    real: Real = (),
    synthetic: Annotated[Sequence[Path], "Dataset folder, from dive-fast synth."] = (),
    same_people: SamePeople = False,
    recipe: Recipe = "pocket",
    val: Annotated[
        PhotoSet | None,
        "Set of other people to choose the best weights on, as sysu:PATH (its val list) or LAYOUT:PATH,split=S. Its people "
        "are left out of training; a test split is refused.",
    ] = None,
    cache: Annotated[
        Path | None, "Folder for a file of the decoded images, for sets larger than the memory, and for reruns."
    ] = None,
    save_every: Annotated[PositiveInt, "Steps between saves, from which a rerun resumes."] = 200,
    tensorboard: Annotated[bool, "Also log to OUT/tensorboard."] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on real and synthetic pairs; rerun to resume."""
    from dive_fast.distributed import leading, process_group
    from dive_fast.json_files import read_json
    from dive_fast.reid.training.train import train_reid

    if not real and not synthetic:
        raise InputError("nothing to train on; give --real, --synthetic or both")
    settings = config_from(recipe, config)
    chosen = torch_device(device)
    last = LastFile(out / "reid.json")
    with process_group(chosen):
        leads = leading()  # one process speaks for all
        if leads and recipe != "pocket" and settings.model.weights is None:
            log(f"recipe {recipe} starts from random weights here, the published one from ImageNet's (--weights)")
        if leads and recipe == "pocket":
            warn_of_pocket("recipe pocket", next((protocol_of(spec) for spec in real if spec.paired), "pocket"))
        samples = join_training(real, [], synthetic, same_people)
        validation = None if val is None else _validation_samples(val)
        if validation is not None:
            others = {sample.pid for sample in validation}
            if leads:
                log(f"{len(others & {sample.pid for sample in samples}):,} people of --val are left out of training")
            samples = [sample for sample in samples if sample.pid not in others]
        train_reid(
            samples,
            settings,
            out,
            val=validation,
            device=chosen,
            save_every=save_every,
            cache=cache,
            tensorboard=tensorboard,
        )
        if leads:
            _report(read_json(out / "reid.json", "reid checkpoint"), out, json, _testing(out, real), last.kept)


def _testing(out: Path, real: Sequence[SetSpec]) -> str:
    """Returns the command that tests a checkpoint on the test half of its first set with infrared."""
    of = next((spec for spec in real if spec.paired), None)
    if of is None:
        return following("reid eval", checkpoint=out, test="sysu:PHOTOS")
    return following("reid eval", checkpoint=out, test=label(of), protocol=protocol_of(of))


def _report(record: dict[str, Any], out: Path, as_json: bool, then: str, kept: bool) -> None:
    summary = {"checkpoint": out, "images": record["images"], "identities": len(record["pids"])}
    text = f"checkpoint {out}: {count(record['images'], 'image')} of {count(len(record['pids']), 'identity')}"
    if "best" in record:
        best, people = record["best"], len(record["validation"]["people"])
        summary["best"] = {"step": best["step"], "map": best["val_map"]}
        text += f"; best at step {best['step']:,}: mAP {best['val_map']:.2f} on {count(people, 'person')} held out"
    finish(text, summary, as_json, then=then, kept=kept)


def _validation_samples(spec: SetSpec) -> list[Sample]:
    """Reads the samples of --val; raises `InputError` for people of a test list."""
    from dive_fast.data.sysu import read_ids
    from dive_fast.reid.training.validation import refuse_test_people

    if spec.layout not in PAIRED:
        raise InputError(f"--val {label(spec)} has no infrared images; give a set of {', '.join(PAIRED)}")
    if spec.split is None and spec.layout != "sysu":
        raise InputError(f"--val {label(spec)}: {spec.layout} has no validation split; use --validation-people")
    spec = replace(spec, split=spec.split or "val")
    samples = read_set(spec)
    if spec.split == "test":
        refuse_test_people(samples, {sample.pid for sample in samples})
    tested = spec.root / "exp" / "test_id.txt"
    if spec.layout == "sysu" and tested.is_file():
        refuse_test_people(samples, {f"{spec.prefix}{pid}" for pid in read_ids(tested)})
    return samples
