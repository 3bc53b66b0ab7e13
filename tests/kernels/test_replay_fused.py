"""Second calls of the Triton kernels, which are recorded on a GPU: their results are those of their own inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_kernels.attention import attention
from dive_kernels.cross_attention import cross_attention
from dive_kernels.geglu import geglu
from dive_kernels.groupnorm_silu import groupnorm_silu
from tests.support.kernel_cases import DEVICE


def random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(DEVICE)


def norm(normal: Callable[..., Tensor], impl: str) -> Tensor:
    x = normal(2, 64, 8, 4).contiguous(memory_format=torch.channels_last)
    return groupnorm_silu(x, normal(64), normal(64), 4, 1e-5, shift=normal(2, 64), impl=impl)


def bank(normal: Callable[..., Tensor], impl: str) -> Tensor:
    index = torch.tensor([1, 0], device=DEVICE)
    return cross_attention(normal(2, 9, 32), normal(2, 5, 32), normal(2, 5, 32), index, 2, impl=impl, validate=False)


CALLS: dict[str, Callable[[Callable[..., Tensor], str], Tensor]] = {
    "groupnorm_silu": norm,
    "geglu": lambda normal, impl: geglu(normal(9, 32), normal(64, 32), normal(64), impl=impl),
    "attention": lambda normal, impl: attention(normal(2, 9, 32), normal(2, 9, 32), normal(2, 9, 32), 2, impl=impl),
    "cross_attention": bank,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_later_calls_compute_their_own_inputs(call: Callable[..., Any]) -> None:
    """1e-5 is 100 roundings of numbers of about 1; inputs of another call would differ by 1."""
    results = [call(random(seed), "fused") for seed in range(3)]
    for seed, result in enumerate(results):
        torch.testing.assert_close(result, call(random(seed), "reference"), rtol=1e-5, atol=1e-5)
