"""The size of a pocket world. Importing it loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from dive_fast.types import check_ranges

TEST_FIRST_PID = 301  # fixed, so test identities do not depend on the number of paired ones
EXTERNAL_FIRST_PID = 1001  # SYSU identities end below 534


@dataclass(frozen=True)
class WorldSpec:
    """The size of a world. An image depends on the seed and its own identity, camera and index, never on the size."""

    seed: int = 0
    """Seed of the world: other seeds give other identities and photos."""
    paired_ids: int = 48
    """Training identities with real RGB and infrared photos."""
    test_ids: int = 40
    """Held-out identities with RGB and infrared photos."""
    external_ids: int = 160
    """Identities with RGB photos only."""
    images_per_camera: int = 10
    """Photos per camera of each paired and test identity."""
    market_images: int = 10
    """Photos of each external identity, over the six Market cameras."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "world",
            seed=(0, None),
            paired_ids=(1, TEST_FIRST_PID - 1),
            test_ids=(1, 200),
            external_ids=(1, 8999),
            images_per_camera=(1, 9999),
            market_images=(1, 9999),
        )

    @property
    def paired_pids(self) -> range:
        return range(1, self.paired_ids + 1)

    @property
    def test_pids(self) -> range:
        return range(TEST_FIRST_PID, TEST_FIRST_PID + self.test_ids)

    @property
    def external_pids(self) -> range:
        return range(EXTERNAL_FIRST_PID, EXTERNAL_FIRST_PID + self.external_ids)
