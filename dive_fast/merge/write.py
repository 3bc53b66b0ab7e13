"""Writing a merge in OUT.merging, safe to kill; OUT appears when everything is in it.

Images and arrays first, then lists, `people.json`, `provenance.jsonl` and last the report `merged.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.images import decode_image, pixels_of
from dive_fast.data.layout_arrays import array_writer, image_array
from dive_fast.data.layout_lists import ListNaming
from dive_fast.data.layout_names import Naming
from dive_fast.data.layout_trees import train_and_val
from dive_fast.data.pool import in_order
from dive_fast.data.prepare import check_space
from dive_fast.data.sets import SetSpec, settings_of
from dive_fast.data.writers import write_ids
from dive_fast.io import (
    atomic_path,
    canonical_json,
    clear_disk_errors,
    is_empty,
    sha256_bytes,
    take_place,
    write_json,
    write_jsonl,
)
from dive_fast.json_files import read_json
from dive_fast.merge.config import Dataset, MergeConfig
from dive_fast.merge.files import place, place_image, read_bytes
from dive_fast.merge.inputs import Progress
from dive_fast.merge.plan import Placed, Survey, carried, val_people
from dive_fast.outputs import claim_folder
from dive_fast.settings import has_type
from dive_fast.types import MODALITIES, InputError, Source, to_dict

FORMAT = 1
REPORT, CLAIM = "merged.json", "merge.json"


def asked_for(specs: Sequence[SetSpec], datasets: Sequence[Dataset], config: MergeConfig) -> dict[str, Any]:
    """The inputs and options of a merge, as `merged.json` holds them."""
    return {
        "sets": [{"root": str(spec.root.resolve()), **settings_of(spec)} for spec in specs],
        "datasets": [{"root": str(dataset.root.resolve()), "prefix": dataset.prefix} for dataset in datasets],
        "options": {**to_dict(config), "size": list(config.size)},
    }


def finished_report(out: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a finished merge of the same in `out`, None for no or an empty folder; else raises `InputError`."""
    if is_empty(out):
        return None
    if (out / REPORT).is_file():
        report = read_json(out / REPORT, "merged tree")
        if isinstance(report, dict) and report.get("asked") == asked:
            if not _is_whole(report):
                raise InputError(f"{out / REPORT} is damaged; choose another --out, or delete {out} and rerun")
            with clear_disk_errors(out):
                (out / CLAIM).unlink(missing_ok=True)  # of a run that was killed at its very end
            return report
        raise InputError(f"{out} is a merge of other sets or with other options; choose another --out")
    raise InputError(f"{out} exists and is not overwritten or added to; choose another --out")


def _is_whole(report: dict[str, Any]) -> bool:
    """Whether the fields that are read later have the right types."""
    wanted = {"people": int, "test": int, "converted": int, "test_of": list[str], "train": list[dict[str, str | int]]}
    return all(has_type(report.get(name), hint) for name, hint in wanted.items()) and all(
        has_type(row.get("images"), int) and row.get("kind") in get_args(Source) and row.get("modality") in MODALITIES
        for row in report["train"]
    )


def merge(survey: Survey, out: Path, progress: Progress = lambda _: None) -> dict[str, Any]:
    """Writes the new folder `out` and returns its report; `progress` is called for each image.

    Continues a killed run: images that exist stay, arrays and lists are rewritten. Raises `InputError` when `out` exists or
    lies in a set, and when OUT.merging belongs to another merge or another run.
    """
    inputs, config = survey.inputs, survey.config
    asked = asked_for([named.spec for named in inputs.sets], list(inputs.datasets.values()), config)
    done = finished_report(out, asked)
    if done is not None:
        return done
    work = out.with_name(out.name + ".merging")
    claim = {"format": FORMAT, "id": sha256_bytes(canonical_json([asked, survey.digest]).encode())}
    with claim_folder(work, CLAIM, claim, "unfinished merge", inputs.roots.values()):
        _check_space(survey, work)
        counts: Counter[str] = Counter()
        train = (_arrays if config.arrays else _files)(survey, work, counts, progress)
        write_jsonl(work / "provenance.jsonl", chain(_carry(survey, work, counts, progress), train))
        _write_sysu_lists(survey, work)
        write_json(work / "people.json", [to_dict(person) for person in survey.people])
        report = _report(survey, asked, counts)
        write_json(work / REPORT, report)
        take_place(work, out)
        (out / CLAIM).unlink()  # not before: without it, a rerun would refuse the folder of a run killed in between
    return report


def _check_space(survey: Survey, work: Path) -> None:
    """Checks the space for arrays, or for copies minus what an earlier run wrote."""
    config = survey.config
    needed = 0
    if config.arrays:
        height, width = config.size
        needed = sum(survey.count(modality) for modality in MODALITIES) * height * width * 3
    elif config.how == "copy":
        needed = survey.size - sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    check_space(work, needed)


def _carry(survey: Survey, work: Path, counts: Counter[str], progress: Progress) -> Iterator[dict[str, Any]]:
    """Copies or links the test half under its own names; its lists are always copied."""
    config, inputs = survey.config, survey.inputs
    for origin in carried(inputs, config):
        half, root = inputs.held_out[origin], inputs.roots[origin]
        for path in half.list_files:
            place(work, path.relative_to(root).as_posix(), path, "copy")
        names = ((path, path.relative_to(root).as_posix()) for path in half.images)
        for (_, name), _ in in_order(lambda item: place(work, item[1], item[0], config.how), names):
            counts["test"] += 1
            progress(1)
            yield {"file": name, "part": "test", "kind": "real", "set": origin, "source": name}


def _files(survey: Survey, work: Path, counts: Counter[str], progress: Progress) -> Iterator[dict[str, Any]]:
    config, names = survey.config, survey.naming()
    assert names is not None  # only arrays have none

    def write(placed: Placed) -> bool:
        return place_image(work, str(placed.name), placed.image, config.how, names.three_channels)

    with _lists(work, names) as lists:
        for placed, changed in in_order(write, survey.placed(names)):
            if changed:
                counts["converted"] += 1
            if lists:
                lists[placed.image.sample.modality].write(f"{placed.name} {placed.label}\n")
            progress(1)
            yield {"file": placed.name, "converted": changed, **_origin(placed)}


def _arrays(survey: Survey, work: Path, counts: Counter[str], progress: Progress) -> Iterator[dict[str, Any]]:
    config = survey.config

    def pixels(placed: Placed) -> NDArray[np.uint8]:
        """Returns the image as pre_process_sysu.py of the AGW family makes it: RGB, Lanczos."""
        path = placed.image.sample.path
        return pixels_of(decode_image(read_bytes(path, placed.image.sha256), str(path)), *config.size)

    totals = {modality: survey.count(modality) for modality in MODALITIES}
    with array_writer(work, totals, config.size) as add:
        for placed, image in in_order(pixels, survey.placed(None)):
            modality = placed.image.sample.modality
            row = add(modality, image, placed.label)
            counts["converted"] += 1
            progress(1)
            yield {"file": image_array(modality), "row": row, "converted": True, **_origin(placed)}


def _origin(placed: Placed) -> dict[str, Any]:
    image, sample = placed.image, placed.image.sample
    return {
        "part": "train",
        "kind": sample.source,
        "set": image.origin,
        "source": image.file,
        "sha256": image.sha256,
        "pair_id": image.pair_id,
        "pid": sample.pid,
        "label": placed.label,
        "camera": sample.camera,
        "modality": sample.modality,
    }


@contextmanager
def _lists(work: Path, names: Naming) -> Iterator[dict[str, IO[str]]]:
    """The open list files of a layout that has them, by modality; they appear when the block ends well."""
    with ExitStack() as stack:
        files = names.lists if isinstance(names, ListNaming) else {}
        temporaries = {side: stack.enter_context(atomic_path(work / name)) for side, name in files.items()}
        yield {side: stack.enter_context(path.open("w", encoding="utf-8")) for side, path in temporaries.items()}


def _write_sysu_lists(survey: Survey, work: Path) -> None:
    """Writes exp/train_id.txt and val_id.txt; `_carry` brings test_id.txt."""
    if survey.config.layout in ("sysu", "agw"):
        train, val = train_and_val((person.name for person in survey.people), val_people(survey))
        write_ids(work, train=train, **({"val": val} if val else {}))


def _report(survey: Survey, asked: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    images = [{"modality": m, "kind": kind, "images": n} for (m, kind), n in sorted(survey.images.items())]
    return {
        "format": FORMAT,
        "asked": asked,
        "roots": {name: str(root.resolve()) for name, root in survey.inputs.roots.items()},
        "digest": survey.digest,
        "people": len(survey.people),
        "train": images,
        "test": counts["test"],
        "test_of": carried(survey.inputs, survey.config),
        "converted": counts["converted"],
    }
