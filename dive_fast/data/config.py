"""The settings of `dive-fast prepare`."""

from __future__ import annotations

from dataclasses import dataclass

from dive_fast.types import InputError


@dataclass(frozen=True)
class PrepareConfig:
    """Which images a prepared set keeps and how it is packed. DiVE: 12 images and `tall`."""

    min_images: int = 1
    """Leaves out identities of RGB-only sets with fewer images; DiVE: 12."""
    tall: bool = False
    """Leaves out images of all sets that are not at least twice as high as wide, as DiVE does."""
    shard_size: int = 1_000
    """Images per tar."""
    strict: bool = False
    """Stops at a damaged image instead of leaving it out."""

    def __post_init__(self) -> None:
        for name in ("min_images", "shard_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def filters(self) -> dict[str, int | bool]:
        """The settings that leave images out."""
        return {"min_images": self.min_images, "tall": self.tall}
