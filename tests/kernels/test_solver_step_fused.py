"""The Triton kernel against float64: on a GPU, or under Triton's interpreter (see test_solver_step.py)."""

from __future__ import annotations

import os

import pytest
import torch

from dive_kernels.solver_step import solver_step
from tests.kernels.cases import SHAPES, STEP, exact, inputs, shape_id, worst

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU; test_solver_step.py runs this file under Triton's interpreter", allow_module_level=True)

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if INTERPRETED else "cuda"
TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN, so an element that the kernel never writes cannot pass."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, float("nan")))


@pytest.mark.parametrize("order", [1, 2], ids=["first-order", "second-order"])
@pytest.mark.parametrize("dtype", TYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_within_twice_plain_torchs(shape: tuple[int, ...], dtype: torch.dtype, order: int) -> None:
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes garbage in bfloat16")
    arguments = inputs(shape, dtype, order == 2, DEVICE)
    oracle = exact(arguments)
    errors = worst(solver_step(*arguments, STEP, impl="fused"), oracle)
    plain = worst(solver_step(*arguments, STEP, impl="reference"), oracle)
    # One unit in the last place more: over few elements plain torch may be exact by luck.
    units = [torch.finfo(dtype).eps * expected.abs().max().item() for expected in oracle]
    for error, reference, unit in zip(errors, plain, units, strict=True):
        assert error <= 2 * reference + unit


def test_half_predictions_with_float_latents() -> None:
    """An fp16 UNet beside fp32 latents: what a GPU engine hands to the solver."""
    arguments = inputs((3, 4, 7, 5), torch.float32, True, DEVICE)
    arguments[:2] = [tensor.half() for tensor in arguments[:2]]
    oracle = exact(arguments)
    errors = worst(solver_step(*arguments, STEP, impl="fused"), oracle)
    plain = worst(solver_step(*arguments, STEP, impl="reference"), oracle)
    assert all(error <= 2 * reference for error, reference in zip(errors, plain, strict=True))


def test_empty_batch() -> None:
    empty = torch.zeros(0, 4, 8, 4, device=DEVICE)
    following, x0 = solver_step(empty, empty, empty, None, STEP, impl="fused")
    assert following.shape == x0.shape == empty.shape


def test_auto_runs_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from dive_kernels.solver_step import api

    monkeypatch.setattr(api, "solver_step_reference", lambda *_: pytest.fail("auto ran the reference"))
    solver_step(*inputs((2, 4), torch.float32, False, DEVICE), STEP)
