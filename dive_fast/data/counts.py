"""Identities and images of a set beside the published counts: the first check that a copy is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from dive_fast.data.names import natural_key
from dive_fast.data.sets import NamedSet, split_of
from dive_fast.types import MODALITIES

ALL = "all"
_Published = dict[tuple[str, str], tuple["int | None", int]]

_REGDB: _Published = {(ALL, "rgb"): (206, 2_060), (ALL, "ir"): (206, 2_060)}
_SYSU_TEST_CAMERAS = {"cam1": 1_374, "cam2": 1_565, "cam3": 1_883, "cam4": 1_918, "cam5": 1_918, "cam6": 1_920}

# (layout, split) -> (camera, modality) -> identities and images, as the sets' papers and protocols give them.
PUBLISHED: dict[tuple[str, str], _Published] = {
    ("sysu", "trainval"): {(ALL, "rgb"): (395, 22_258), (ALL, "ir"): (395, 11_909)},
    ("sysu", "test"): {
        (ALL, "rgb"): (96, 6_775),
        (ALL, "ir"): (96, 3_803),
        **{(name, "ir" if name in ("cam3", "cam6") else "rgb"): (None, n) for name, n in _SYSU_TEST_CAMERAS.items()},
    },
    ("regdb", "train"): _REGDB,
    ("regdb", "test"): _REGDB,
    ("llcm", "train"): {(ALL, "rgb"): (713, 16_946), (ALL, "ir"): (713, 13_975)},
    ("llcm", "test"): {(ALL, "rgb"): (351, 8_680), (ALL, "ir"): (351, 7_166)},
    ("market", "train"): {(ALL, "rgb"): (751, 12_936)},
    ("market", "query"): {(ALL, "rgb"): (750, 3_368)},
    ("market", "gallery"): {(ALL, "rgb"): (None, 15_913)},
    ("msmt17", "trainval"): {(ALL, "rgb"): (1_041, 32_621)},
    ("msmt17", "query"): {(ALL, "rgb"): (3_060, 11_659)},
    ("msmt17", "gallery"): {(ALL, "rgb"): (3_060, 82_161)},
}


@dataclass(frozen=True)
class Count:
    """Identities and images of one set by one camera, or all of a modality, and the published figures, if any."""

    set: str
    split: str
    camera: str
    modality: str
    identities: int
    images: int
    published_identities: int | None = None
    published_images: int | None = None


def count_sets(sets: Sequence[NamedSet]) -> list[Count]:
    """A row for each camera of each set, and one for all of each modality; a set of one camera has only the latter."""
    return [row for named in sets for row in _rows(named)]


def _rows(named: NamedSet) -> Iterator[Count]:
    split = split_of(named.spec)
    published = PUBLISHED.get((named.spec.layout, split), {})
    for modality in MODALITIES:
        samples = [sample for sample in named.samples if sample.modality == modality]
        cameras = sorted({sample.camera for sample in samples}, key=natural_key)
        groups = {camera: [s for s in samples if s.camera == camera] for camera in cameras} if len(cameras) > 1 else {}
        if samples:
            groups[ALL] = samples
        for camera, group in groups.items():
            known = published.get((camera, modality), (None, None))
            yield Count(named.name, split, camera, modality, len({s.pid for s in group}), len(group), *known)


def table(rows: Sequence[Count]) -> str:
    """The rows as aligned text."""
    head = ("set", "split", "camera", "modality", "people", "images", "published people", "images")
    cells = [["" if n is None else n if isinstance(n, str) else f"{n:,}" for n in astuple(row)] for row in rows]
    return align([head, *cells], "<<<<>>>>")


def align(lines: Sequence[Sequence[str]], sides: str) -> str:
    """Lines of cells as text; `sides` has a "<" or ">" for each column."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ([f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(text).rstrip() for text in texts)
