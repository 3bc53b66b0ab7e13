"""The settings of `dive-fast merge`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from dive_fast.data.layouts import LAYOUTS
from dive_fast.settings import ImageSize, OneOf, Settings
from dive_fast.types import InputError, shown

How = Literal["copy", "symlink", "link"]


@dataclass(frozen=True)
class MergeConfig(Settings):
    """The layout of a merged tree, and how images and people get there."""

    layout: Annotated[str, OneOf(LAYOUTS)]
    """sysu: SYSU-MM01's tree; agw: the AGW family's .npy arrays; regdb, llcm: folders and idx lists; market: Market-1501's
    file names, JPEG only."""
    how: How = "copy"
    """How images get there: copy; symlink; or link, a hard link. A program that writes to a linked image changes the
    original."""
    size: ImageSize = (288, 144)
    """agw: height and width of the images; DEEN: 384x144."""
    missing: Literal["keep", "drop", "refuse"] = "keep"
    """Whether people seen in one modality only are kept, dropped, or refused with an error."""
    same_people: bool = False
    """Takes a name in a dataset and in another set or dataset for one person."""
    number_people: bool = False
    """Gives people whose names are not four digits free numbers of four digits."""
    cameras: dict[str, str] = field(default_factory=dict)  # new names by old name, of images that get a new file name

    @property
    def arrays(self) -> bool:
        return self.layout == "agw"


@dataclass(frozen=True)
class Dataset:
    """A synthesized dataset, and the prefix of its identity names."""

    root: Path
    prefix: str = ""


def parse_dataset(text: str) -> Dataset:
    """Parses "PATH[,prefix=P]"; raises `InputError` for any other form."""
    match = re.fullmatch(r"(.+?)(?:,prefix=([^,]*))?", text)
    if not match:
        raise InputError(f"dataset {shown(text)} is not PATH[,prefix=P]")
    return Dataset(Path(match[1]), match[2] or "")


def parse_camera(text: str) -> tuple[str, str]:
    """Parses "OLD=NEW", a camera's old and new name; raises `InputError` for any other form."""
    old, _, new = text.partition("=")
    if not (old and new):
        raise InputError(f"{shown(text)} is not OLD=NEW, as cam7=cam1")
    return old, new
