"""DiVE's filters: identities with few photos, and images that are not twice as high as wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from dive_fast.data.config import PrepareConfig
from dive_fast.data.images import header_size
from dive_fast.data.names import abbreviate, natural_key
from dive_fast.data.sets import NamedSet
from dive_fast.words import count


@dataclass(frozen=True)
class Dropped:
    """What one rule left out of one set: image names relative to the set, and identities without any image left."""

    set: str
    rule: str
    images: tuple[str, ...]
    identities: tuple[str, ...]

    def sentence(self) -> str:
        text = f"{self.set}: {count(len(self.images), 'image')} left out, {self.rule}"
        people = f"{count(len(self.identities), 'person')} ({abbreviate(self.identities)})"
        return f"{text}, nothing is left of {people}" if self.identities else text


def apply_filters(
    sets: Sequence[NamedSet], config: PrepareConfig, progress: Callable[[int], object] = lambda _: None
) -> tuple[list[NamedSet], list[Dropped]]:
    """Returns the filtered sets, and a record for each rule that left something out of a set.

    `min_images` counts all images of an identity, as DiVE did: Market-1501 keeps 1,011 people and 21,511 images. `tall`
    applies after it and reads headers only; a file without a readable header stays, for the verification to name.
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
    kept = list(compress(named.samples, wanted))
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
