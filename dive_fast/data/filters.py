"""DiVE's filters: people with too few photos, and images that are not twice as high as wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dive_fast.data.config import PrepareConfig
from dive_fast.data.images import header_size
from dive_fast.data.names import abbreviate, natural_key
from dive_fast.data.sets import NamedSet


@dataclass(frozen=True)
class Dropped:
    """What one rule left out of one set: names of images relative to the set, and the people of whom nothing is left."""

    set: str
    rule: str
    images: tuple[str, ...]
    identities: tuple[str, ...]

    def sentence(self) -> str:
        people = (
            f", nothing is left of {len(self.identities):,} people ({abbreviate(self.identities)})"
            if self.identities
            else ""
        )
        return f"{self.set}: {len(self.images):,} images left out, {self.rule}{people}"


def apply_filters(
    sets: Sequence[NamedSet], config: PrepareConfig, progress: Callable[[int], object] = lambda _: None
) -> tuple[list[NamedSet], list[Dropped]]:
    """The sets without what the filters leave out, and a record for each rule that left something out of a set.

    People are counted first, on all their images, as DiVE did: of Market-1501 that gives its 1,011 people and 21,511
    images. `tall` comes after and reads the files' headers only; `progress` is told of each file read. A file without a
    readable header stays, for the verification to name. The given sets stay as they are.
    """
    dropped: list[Dropped] = []
    left = []
    for named in sets:
        if config.min_images > 1 and not named.spec.paired:
            counts = Counter(sample.pid for sample in named.samples)
            wanted = [counts[sample.pid] >= config.min_images for sample in named.samples]
            named = _keep(named, f"of people with fewer than {config.min_images} images", wanted, dropped)
        if config.tall:
            wanted = [_is_tall(sample.path, progress) for sample in named.samples]
            named = _keep(named, "not twice as high as wide", wanted, dropped)
        left.append(named)
    return left, dropped


def _keep(named: NamedSet, rule: str, wanted: Sequence[bool], dropped: list[Dropped]) -> NamedSet:
    """The set's samples that are `wanted`; adds a record of the others, if there are any, to `dropped`."""
    kept = [sample for sample, wants in zip(named.samples, wanted, strict=True) if wants]
    gone = [sample for sample, wants in zip(named.samples, wanted, strict=True) if not wants]
    if gone:
        people = {sample.pid for sample in gone} - {sample.pid for sample in kept}
        images = tuple(named.file_name(sample) for sample in gone)
        dropped.append(Dropped(named.name, rule, images, tuple(sorted(people, key=natural_key))))
    return named.with_samples(kept)


def _is_tall(path: Path, progress: Callable[[int], object]) -> bool:

    size = header_size(path)
    progress(1)
    return size is None or size[0] >= 2 * size[1]
