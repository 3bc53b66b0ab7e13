"""A dataset's folder: whose it is, which shards are finished, and clearing away what a killed run left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from dive_fast.io import clear_disk_errors, lock_folder
from dive_fast.synth.layout import PairFiles
from dive_fast.synth.manifest import shard_path
from dive_fast.synth.planfile import SynthesisPlan, generated_sides, load_plan, save_plan
from dive_fast.types import InputError, PairSpec

PNG_PLAN, PNG_PAIR = "dive_fast:plan_id", "dive_fast:pair_id"


@contextmanager
def claimed(out: Path, plan: SynthesisPlan) -> Iterator[None]:
    """Makes `out` the folder of `plan`, or finds that it is, and keeps other runs away while the block runs.

    Raises `InputError` when `out` holds another plan, anything else, or is being written to by another run.
    """
    _check_owner(out, plan)
    with clear_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "plan.json").exists():
            save_plan(plan, out / "plan.json")
        stream = (out / "plan.json").open("r+b")
    with stream:
        lock_folder(stream, out)
        with clear_disk_errors(out):
            for temporary in out.rglob(".*.????????.tmp"):  # as io.atomic_path names them
                temporary.unlink()
        yield


def finished_shards(out: Path, plan: SynthesisPlan, files: Sequence[PairFiles]) -> set[int]:
    """The shards whose record exists and whose files all do; contents are `verify`'s business."""
    return {
        number
        for number in range(plan.shards)
        if shard_path(out, number).is_file()
        and all((out / name).is_file() for _, pair in shard_pairs(plan, files, number) for name in pair.values())
    }


def clear_unfinished(out: Path, plan: SynthesisPlan, files: Sequence[PairFiles], finished: set[int]) -> None:
    """Removes the records and generated images of shards that are to be redone.

    An image that this plan did not make stays, and raises `InputError`: it may be somebody's only copy.
    """
    leftovers = []
    for number in set(range(plan.shards)) - finished:
        leftovers += [shard_path(out, number)] if shard_path(out, number).exists() else []
        for pair, names in shard_pairs(plan, files, number):
            paths = [out / names[side] for side in generated_sides(pair)]
            leftovers += [path for path in paths if path.exists() and _made_by(plan, pair, path)]
    with clear_disk_errors(out):
        for path in leftovers:
            path.unlink()


def shard_pairs(plan: SynthesisPlan, files: Sequence[PairFiles], number: int) -> list[tuple[PairSpec, PairFiles]]:
    """The pairs of a shard, each with its files."""
    first = number * plan.shard_size
    return list(zip(plan.shard(number), files[first : first + plan.shard_size], strict=True))


def _check_owner(out: Path, plan: SynthesisPlan) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; choose another --out")
    if (out / "plan.json").exists():
        held = load_plan(out / "plan.json").plan_id
        if held != plan.plan_id:
            raise InputError(f"{out} holds plan {held[:12]}, this is plan {plan.plan_id[:12]}; choose another --out")
    elif any(not entry.name.startswith(".plan.json.") for entry in out.iterdir()):
        raise InputError(f"{out} holds other files and no plan; images are not mixed into it: choose another --out")


def _made_by(plan: SynthesisPlan, pair: PairSpec, path: Path) -> bool:
    try:
        with Image.open(path) as image:
            made = image.info.get(PNG_PLAN) == plan.plan_id and image.info.get(PNG_PAIR) == pair.pair_id
    except (OSError, Image.DecompressionBombError):
        made = False
    if not made:
        raise InputError(f"{path} was not made by this plan and is not overwritten; move it away, then rerun")
    return made
