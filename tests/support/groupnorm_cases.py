"""Inputs of `groupnorm_silu` that its tests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dive_kernels.groupnorm_silu.arguments import Arguments
from dive_kernels.groupnorm_silu.reference import groupnorm_silu_reference


@dataclass(frozen=True)
class Case:
    """`own` channels of x, `others` of skip; `shifts` rows of shift, 0 for none; values around `mean`, deviation 1.

    With `scale` the result is e4m3.
    """

    own: int
    groups: int
    others: int = 0
    rows: int = 1
    size: tuple[int, int] = (8, 4)
    shifts: int = 0
    silu: bool = True
    mean: float = 0.0
    scale: float | None = None

    def inputs(self, dtype: torch.dtype, device: str) -> dict[str, Any]:
        """What `groupnorm_silu` takes, by name."""
        generator = torch.Generator().manual_seed(self.own)

        def normal(*shape: int) -> Tensor:
            return torch.empty(shape, device=device) if device == "meta" else torch.randn(shape, generator=generator)

        def image(channels: int) -> Tensor:
            values = normal(self.rows, channels, *self.size) + self.mean
            return values.to(device, dtype).contiguous(memory_format=torch.channels_last)

        channels = self.own + self.others
        return {
            "x": image(self.own),
            "weight": normal(channels).to(device, dtype),
            "bias": normal(channels).to(device, dtype),
            "groups": self.groups,
            "eps": 1e-5,
            "skip": image(self.others) if self.others else None,
            "shift": normal(self.shifts, self.own).to(device, dtype) if self.shifts else None,
            "silu": self.silu,
            "scale": self.scale,
        }


# By channels of a group. A tile of columns is 64 wide: borders of groups and of the two sources lie inside tiles or not.
CASES = {
    "1": Case(4, 4, size=(1, 1)),
    "4-as-vae": Case(128, 32, silu=False),
    "10-shift-a-row": Case(80, 8, rows=3, shifts=3),
    "10-pixels-1x1": Case(320, 32, rows=3, size=(1, 1), shifts=3),
    "20-no-silu": Case(160, 8, silu=False),
    "30-skip-inside-a-group-and-a-tile": Case(160, 8, others=80, rows=3),
    "40-one-shift": Case(320, 8, rows=3, shifts=1),
    "60-skip-inside-a-group": Case(128, 4, others=112),
    "80-over-two-tiles": Case(160, 2),
    "8-odd-size-skip": Case(20, 4, others=12, size=(63, 31)),
    "200-over-four-tiles-many-parts": Case(200, 1, size=(38, 31), mean=-3.0),
    "16-mean-far-from-zero": Case(64, 4, size=(63, 31), mean=30.0),
    "30-mean-far-from-zero-skip": Case(60, 4, others=60, rows=3, size=(9, 17), mean=30.0),
}


def exact(inputs: dict[str, Any]) -> Tensor:
    """The float64 oracle on the very same inputs; of an e4m3 result before it is rounded."""
    inputs = {**inputs, "scale": None}
    doubled = {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return groupnorm_silu_reference(Arguments(**doubled))
