"""The Triton kernel against float64: on a GPU, or under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

import pytest
import torch

from dive_kernels.solver_step import solver_step
from tests.support.kernel_cases import DEVICE, assert_as_good_as_torch, every_type, shape_id
from tests.support.solver_cases import SHAPES, STEP, exact, inputs


@pytest.mark.parametrize("order", [1, 2], ids=["first-order", "second-order"])
@every_type
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_within_twice_plain_torchs(shape: tuple[int, ...], dtype: torch.dtype, order: int) -> None:
    arguments = inputs(shape, dtype, order == 2, DEVICE)
    plain = solver_step(*arguments, STEP, impl="reference")
    for triple in zip(solver_step(*arguments, STEP, impl="fused"), plain, exact(arguments), strict=True):
        assert_as_good_as_torch(*triple)


def test_half_predictions_with_float_latents() -> None:
    """An fp16 UNet beside fp32 latents: what a GPU engine hands to the solver."""
    arguments = inputs((3, 4, 7, 5), torch.float32, True, DEVICE)
    arguments[:2] = [tensor.half() for tensor in arguments[:2]]
    plain = solver_step(*arguments, STEP, impl="reference")
    for triple in zip(solver_step(*arguments, STEP, impl="fused"), plain, exact(arguments), strict=True):
        assert_as_good_as_torch(*triple)


def test_empty_batch() -> None:
    empty = torch.zeros(0, 4, 8, 4, device=DEVICE)
    following, x0 = solver_step(empty, empty, empty, None, STEP, impl="fused")
    assert following.shape == x0.shape == empty.shape


def test_auto_runs_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from dive_kernels.solver_step import api

    monkeypatch.setattr(api, "solver_step_reference", lambda *_: pytest.fail("auto ran the reference"))
    solver_step(*inputs((2, 4), torch.float32, False, DEVICE), STEP)
