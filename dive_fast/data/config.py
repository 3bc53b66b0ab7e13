"""The settings of `dive-fast prepare`."""

from __future__ import annotations

from dataclasses import dataclass

from dive_fast.settings import PositiveInt, Settings


@dataclass(frozen=True)
class PrepareConfig(Settings):
    """Which images a prepared set keeps and how it is packed. DiVE: 12 images and `tall`."""

    min_images: PositiveInt = 1
    """Leave out identities of RGB-only sets with fewer images; DiVE: 12."""
    tall: bool = False
    """Leave out images of all sets that are not at least twice as high as wide, as DiVE does."""
    shard_size: PositiveInt = 1_000
    """Images per tar."""
    strict: bool = False
    """Stop at a damaged image instead of leaving it out."""

    @property
    def filters(self) -> dict[str, int | bool]:
        """The settings that leave images out."""
        return {"min_images": self.min_images, "tall": self.tall}
