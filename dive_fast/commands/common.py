"""What commands share: options that mean the same everywhere, and the last line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample

Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON that sums up what was done.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes a GPU if it can.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="Folder with the vocabulary of a base model in one file, if it is not beside it."),
]
# As dive_fast.data.sets has them; written again, because its imports are too heavy for --help.
Layout = Literal["market", "market-gt-bbox", "msmt17", "folder"]
PairedLayout = Literal["sysu", "regdb", "llcm"]
PREFIX_HELP = (
    "Put before these identities' names, so that they differ from the paired set's; a digit keeps them numbers, "
    "which SYSU-MM01's readers need."
)
LAYOUT_HELP = (
    "How the RGB photos lie: Market-1501's training split, its gt_bbox (as DiVE used it; contains test identities), "
    "MSMT17's train and val lists (V1 or V2), or one folder per identity."
)
PAIRED_LAYOUT_HELP = (
    "How the photos in RGB and infrared lie: SYSU-MM01's tree, RegDB's or LLCM's folders with their idx lists."
)
PAIRED_HELP = (
    "A set of people in RGB and infrared, LAYOUT:PATH with a layout of sysu, regdb, llcm; give it once a set. After the "
    "path may follow ,prefix=P (put before names of people) ,split=S (default: what is trained on) and, for regdb, ,trial=N."
)
EXTERNAL_HELP = (
    "A set of people in RGB only, LAYOUT:PATH with a layout of market, market-gt-bbox, msmt17, folder; give it once a set. "
    "After the path may follow ,prefix=P (put before names of people) ,camera=C (their one camera, default cam7) ,split=S."
)


def say(line: str) -> None:
    """A line about progress; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def finish(text: str, summary: Mapping[str, Any], as_json: bool) -> None:
    """The result for a reader and, if wanted, for a program: JSON on the last line."""
    print(text)
    if as_json:
        print(json.dumps(summary, sort_keys=True, default=str))


def names(text: str | None) -> list[str]:
    """The parts of a comma-separated option; none of them may be empty."""
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"a comma-separated list has an empty part: {text!r}")
    return parts


def numbers(text: str) -> list[int]:
    """The whole numbers of a comma-separated option."""
    parts = names(text)
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"expected whole numbers, as 1,2,3, got {text!r}")
    return [int(part) for part in parts]


def image_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "512x256"; None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise InputError(f"an image size is HEIGHTxWIDTH, as 512x256, got {text!r}")
    return int(match[1]), int(match[2])


def read_photos(root: Path, layout: Layout, camera: str, prefix: str) -> list[Sample]:
    """The RGB photos of people outside the paired set, all as from one camera, `prefix` put before their names."""
    from dive_fast.data.sets import SetSpec, read_set

    return read_set(SetSpec(layout, root, prefix, camera))


def read_paired(
    root: Path, layout: PairedLayout = "sysu", split: str | None = None, *, trial: int = 1, prefix: str = ""
) -> list[Sample]:
    """The photos of people in RGB and infrared; `split` None is the one to learn from, "test" every layout has.

    `trial` is RegDB's, 1 to 10.
    """
    from dive_fast.data.sets import SetSpec, read_set

    return read_set(SetSpec(layout, root, prefix, split=split, trial=trial))


def torch_device(device: str) -> str:
    """The device that torch computes on; asking for a GPU that is not there raises."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device cuda: torch {torch.__version__} sees no GPU; dive-fast doctor says what is missing")
    return device
