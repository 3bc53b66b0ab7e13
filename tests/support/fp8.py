"""How far sums of e4m3 numbers may be from exact ones: the rounding of every factor, by the format's definition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RELATIVE, ABSOLUTE = (
    2.0**-4,
    2.0**-10,
)  # half a unit of 3 fraction bits; of the numbers below 2^-6, which are 2^-9 apart
SUM = 2.0**-24  # float32's rounding of a sum, for each term

Product = Callable[[Tensor, Tensor], Tensor]


def rounding(x: Tensor, scale: Tensor | float) -> Tensor:
    """The most that rounding to e4m3 moves each element of `x`, which 448 times `scale` bounds."""
    return RELATIVE * x.abs() + ABSOLUTE * scale


def budget(product: Product, x: Tensor, x_scale: Tensor | float, w: Tensor, w_scale: Tensor, terms: int) -> Tensor:
    """The most that a sum of `terms` rounded products, float32, may be off: |x'w' - xw| <= |dx||w| + |x||dw| + |dx||dw|."""
    dx, dw = rounding(x, x_scale), rounding(w, w_scale)
    rounded = product(dx, w.abs()) + product(x.abs(), dw) + product(dx, dw)
    return rounded + terms * SUM * product(x.abs() + dx, w.abs() + dw)


def typical(product: Product, x: Tensor, x_scale: Tensor | float, w: Tensor, w_scale: Tensor) -> float:
    """The root mean square error of such sums if roundings are independent and uniform up to their most."""
    dx, dw = rounding(x, x_scale).square() / 3, rounding(w, w_scale).square() / 3
    return float((product(dx, w.square()) + product(x.square(), dw) + product(dx, dw)).mean().sqrt())


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
