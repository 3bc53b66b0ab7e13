"""A job of N pairs and the machines that run it: what `capacity` predicts and `simulate` plays through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dive_fast.settings import NonNegativeFloat, PositiveFloat, PositiveInt, Settings
from dive_fast.types import USUAL_MODE, InputError, PairMode, generated_sides

HOPELESS = 5  # shards of so many mean times between failures: one try of 150 succeeds


@dataclass(frozen=True)
class Fleet(Settings):
    """The job and what is assumed of the machines. The rate is one worker's; all workers share the disk."""

    rate: PositiveFloat
    """Images/s of one worker."""
    pairs: PositiveInt
    """Pairs to generate."""
    bytes_per_image: PositiveFloat
    """Bytes of an image on the disk."""
    mode: PairMode = USUAL_MODE
    """Mode of the pairs, as in dive-fast plan: synthetic makes two images a pair, the others one."""
    disk_write: PositiveFloat = math.inf
    """MB/s that the one disk of all workers writes."""
    network: PositiveFloat = math.inf
    """Gb/s from all workers together to that disk."""
    shard_size: PositiveInt = 64
    """Pairs per shard, as in dive-fast plan; a failing worker loses its shard."""
    startup: NonNegativeFloat = 60.0
    """Seconds until a worker computes, after a failure too."""
    mtbf_hours: PositiveFloat = math.inf
    """Mean hours between failures of one worker."""
    rate_std: NonNegativeFloat = 0.05
    """Standard deviation of the workers' rates over their mean."""
    device: Literal["GPU", "CPU"] = "GPU"  # of a worker, as the rate was measured

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compute_seconds > HOPELESS * 3600 * self.mtbf_hours:
            raise InputError(
                f"capacity: a shard takes {self.compute_seconds:,.0f} s and a worker fails every "
                f"{3600 * self.mtbf_hours:,.0f} s, so that hardly any is finished; plan smaller shards"
            )

    @property
    def images(self) -> int:
        return self.pairs * len(generated_sides(self.mode))

    @property
    def shards(self) -> int:
        return math.ceil(self.pairs / self.shard_size)

    @property
    def shard_images(self) -> float:
        """Of a mean shard: the last one may be smaller."""
        return self.images / self.shards

    @property
    def compute_seconds(self) -> float:
        """A shard's, undisturbed."""
        return self.shard_images / self.rate

    @property
    def shard_seconds(self) -> float:
        """A shard's, with failures that lose it: (e^(l t) - 1) (1 / l + startup) for t undisturbed seconds and failures at
        rate l, the mean of a renewal that starts over.
        """
        hazard = 1 / (3600 * self.mtbf_hours)
        return (
            self.compute_seconds
            if hazard == 0
            else math.expm1(hazard * self.compute_seconds) * (1 / hazard + self.startup)
        )

    @property
    def shared(self) -> tuple[str, float]:
        """What all workers share and which of it is slower, with its bytes/s."""
        disk, network = 1e6 * self.disk_write, 1e9 * self.network / 8
        return ("disk", disk) if disk <= network else ("network", network)

    @property
    def write_seconds(self) -> float:
        """A shard's, through what all share."""
        return self.shard_images * self.bytes_per_image / self.shared[1]

    @property
    def binds_at(self) -> float:
        """Workers from which on the shared disk or network is the limit."""
        return math.inf if self.write_seconds == 0 else self.shard_seconds / self.write_seconds
