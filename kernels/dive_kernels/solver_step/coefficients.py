"""The numbers of one solver step, shared by every implementation."""

from __future__ import annotations

from typing import NamedTuple


class StepCoefficients(NamedTuple):
    """A second-order step is linear in x, x0 and the previous x0, so three weights and the noise level suffice."""

    guidance: float  # 1 = the conditional prediction alone
    alpha: float  # x = alpha * x0 + sigma * noise, at this step's timestep
    sigma: float
    keep: float  # weight of x
    add: float  # weight of x0
    history: float  # weight of the previous step's x0; unused on a first-order step
