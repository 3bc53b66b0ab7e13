"""Classifier-free guidance and one DPM-Solver++ 2M update in one op."""

from dive_kernels.solver_step.api import solver_step, why_not_fused
from dive_kernels.solver_step.coefficients import StepCoefficients

__all__ = ["StepCoefficients", "solver_step", "why_not_fused"]
