"""The settings of `dive-fast merge`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dive_fast.data.layouts import LAYOUTS
from dive_fast.types import InputError

How = Literal["copy", "symlink", "link"]
Missing = Literal["keep", "drop", "refuse"]


@dataclass(frozen=True)
class MergeConfig:
    """The layout of a merged tree, and how images and people get there."""

    layout: str
    """sysu: SYSU-MM01's tree; agw: the AGW family's .npy arrays; regdb, llcm: folders and idx lists; market: Market-1501's
    file names, JPEG only."""
    how: How = "copy"
    """How images get there: copy; symlink; or link, a hard link. A program that writes to a linked image changes the
    original."""
    size: tuple[int, int] = (288, 144)
    """agw: height and width of the images; DEEN: 384x144."""
    missing: Missing = "keep"
    """Whether people seen in one modality only are kept, dropped, or refused with an error."""
    same_people: bool = False
    """Takes a name in a dataset and in another set or dataset for one person."""
    number_people: bool = False
    """Gives people whose names are not four digits free numbers of four digits."""
    cameras: dict[str, str] = field(default_factory=dict)
    """New names, by old name, for the cameras of images that get a new file name, as cam7=cam1."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if min(self.size) < 1:
            raise InputError(f"size must be at least 1x1, got {self.size[0]}x{self.size[1]}")

    @property
    def arrays(self) -> bool:
        return self.layout == "agw"
