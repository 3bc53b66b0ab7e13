"""`dive-fast reid train`."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dive_fast.commands.common import Device, Json, finish, say, torch_device
from dive_fast.commands.reid_inputs import joined
from dive_fast.commands.reid_options import (
    Backbone,
    Identities,
    Missing,
    PerModality,
    Precision,
    Rate,
    SamePeople,
    Share,
    Steps,
    Weights,
)
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.reid.training.config import ReidConfig
    from dive_fast.types import Sample

# Options that are settings of the recipe by their own name; what is not given stays as the recipe has it.
_SETTINGS = (
    "steps", "epochs", "identities", "per_modality", "missing", "synthetic_share", "lr", "backbone",
    "weights", "height", "width", "precision", "clip", "seed", "every_epochs",
)  # fmt: skip


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    real: Annotated[
        Path | None, typer.Option(help="SYSU-MM01 tree; its train and val lists are used. Or a set, as sysu:PATH.")
    ] = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option(help="Dataset folder from dive-fast synth; may be repeated.")
    ] = None,
    same_people: SamePeople = False,
    recipe: Annotated[
        Literal["pocket", "agw", "caj"],
        typer.Option(
            help="Settings to start from: for the pocket world on a CPU, or as published by AGW or CAJ. The defaults below "
            "are those of pocket; only options that are given change a recipe."
        ),
    ] = "pocket",
    steps: Steps = 500,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs instead of steps; one sees as many images as the larger modality has."),
    ] = None,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    missing: Missing = "refuse",
    synthetic_share: Share = None,
    synthetic_schedule: Annotated[
        str | None,
        typer.Option(
            help="That share over the run, as PART:SHARE pairs: 0:0.5,1:0 falls evenly; 0:0.5,0.5:0.5,0.5:0 drops halfway."
        ),
    ] = None,
    lr: Rate = 2e-3,
    backbone: Backbone = "pocket",
    weights: Weights = None,
    height: Annotated[int, typer.Option(min=32, help="Image height in pixels.")] = 96,
    width: Annotated[int, typer.Option(min=32, help="Image width in pixels.")] = 48,
    precision: Precision = "fp32",
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE of any other setting of ReidConfig, its model, augment or validation, the value as JSON: "
            "--set erase=0 --set drop_epochs=[20,50]. Repeat for each.",
        ),
    ] = None,
    validation_people: Annotated[
        int,
        typer.Option(min=0, help="Identities to hold out of training, on which the best weights are chosen; 0: none."),
    ] = 0,
    val: Annotated[
        str | None,
        typer.Option(
            help="A set of other people to choose the best weights on: a SYSU-MM01 tree, of which the val list is used, or "
            "LAYOUT:PATH,split=S. Its people are left out of training. The test split is refused."
        ),
    ] = None,
    every_epochs: Annotated[
        int | None, typer.Option("--validate-every", min=1, help="Epochs between validations; by default 1.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for a file of the decoded images, for sets that memory cannot hold, and for reruns."),
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saves, from which a rerun goes on.")] = 200,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log to OUT/tensorboard.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on real and synthetic pairs; rerun to resume."""
    from dive_fast.distributed import leading, process_group
    from dive_fast.io import read_json
    from dive_fast.reid.training.train import train_reid

    if real is None and not synthetic:
        raise InputError("nothing to train on; give --real, --synthetic or both")
    parsed = {"synthetic_schedule": _points(synthetic_schedule)} if synthetic_schedule is not None else {}
    config = config_of(context, _SETTINGS, {"people": validation_people, **parsed})
    chosen_device = torch_device(device)
    with process_group(chosen_device):
        leads = leading()  # one process speaks for all
        if leads and recipe != "pocket" and config.model.weights is None:
            say(f"recipe {recipe} starts from random weights here, the published one from ImageNet's (--weights)")
        samples = joined([real] if real is not None else [], synthetic or [], same_people)
        val_samples = None if val is None else _validation_samples(val)
        if val_samples is not None:
            others = {sample.pid for sample in val_samples}
            left_out = others & {sample.pid for sample in samples}
            if leads:
                say(f"{len(left_out):,} people of --val are left out of training")
            samples = [sample for sample in samples if sample.pid not in others]
        train_reid(
            samples, config, out, val=val_samples, device=chosen_device, save_every=save_every, cache=cache,
            tensorboard=tensorboard,
        )  # fmt: skip
        if leads:
            _report(read_json(out / "reid.json", "reid checkpoint"), out, json)


def _report(record: dict[str, Any], out: Path, as_json: bool) -> None:
    summary = {"checkpoint": out, "images": record["images"], "identities": len(record["pids"])}
    text = f"checkpoint {out}: {record['images']:,} images of {len(record['pids']):,} identities"
    if "best" in record:
        best, people = record["best"], len(record["validation"]["people"])
        summary["best"] = {"step": best["step"], "map": best["val_map"]}
        text += f"; best at step {best['step']:,}: mAP {best['val_map']:.2f} on {people} people held out"
    finish(text, summary, as_json)


def config_of(context: typer.Context, names: Iterable[str], more: dict[str, Any] | None = None) -> ReidConfig:
    """The recipe of --recipe with those of the options `names` that were given, then `more`, then what --set says."""
    from dive_fast.reid.training.recipes import override, recipe

    values = context.params
    given = {
        name: str(values[name]) if isinstance(values[name], Path) else values[name]
        for name in names
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    }
    return override(recipe(values["recipe"]), {**given, **(more or {}), **_parsed_settings(values["setting"] or [])})


def _points(text: str | None) -> tuple[tuple[float, float], ...] | None:
    """The pairs of "0:0.5,1:0"."""
    if text is None:
        return None
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((float(part), float(share)) for part, share in pairs)
    except ValueError as error:
        raise InputError(f"--synthetic-schedule is PART:SHARE pairs, as 0:0.5,1:0, got {text!r}") from error


def _parsed_settings(settings: list[str]) -> dict[str, Any]:
    """NAME=VALUE options, values as JSON, or else as the words they are."""
    parsed: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name in parsed:
            raise InputError(f"--set {text!r}: give each setting once, as NAME=VALUE")
        try:
            parsed[name] = _tuples(jsonlib.loads(value))
        except ValueError:
            parsed[name] = value
    return parsed


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _validation_samples(text: str) -> list[Sample]:
    """The samples of --val; those of the people of a test list are refused."""
    from dive_fast.data.sets import PAIRED, parse_set, read_set
    from dive_fast.data.sysu import read_ids
    from dive_fast.reid.training.validation import refuse_test_people

    spec = parse_set(text if text.split(":")[0] in PAIRED else f"sysu:{text}", PAIRED)
    if spec.split is None and spec.layout != "sysu":
        raise InputError(f"--val {text}: {spec.layout} has no validation split; use --validation-people")
    spec = replace(spec, split=spec.split or "val")
    samples = read_set(spec)
    if spec.split == "test":
        refuse_test_people(samples, {sample.pid for sample in samples})
    tested = spec.root / "exp" / "test_id.txt"
    if spec.layout == "sysu" and tested.is_file():
        refuse_test_people(samples, {f"{spec.prefix}{pid}" for pid in read_ids(tested)})
    return samples
