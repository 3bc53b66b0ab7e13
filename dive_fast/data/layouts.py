"""The layouts that trainers read: how each names training images, and which label a person gets."""

from __future__ import annotations

from collections.abc import Iterable

from dive_fast.data.layout_lists import LlcmNaming, RegdbNaming
from dive_fast.data.layout_names import Naming
from dive_fast.data.layout_trees import MarketNaming, SysuNaming
from dive_fast.data.names import natural_key
from dive_fast.types import InputError

# The layouts of sets (data.sets) whose images keep their names in a tree of the layout, and whose test half it can hold.
NATIVE: dict[str, tuple[str, ...]] = {
    "sysu": ("sysu",),
    "agw": ("sysu",),
    "regdb": ("regdb",),
    "llcm": ("llcm",),
    "market": ("market", "market-gt-bbox"),
}
LAYOUTS = tuple(NATIVE)


def naming(layout: str, trial: int = 1) -> Naming | None:
    """The names of a layout; None for "agw", whose training images are rows of arrays. `trial` is RegDB's."""
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    if layout == "regdb":
        return RegdbNaming(trial)
    kinds: dict[str, type[Naming]] = {"sysu": SysuNaming, "llcm": LlcmNaming, "market": MarketNaming}
    return kinds[layout]() if layout in kinds else None


def labels_of(people: Iterable[str]) -> dict[str, int]:
    """A trainer's class numbers: contiguous from 0, in natural order of the people's names, one for both modalities."""
    return {pid: label for label, pid in enumerate(sorted(set(people), key=natural_key))}
