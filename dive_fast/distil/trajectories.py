"""The teacher's trajectories: the states that its guided images pass through, solved once and kept in blocks.

A trajectory's prompt and noise depend on its position alone, so a block can be made by any run, at any time, and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dive_fast.distil.blocks import Blocks
from dive_fast.io import sha256_bytes
from dive_fast.models.prompts import PromptEncoder
from dive_fast.sampling import Schedule, initial_noise
from dive_fast.sampling.noise import SEED_LIMIT
from dive_fast.sampling.schedule import DEFAULTS
from dive_fast.train.loop import batch_indices
from dive_fast.train.photos import latent_shape
from dive_fast.train.samples import ImageSampler
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

    from dive_fast.distil.config import DistilConfig
    from dive_fast.models.bundle import ModelBundle

HELD_OUT = 32  # trajectories after those of training, by which the student is measured and shown
STATES = "states"


def check_fused(bundle: ModelBundle) -> None:
    """Raises `InputError` for a model that knows nobody to draw."""
    if bundle.prompts is None:
        raise InputError(
            "the model has no prompts.json, so no people to draw; fuse an adapter into it (dive-fast fuse)"
        )


def few_step_scheduler(config: dict[str, Any], order: int) -> dict[str, Any]:
    """Returns the scheduler that samples few steps of a model: its noise levels, and steps that begin at the last one.

    With spacing "trailing" the times of K steps are among those of every multiple of K. Plain diffusers samples a student
    by the scheduler of order 1.
    """
    noise = {name: config[name] for name in DEFAULTS if name in config}
    return {
        **noise,
        "_class_name": "DPMSolverMultistepScheduler",
        "timestep_spacing": "trailing",
        "algorithm_type": "dpmsolver++",
        "solver_order": order,
        "final_sigmas_type": "zero",
    }


@dataclass(frozen=True)
class Trajectories:
    """The teacher's states after each of the student's K steps: float16 [N, K, C, h, w], N as positions; the last are clean.

    `keys` are the prompts in turn, of which a block of all is shuffled anew.
    """

    states: torch.Tensor
    keys: tuple[tuple[str, str], ...]
    seed: int

    def prompts(self, positions: Sequence[int]) -> list[tuple[str, str]]:
        return [self.keys[row] for row in prompt_rows(positions, len(self.keys), self.seed)]

    def noise(self, positions: Sequence[int]) -> torch.Tensor:
        """The states before the first step, float32 [B, C, h, w]."""
        channels, height, width = self.states.shape[2:]
        return initial_noise(self.seeds(positions), (channels, height, width))

    def seeds(self, positions: Sequence[int]) -> list[int]:
        return noise_seeds(positions, self.seed)


def noise_seeds(positions: Sequence[int], seed: int) -> list[int]:
    return [((seed << 32) + position) % SEED_LIMIT for position in positions]


def prompt_rows(positions: Sequence[int], count: int, seed: int) -> list[int]:
    return [int(batch_indices(count, 1, position, seed)[0]) for position in positions]


class Teacher:
    """A fused model that solves the trajectories of a distillation, with guidance, in its present state."""

    def __init__(self, bundle: ModelBundle, config: DistilConfig, guidance: float, pids: Sequence[str]) -> None:
        assert bundle.prompts is not None  # `check_settings` refuses other models
        solver = replace(bundle, scheduler_config=few_step_scheduler(bundle.scheduler_config, order=2))
        self.sampler = ImageSampler(solver, config.compute.mixed_precision, config.teacher_steps, guidance)
        self.prompts = PromptEncoder(bundle.tokenizer, bundle.prompts)
        self.config, self.shape = config, latent_shape(bundle)
        self.keys = bundle.prompts.keys(pids)
        stride = config.teacher_steps // config.student_steps
        self.kept = range(stride - 1, config.teacher_steps, stride)
        few, many = (
            Schedule.from_config(solver.scheduler_config, n) for n in (config.student_steps, config.teacher_steps)
        )
        if few.sigmas != (many.sigmas[0], *(many.sigmas[step + 1] for step in self.kept)):
            raise InputError(
                f"--teacher-steps {many.steps} does not pass through the states of {few.steps} steps, as timesteps are whole"
                f" numbers; choose another multiple of {few.steps}"
            )
        settings = (config.teacher_steps, config.student_steps, guidance, config.seed, config.compute.mixed_precision)
        self.id = sha256_bytes(repr((bundle.fingerprint, settings, self.keys)).encode())

    @property
    def count(self) -> int:
        return self.config.trajectories + HELD_OUT

    @cached_property
    def blocks(self) -> Blocks:
        """Where the states of all trajectories are kept."""
        import torch

        kinds = {STATES: (torch.float16, (self.config.student_steps, *self.shape))}
        return Blocks("trajectories", self.id, self.count, kinds, lambda positions: {STATES: self.solve(positions)})

    def rows(self, positions: Sequence[int]) -> list[int]:
        """The row of `keys` at each position: every prompt once, in a new order for each round."""
        return prompt_rows(positions, len(self.keys), self.config.seed)

    def trajectories_of(self, states: torch.Tensor) -> Trajectories:
        return Trajectories(states, self.keys, self.config.seed)

    def solve(self, positions: Sequence[int]) -> torch.Tensor:
        """Returns the states of some trajectories, float16 [B, K, C, h, w]."""
        import torch

        states: list[torch.Tensor] = []
        keys = (self.keys[row] for row in self.rows(positions))
        text, index = self.prompts.encode(self.sampler.text, [None, *keys])

        def keep(step: int, latents: torch.Tensor) -> None:
            if step in self.kept:
                states.append(latents.half().cpu())

        self.sampler.latents(text, index[1:], noise_seeds(positions, self.config.seed), keep)
        return torch.stack(states, dim=1)
