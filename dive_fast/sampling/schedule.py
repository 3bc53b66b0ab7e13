"""Which timesteps and noise levels a run visits: those of diffusers' DPMSolverMultistepScheduler."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dive_fast.types import InputError, shown

# diffusers' defaults for what a scheduler_config.json leaves out, then every value that this solver reproduces.
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "solver_order": 2,
}
_MOST = 1_000_000  # training timesteps, of which each has its noise level in memory
OFF = (None, False)
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("scaled_linear", "linear"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "prediction_type": ("epsilon", "v_prediction"),
    "trained_betas": (None,),
    "timestep_type": (None, "discrete"),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),  # others are learned
    "rescale_betas_zero_snr": OFF,
    "use_flow_sigmas": OFF,
    "use_dynamic_shifting": OFF,
}
ORDERS = (1, 2)  # of DPM-Solver++; the first is DDIM's step, by which a student takes its few
# How another sampler takes its steps: the model was trained alike, and DPM-Solver++ takes its own. With the values that
# ask for nothing else.
IGNORED: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++", "deis"),  # diffusers reads DEIS and UniPC names as these
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "solver_order": ORDERS,
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-math.inf,),
    "thresholding": OFF,
    "use_karras_sigmas": OFF,
    "use_exponential_sigmas": OFF,
    "use_beta_sigmas": OFF,
    "use_lu_lambdas": OFF,
}
# diffusers' schedulers whose noise levels follow from betas as here; the others are of other kinds of models.
OF_BETAS = re.compile(
    r"(DDIM|DDPM|DEISMultistep|DPMSolver\w*?|Euler(Ancestral)?Discrete|HeunDiscrete|KDPM2(Ancestral)?Discrete|LCM|LMSDiscrete"
    r"|PNDM|SASolver|TCD|UniPCMultistep)(Parallel|Inverse)?Scheduler"
)


def check_scheduler(data: object, where: str) -> dict[str, Any]:
    """Returns the configuration of a scheduler whose noise schedule the solver follows; others raise `InputError`.

    Warns of settings of another sampler, which are ignored. A lambda_min_clipped of -infinity, diffusers' default that no
    other JSON reader knows, is left out.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where} must be a JSON object, got {type(data).__name__}; copy it again")
    config = {key: value for key, value in data.items() if (key, value) != ("lambda_min_clipped", -math.inf)}
    reasons = _unsupported(_effective(config))
    reasons += [
        f"{shown(key)} is not finite" for key, x in config.items() if isinstance(x, float) and not math.isfinite(x)
    ]
    if reasons:
        raise InputError(f"{where}: {'; '.join(reasons)}; use a model whose noise schedule is Stable Diffusion's")
    ignored = [
        f"{key} {shown(config[key])}" for key, off in IGNORED.items() if key in config and config[key] not in off
    ]
    if ignored:
        warnings.warn(
            f"{where}: settings of another sampler are ignored: {', '.join(ignored)}; here it is DPM-Solver++ 2M",
            stacklevel=2,
        )
    return config


@dataclass(frozen=True)
class Schedule:
    """The N timesteps of a run, descending, and its N + 1 noise levels.

    `sigmas` are noise-to-signal ratios as in diffusers (sigma / alpha of the variance-preserving process); the last
    one is 0. They hold float32 values, because the model was trained with these; all else is derived in float64.
    `prediction` is what the model predicts: "epsilon" or "v_prediction" (arXiv 2202.00512). `order` is that of the
    solver's steps, 1 or 2.
    """

    timesteps: tuple[int, ...]
    sigmas: tuple[float, ...]
    prediction: str = "epsilon"
    order: int = 2

    @classmethod
    def from_config(cls, scheduler_config: Mapping[str, Any], steps: int) -> Schedule:
        """The schedule of `DPMSolverMultistepScheduler.from_config(scheduler_config).set_timesteps(steps)`.

        Raises `InputError` that names every reason why the config or the number of steps cannot be used.
        """
        config = _effective(scheduler_config)
        reasons = _unsupported(config)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            reasons.append(f"the number of steps must be a whole number >= 1, got {shown(steps)}")
        if reasons:
            raise InputError(f"scheduler_config.json with {steps} steps: {'; '.join(reasons)}")
        timesteps = _timesteps(config, steps)
        total = config["num_train_timesteps"]
        if len(set(timesteps)) < steps or not all(0 <= t < total for t in timesteps):
            spacing = f"{config['timestep_spacing']} spacing"
            raise InputError(f"schedule: {steps} steps do not fit into {total} with {spacing}; use fewer steps")
        levels = training_sigmas(config)
        order = 1 if config["solver_order"] == 1 else 2
        return cls(tuple(timesteps), (*(levels[t] for t in timesteps), 0.0), config["prediction_type"], order)

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def signal(self, index: int) -> tuple[float, float]:
        """(signal, noise) level at `index`, 0..N: a latent there is signal * clean + noise * normal."""
        sigma = self.sigmas[index]
        alpha = 1.0 / math.sqrt(sigma * sigma + 1.0)
        return alpha, sigma * alpha

    def within(self, interval: tuple[float, float]) -> frozenset[int]:
        """The timesteps whose sigma lies in `interval`: low < sigma <= high."""
        low, high = interval
        return frozenset(t for t, sigma in zip(self.timesteps, self.sigmas, strict=False) if low < sigma <= high)

    def check_start(self, start: int) -> None:
        """Raises `InputError` unless `start` is the index of a step."""
        if not 0 <= start < self.steps:
            raise InputError(f"schedule: start step {start} is not in 0..{self.steps - 1}")


def _effective(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as DPMSolverMultistepScheduler.from_config reads it.

    A live scheduler lists in `_use_default_values` what its own class filled in; diffusers drops these, so that
    PNDM's default spacing does not become DPM-Solver's.
    """
    filled_in = scheduler_config.get("_use_default_values")
    names = filled_in if isinstance(filled_in, list | tuple) else ()
    return {**DEFAULTS, **{key: value for key, value in scheduler_config.items() if key not in names}}


def _unsupported(config: dict[str, Any]) -> list[str]:
    reasons = [
        f"{key} {shown(config[key])} is not supported, only {' or '.join(repr(value) for value in values)}"
        for key, values in SUPPORTED.items()
        if key in config and config[key] not in values
    ]
    name = config.get("_class_name", "PNDMScheduler")
    if not isinstance(name, str) or not OF_BETAS.fullmatch(name):
        reasons.append(f"_class_name {shown(name)} has no betas as Stable Diffusion 1.5's has")
    for key, kinds in (("num_train_timesteps", int), ("steps_offset", int), ("beta_start", float), ("beta_end", float)):
        if isinstance(config[key], bool) or not isinstance(config[key], (int, kinds)) or not 0 <= config[key] < _MOST:
            reasons.append(f"{key} must be a number >= 0 and < {_MOST:,}, got {shown(config[key])}")
    if not reasons and not 0 < config["beta_start"] < config["beta_end"] < 1:
        reasons.append(f"betas must rise within 0..1, got {config['beta_start']} to {config['beta_end']}")
    return reasons


def _timesteps(config: dict[str, Any], steps: int) -> list[int]:
    """Descending timesteps; products and half-to-even rounding are in numpy's order, as diffusers has them.

    One difference: with trailing spacing and a few step counts (61 of 1000, say) diffusers runs one step more than
    asked for, at timestep -1.
    """
    total, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    if spacing == "linspace":
        stride = (total - 1) / steps
        return [total - 1, *(round(i * stride) for i in range(steps - 1, 0, -1))]
    if spacing == "leading":
        return [i * (total // (steps + 1)) + config["steps_offset"] for i in range(steps, 0, -1)]
    stride = (total - total / steps) - total  # numpy.arange steps by this rounded difference
    return [round(total + i * stride) - 1 for i in range(steps)]


def training_sigmas(scheduler_config: Mapping[str, Any]) -> list[float]:
    """Noise-to-signal ratio of every training timestep, computed in float32 like diffusers: equal to the last bit.

    The configuration is one that `check_scheduler` returns.
    """
    config = _effective(scheduler_config)
    count, start, end = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    else:
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    signal = torch.cumprod(1.0 - betas, dim=0)
    levels: list[float] = (((1 - signal) / signal) ** 0.5).tolist()
    return levels
