"""`dive-fast merge` and `manifest`: datasets as other programs read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from dive_fast.commands.common import Dataset, Json, LastFile, Overwrite, PhotoSet, beside, finish, following
from dive_fast.data.sets import PAIRED, SET_HELP
from dive_fast.io import brief
from dive_fast.merge import config as merging
from dive_fast.progress import ProgressBar
from dive_fast.settings import Reads
from dive_fast.types import InputError
from dive_fast.words import count

SyntheticSet = Annotated[merging.Dataset, Reads(merging.parse_dataset, "PATH[,prefix=P]")]
CameraName = Annotated[tuple[str, str], Reads(merging.parse_camera, "OLD=NEW")]


def merge(
    out: Annotated[Path, "New folder to write; a folder that exists is refused."],
    config: merging.MergeConfig,
    real: Annotated[Sequence[PhotoSet], f"A set of real photos: {SET_HELP}"] = (),
    synthetic: Annotated[Sequence[SyntheticSet], "Dataset folder, from dive-fast synth."] = (),
    camera: Annotated[Sequence[CameraName], "Rename a camera of images that get a new file name, as cam7=cam1."] = (),
    json: Json = False,
) -> None:
    """Join real photos and synthetic pairs into a new tree that trainers read; rerun to resume.

    Rejected and dropped pairs are left out. Identities of a set's test half are refused; a tree of the set's own layout
    also gets that half. provenance.jsonl names the origin of every image. Example: dive-fast merge --real
    sysu:SYSU-MM01 --synthetic runs/pairs --same-people --layout agw --out runs/agw
    """
    from dive_fast.merge.inputs import read_inputs
    from dive_fast.merge.plan import survey
    from dive_fast.merge.write import asked_for, finished_report
    from dive_fast.merge.write import merge as write

    if len(dict(camera)) < len(camera):
        raise InputError("--camera names a camera twice; give each OLD=NEW once")
    config = replace(config, cameras=dict(camera))
    report = finished_report(out, asked_for(real, synthetic, config))
    kept = report is not None
    if report is None:
        with ProgressBar(desc="verify photos", unit="image") as bar:
            inputs = read_inputs(real, synthetic, config.layout, bar.update)
        with ProgressBar(desc="check", unit="image") as bar:
            decided = survey(inputs, config, bar.update)
        with ProgressBar(total=decided.total, desc="merge", unit="image") as bar:
            report = write(decided, out, bar.update)
    summary = {"out": out, **{k: report[k] for k in ("people", "train", "test", "converted")}}
    native = f"{config.layout}:{out}"
    then = following("reid train", real=native, out=beside(out, "reid"))
    if config.layout not in PAIRED:  # a tree for other trainers
        dataset = synthetic[0].root if synthetic else "PAIRS"
        then = following("manifest", dataset, parquet=beside(out, "pairs.parquet"))
    finish(_text(out, report), summary, json, then=then, kept=kept)


def _text(out: Path, report: dict[str, Any]) -> str:
    counts = ", ".join(f"{row['images']:,} {row['kind']} {row['modality']}" for row in report["train"])
    test = "no test half"
    if report["test_of"]:
        test = f"{count(report['test'], 'test image')} of {', '.join(brief(name, 80) for name in report['test_of'])}"
    return f"merged tree {out}: {count(report['people'], 'person')} to train on, images: {counts}; {test}"


def manifest(
    dataset: Dataset,
    /,
    parquet: Annotated[Path, "Parquet file to write, one row per pair."],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a dataset's manifest, with scores and dropped pairs, as a Parquet table (needs pyarrow)."""
    from dive_fast.merge.table import write_parquet

    last = LastFile(parquet)

    with ProgressBar(desc="table", unit="pair") as bar:
        pairs = write_parquet(dataset, parquet, bar.update, overwrite)
    text = f"table {parquet}: {count(pairs, 'pair')} of {dataset}"
    finish(text, {"parquet": parquet, "pairs": pairs}, json, then=following("card", dataset), kept=last.kept)
