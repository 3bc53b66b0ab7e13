"""The norm kernels that write e4m3, against float64: on a GPU, or under Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_kernels.fp8 import norm_scale
from dive_kernels.groupnorm_silu import groupnorm_silu
from dive_kernels.groupnorm_silu.arguments import Arguments
from dive_kernels.groupnorm_silu.plan import plan
from dive_kernels.run import run
from tests.support.fp8 import rounding
from tests.support.groupnorm_cases import CASES, Case, exact
from tests.support.kernel_cases import DEVICE, INTERPRETED, every_type

NAMES = ("10-shift-a-row", "20-no-silu", "30-skip-inside-a-group-and-a-tile", "16-mean-far-from-zero")


def scaled(case: Case, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Inputs with a scale, the exact result before it is rounded, and how far off float32 may be."""
    inputs = case.inputs(dtype, DEVICE)
    values = inputs["weight"].numel() // case.groups * case.size[0] * case.size[1]
    floats = {name: value.float() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    wanted = exact(inputs)
    plain = groupnorm_silu(**floats, impl="reference").double()
    off = 2 * (plain - wanted).abs().max() + 2**-23 * wanted.abs().max()
    return {**inputs, "scale": norm_scale(inputs["weight"], inputs["bias"], values)}, wanted, off


@every_type
@pytest.mark.parametrize("name", NAMES)
def test_before_the_cast_it_is_the_result_over_its_scale(name: str, dtype: torch.dtype) -> None:
    """Into float32: Triton's interpreter (3.6 and 3.9) casts to e4m3 wrongly, so this is what it can show."""
    inputs, wanted, off = scaled(CASES[name], dtype)
    (statistics, apply), out = plan(Arguments(**inputs))
    assert out.dtype == torch.float8_e4m3fn and out.is_contiguous(memory_format=torch.channels_last)
    floats = torch.empty_like(out, dtype=torch.float32)
    run(statistics, replace(apply, arguments={**apply.arguments, "out_ptr": floats}))
    assert bool(((floats.double() * inputs["scale"] - wanted).abs() <= off).all())  # NaN fails


@every_type
def test_error_is_the_rounding_of_e4m3_and_that_of_float32(dtype: torch.dtype) -> None:
    """The interpreter loses a carry when it rounds, which halves a number, and all order below the least normal one."""
    inputs, wanted, off = scaled(CASES["30-skip-inside-a-group-and-a-tile"], dtype)
    got = groupnorm_silu(**inputs, impl="fused")
    allowed = off + rounding(wanted.abs() + off, inputs["scale"])
    if INTERPRETED:
        allowed = wanted.abs() / 2 + 2**-6 * inputs["scale"] + allowed
    assert bool(((got.double() * inputs["scale"] - wanted).abs() <= allowed).all())


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter makes a number of NaN")
def test_nan_stays_and_large_values_are_cut_off() -> None:
    inputs = CASES["20-no-silu"].inputs(torch.float32, DEVICE)
    small = groupnorm_silu(**{**inputs, "scale": 2.0**-12}, impl="fused").float()
    assert float(small.abs().max()) == 448
    inputs["x"][0, 0, 0, 0] = torch.nan
    assert bool(groupnorm_silu(**{**inputs, "scale": 1.0}, impl="fused").float().isnan().any())
