"""Where the kernels' tests run, and how far from float64 a kernel may be."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPES = [torch.float32, torch.float16, torch.bfloat16]
TYPE_IDS = ["fp32", "fp16", "bf16"]


def needs_a_gpu_or_the_interpreter() -> None:
    """Skips the module that calls it where Triton kernels cannot run."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a GPU; test_interpreter.py runs this file by Triton's interpreter", allow_module_level=True)


def skip_what_cannot_be_interpreted(dtype: torch.dtype) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes garbage in bfloat16")


def assert_as_good_as_torch(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """A kernel's error against float64 is within twice that of plain torch in the same type, at worst and on average.

    One unit in the last place more: over few elements plain torch may be exact by luck.
    """
    assert got.shape == exact.shape and got.dtype == plain.dtype
    unit = torch.finfo(plain.dtype).eps * exact.abs().max().item()
    own, torchs = got.double() - exact, plain.double() - exact
    assert own.abs().max().item() <= 2 * torchs.abs().max().item() + unit  # NaN fails
    assert own.square().mean().sqrt().item() <= 2 * torchs.square().mean().sqrt().item() + unit / 4


def shape_id(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
