"""The teacher's trajectories: the states that its guided images pass through, solved once and kept in blocks.

A trajectory's prompt and noise depend on its position alone, so a block can be made by any run, at any time, and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dive_fast.distil.blocks import Blocks
from dive_fast.io import sha256_bytes
from dive_fast.models.prompts import PromptEncoder
from dive_fast.sampling import Sampling, Schedule, initial_noise
from dive_fast.sampling.noise import SEED_LIMIT
from dive_fast.sampling.schedule import DEFAULTS
from dive_fast.train.config import Precision
from dive_fast.train.loop import batch_indices
from dive_fast.train.photos import latent_shape
from dive_fast.train.samples import ImageSampler
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

    from dive_fast.distil.config import DistilConfig
    from dive_fast.models.bundle import ModelBundle
    from dive_fast.sampling import OnStep

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


class Drawings:
    """Images that `bundle` draws of its people `pids` by its cameras; image and prompt depend on a position alone."""

    def __init__(
        self,
        bundle: ModelBundle,
        sampling: Sampling,
        precision: Precision,
        seed: int,
        pids: Iterable[str] | None = None,
    ) -> None:
        assert bundle.prompts is not None  # `check_fused` refuses other models
        self.sampler = ImageSampler(bundle, precision, sampling.steps, sampling.guidance)
        self.encoder, self.seed = PromptEncoder(bundle.tokenizer, bundle.prompts), seed
        self.keys = bundle.prompts.keys(pids)

    def prompts(self, positions: Sequence[int]) -> list[tuple[str, str]]:
        """The one of `keys` at each position: each once, in a new order for each round."""
        return [self.keys[int(batch_indices(len(self.keys), 1, at, self.seed)[0])] for at in positions]

    def seeds(self, positions: Sequence[int]) -> list[int]:
        return [((self.seed << 32) + position) % SEED_LIMIT for position in positions]

    def noise(self, positions: Sequence[int]) -> torch.Tensor:
        """The states before the first step, float32 [B, C, h, w]."""
        return initial_noise(self.seeds(positions), latent_shape(self.sampler.bundle))

    def latents(self, positions: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Scaled latents float32 [B, C, h, w] on the CPU; `on_step` as of `dpmpp_2m`."""
        text, index = self.encoder.encode(self.sampler.text, [None, *self.prompts(positions)])
        return self.sampler.latents(text, index[1:], self.seeds(positions), on_step)

    def decode(self, latents: torch.Tensor, batch: int) -> torch.Tensor:
        """Images uint8 [B, H, W, 3] of latents, `batch` of them at a time."""
        import torch

        return torch.cat([torch.from_numpy(self.sampler.decode(part.float())) for part in latents.split(batch)])


class Teacher(Drawings):
    """A fused model that solves the trajectories of a distillation, with guidance, in its present state.

    A trajectory is the states after each of the student's K steps, the last one clean: float16 [K, C, h, w].
    """

    def __init__(self, bundle: ModelBundle, config: DistilConfig, guidance: float, pids: Sequence[str]) -> None:
        solver = replace(bundle, scheduler_config=few_step_scheduler(bundle.scheduler_config, order=2))
        precision = config.compute.mixed_precision
        super().__init__(solver, Sampling(config.teacher_steps, guidance), precision, config.seed, pids)
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
        settings = (config.teacher_steps, config.student_steps, guidance, config.seed, precision)
        run = sha256_bytes(repr((bundle.fingerprint, settings, self.keys)).encode())
        kinds = {STATES: ("float16", (config.student_steps, *latent_shape(bundle)))}
        self.blocks = Blocks("trajectories", run, config.trajectories + HELD_OUT, kinds, self.solve)

    def solve(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns the states of some trajectories, float16 [B, K, C, h, w]."""
        import torch

        states: list[torch.Tensor] = []

        def keep(step: int, latents: torch.Tensor) -> None:
            if step in self.kept:
                states.append(latents.half().cpu())

        self.latents(positions, keep)
        return {STATES: torch.stack(states, dim=1)}
