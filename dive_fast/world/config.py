"""The size of a pocket world. Importing it loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dive_fast.settings import NonNegativeInt, Settings, Within

TEST_FIRST_PID = 301  # fixed, so test identities do not depend on the number of paired ones
EXTERNAL_FIRST_PID = 1001  # SYSU identities end below 534


@dataclass(frozen=True)
class WorldSpec(Settings):
    """The size of a world. An image depends on the seed and its own identity, camera and index, never on the size."""

    seed: NonNegativeInt = 0
    """Seed of the world: other seeds give other identities and photos."""
    paired_ids: Annotated[int, Within(1, TEST_FIRST_PID - 1)] = 48
    """Training identities with real RGB and infrared photos."""
    test_ids: Annotated[int, Within(1, 200)] = 40
    """Held-out identities with RGB and infrared photos."""
    external_ids: Annotated[int, Within(1, 8999)] = 160
    """Identities with RGB photos only."""
    images_per_camera: Annotated[int, Within(1, 9999)] = 10
    """Photos per camera of each paired and test identity."""
    market_images: Annotated[int, Within(1, 9999)] = 10
    """Photos of each external identity, over the six Market cameras."""

    @property
    def paired_pids(self) -> range:
        return range(1, self.paired_ids + 1)

    @property
    def test_pids(self) -> range:
        return range(TEST_FIRST_PID, TEST_FIRST_PID + self.test_ids)

    @property
    def external_pids(self) -> range:
        return range(EXTERNAL_FIRST_PID, EXTERNAL_FIRST_PID + self.external_ids)
