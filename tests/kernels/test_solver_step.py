"""The reference against the textbook formula, the choice of an implementation, and the torch operator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dive_kernels.solver_step import StepCoefficients, solver_step, why_not_fused
from tests.support.kernel_cases import check_operator
from tests.support.refusals import refused
from tests.support.solver_cases import STEP, inputs


def test_reference_is_the_textbook_update() -> None:
    """DPM-Solver++(2M), Lu et al. 2022: sigma'/sigma x - alpha' (e^-h - 1) D with D = (1 + 1/2r) x0 - 1/2r before."""
    uncond, cond, x, before = inputs((2, 4, 6, 5), torch.float64, True, "cpu")
    angles = (1.30, 1.05, 0.80)  # alpha = cos, sigma = sin at the last, this and the next step
    lambdas = [math.log(math.cos(a) / math.sin(a)) for a in angles]
    h, ratio = lambdas[2] - lambdas[1], (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])
    alpha, sigma = math.cos(angles[1]), math.sin(angles[1])
    x0 = (x - sigma * (uncond + 7.5 * (cond - uncond))) / alpha
    blend = (1 + 0.5 / ratio) * x0 - 0.5 / ratio * before
    expected = math.sin(angles[2]) / sigma * x - math.cos(angles[2]) * math.expm1(-h) * blend

    weight = -math.cos(angles[2]) * math.expm1(-h)
    step = StepCoefficients(
        7.5, alpha, sigma, math.sin(angles[2]) / sigma, weight * (1 + 0.5 / ratio), -weight * 0.5 / ratio
    )
    following, clean = solver_step(uncond, cond, x, before, step)
    torch.testing.assert_close(clean, x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(following, expected, rtol=1e-12, atol=1e-12)


def test_guidance_one_ignores_the_empty_prompt() -> None:
    uncond, cond, x, _ = inputs((2, 4, 6, 5), torch.float64, False, "cpu")
    alone = STEP._replace(guidance=1.0)
    torch.testing.assert_close(
        solver_step(uncond, cond, x, None, alone), solver_step(cond, cond, x, None, alone), rtol=1e-12, atol=1e-12
    )


def test_half_types_are_computed_in_float32() -> None:
    arguments = inputs((1, 4, 8, 4), torch.float16, True, "cpu")
    following, x0 = solver_step(*arguments, STEP)
    assert following.dtype == x0.dtype == torch.float16
    exact, exact_x0 = solver_step(*[t.float() for t in arguments], STEP)
    assert torch.equal(following, exact.half())
    assert torch.equal(x0, exact_x0.half())


def test_explicit_fused_raises_with_every_reason() -> None:
    uncond, cond, x, before = inputs((4, 6), torch.float64, True, "cpu")
    reasons = ("impl='fused' cannot", "eps_cond is on cpu", "previous_x0 is torch.float64", "x has strides (1, 6)")
    refused(reasons, solver_step, uncond.t(), cond.t(), x.t(), before.t(), STEP, impl="fused", error=ValueError)


def test_operator_under_compile_and_without_gradients() -> None:
    def op(*given: Any) -> Any:
        return solver_step(*given[:4], StepCoefficients(*given[4]))

    given = inputs((3, 5), torch.float32, True, "cpu")
    check_operator(torch.ops.dive.solver_step, op, [*given, list(STEP)], "auto")


def test_auto_takes_the_reference_where_the_kernel_cannot_run() -> None:
    arguments = inputs((3, 5), torch.float64, True, "cpu")
    assert why_not_fused(*arguments)
    plain = solver_step(*arguments, STEP, impl="reference")
    assert all(torch.equal(a, b) for a, b in zip(solver_step(*arguments, STEP), plain, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps_cond": torch.zeros(2, 3)}, r"eps_cond has shape \(2, 3\), x has \(2, 4\)"),
        ({"previous_x0": torch.zeros(2, 4, dtype=torch.int64)}, "previous_x0 must be floating point"),
        ({"step": STEP._replace(alpha=0.0)}, "alpha must be above 0"),
        ({"impl": "fast"}, "impl must be auto, reference or fused, got 'fast'"),
    ],
    ids=["shape", "type", "alpha", "impl"],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    zeros = torch.zeros(2, 4)
    arguments = {"eps_uncond": zeros, "eps_cond": zeros, "x": zeros, "previous_x0": None, "step": STEP, **change}
    refused(message, solver_step, error=ValueError, **arguments)
