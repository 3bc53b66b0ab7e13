"""The student in training: a LoRA on every layer of the teacher's UNet, and its error on the teacher's trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from dive_fast.distil.config import DistilConfig
from dive_fast.distil.learner import Learner, MadeForecast
from dive_fast.distil.likeness import Likeness, likeness, psnr
from dive_fast.distil.trajectories import STATES, Teacher, Trajectories, check_fused, few_step_scheduler
from dive_fast.io import atomic_encode
from dive_fast.models.lora import add_lora, every_layer, fold_lora, lora_shapes, lora_state, remove_lora
from dive_fast.models.student import Student, attention_sums
from dive_fast.sampling import Schedule
from dive_fast.sampling.config import SD15, Sampling
from dive_fast.sampling.solver import clean_latents, coefficients
from dive_fast.train.attention import use_cpu_attention
from dive_fast.train.contact_sheet import contact_sheet
from dive_fast.train.loop import Callback, Loss, PhaseConfig
from dive_fast.train.photos import image_size
from dive_fast.train.run import check_training, log_and_state_bytes
from dive_fast.train.samples import ImageSampler
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

_SHOWN = 8  # images of a sheet
_MARGIN = 110  # pixels for "person, camera" beside them


class TrajectoriesForecast(MadeForecast):
    """A dry run of `distil`."""

    examples = data = "trajectories"
    making = "solve trajectories"


class StudentTrainer(Learner[Trajectories]):
    """A fused model on `device` that becomes a student, in place. Unknown people and steps that do not fit are refused."""

    config: DistilConfig

    def __init__(
        self, bundle: ModelBundle, config: DistilConfig, exclude: Sequence[str] = (), device: str = "cpu"
    ) -> None:
        self.bundle, self.config = bundle, config
        self.own = bundle.sampling or SD15
        self.guidance = self.own.guidance if config.guidance is None else config.guidance
        self.teacher = Teacher(bundle, config, self.guidance, _people(bundle, exclude))
        self.blocks, self.prompts, self.order = self.teacher.blocks, len(self.teacher.keys), config.seed + 1
        self.fingerprint, self.attention = bundle.fingerprint, attention_sums(bundle.unet)
        scheduler = few_step_scheduler(bundle.scheduler_config, order=1)
        self.schedule = Schedule.from_config(scheduler, config.student_steps)
        self.sampler = ImageSampler(
            replace(bundle, scheduler_config=scheduler), config.compute.mixed_precision, config.student_steps, 1.0
        )
        for network in self.networks():
            network.to(device)
        use_cpu_attention(bundle.unet, device)

    def networks(self) -> list[torch.nn.Module]:
        return [self.bundle.text_encoder, self.bundle.unet]

    def read(self, made: Mapping[str, torch.Tensor]) -> Trajectories:
        return self.teacher.trajectories_of(made[STATES])

    def parameters(self) -> list[torch.nn.Parameter]:
        """Adds the student's LoRA to the UNet, which is the teacher's until then; returns its parameters."""
        import torch

        torch.manual_seed(self.config.seed)
        unet, compute = self.bundle.unet, self.config.compute
        lora = add_lora(unet, self.config.rank, float(self.config.rank), every_layer(unet))
        if compute.checkpointing:
            unet.enable_gradient_checkpointing()
        return lora

    def error(self, data: Trajectories, positions: Sequence[int]) -> Loss:
        """Returns the loss of the trajectories at these positions, and the error of each of the student's steps.

        A student's step predicts clean latents, and DDIM's rule leads from them to the next state. The loss is the mean
        square difference, in clean latents, from the prediction that would lead to the teacher's next state: whatever the
        solver or the guidance did between. So guidance and steps are distilled at once.
        """
        import torch

        unet = self.bundle.unet
        text, index = self.teacher.prompts.encode(self.sampler.text, data.prompts(positions))
        states = data.states[list(positions)].to(unet.device).float()
        latents, text = data.noise(positions).to(unet.device), text[index.to(text.device)]
        losses = []
        for k, timestep in enumerate(self.schedule.timesteps):
            clean = clean_latents(self.schedule, k, latents, unet(latents, timestep, text).sample.float())
            keep, add, _ = coefficients(self.schedule, k, first_order=True)
            losses.append((clean - (states[:, k] - keep * latents) / add).square().mean())
            reached = keep * latents + add * clean
            latents = (reached if self.config.states == "own" else states[:, k]).detach()
        return torch.stack(losses).mean(), {f"step{k + 1}": value.detach() for k, value in enumerate(losses)}

    def sample(self, trajectories: Trajectories, positions: Sequence[int]) -> torch.Tensor:
        """The student's latents [B, C, h, w] of these trajectories' prompts and noise."""
        import torch

        text, index = self.teacher.prompts.encode(self.sampler.text, [None, *trajectories.prompts(positions)])
        parts = [
            self.sampler.latents(text, rows, seeds)
            for rows, seeds in zip(
                index[1:].split(self.config.batch),
                _chunks(trajectories.seeds(positions), self.config.batch),
                strict=True,
            )
        ]
        return torch.cat(parts)

    def likeness(self, trajectories: Trajectories) -> Likeness:
        """Measures the student on the held-out trajectories."""
        ours, theirs = self.sample(trajectories, self.held), trajectories.states[list(self.held), -1].float()
        pixels = [self._pixels(latents) for latents in (ours, theirs)]
        return likeness(ours, theirs, psnr(*pixels))

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, H, W, 3] of latents."""
        import torch

        return torch.cat([torch.from_numpy(self.sampler.decode(part)) for part in latents.split(self.config.batch)])

    def sheet_callback(self, phase: PhaseConfig, trajectories: Trajectories) -> Callback | None:
        """Returns the callback that draws held-out images of both beside the loss log; None without sheets."""
        if not self.config.sheet_every:
            return None
        positions = self.held[:_SHOWN]
        names = [", ".join(key) for key in trajectories.prompts(positions)]

        def write(step: int) -> None:
            theirs = self.sampler.decode(trajectories.states[list(positions), -1].float())
            ours = self.sampler.decode(self.sample(trajectories, positions))
            sheet = contact_sheet(list(zip(theirs, ours, strict=True)), names, ("teacher", "student"), _MARGIN)
            out = phase.work / f"{phase.name}-{step:08d}.png"
            atomic_encode(out, lambda stream: sheet.save(stream, format="png"))

        return Callback(self.config.sheet_every, write)

    def student(self, metadata: dict[str, Any]) -> ModelBundle:
        """Folds the LoRA into the weights and returns the student, on the CPU; the trainer cannot be used afterwards."""
        unet = self.bundle.unet
        state = lora_state(unet)
        remove_lora(unet)
        unet.disable_gradient_checkpointing()
        fold_lora(unet.float().cpu(), state, 1.0)  # alpha is the rank
        self.bundle.text_encoder.float().cpu()
        record = Student(self.fingerprint, self.guidance, self.attention, metadata)
        own = Sampling(steps=self.config.student_steps, guidance=1.0)
        return replace(self.bundle, scheduler_config=self.sampler.bundle.scheduler_config, sampling=own, student=record)

    def disk_bytes(self) -> int:
        """Returns the bytes of trajectories, states, the student, logs and sheets at most."""
        config, bundle = self.config, self.bundle
        trained = sum(prod(shape) for shape in lora_shapes(bundle.unet, config.rank, every_layer(bundle.unet)).values())
        model = sum(p.numel() for network in (*self.networks(), bundle.vae) for p in network.parameters()) * 4
        height, width = image_size(bundle)
        sheets = config.steps // config.sheet_every * 2 * _SHOWN * height * width * 3 if config.sheet_every else 0
        return self.blocks.nbytes + log_and_state_bytes(config, 4 * trained, config.steps) + model + sheets


def _chunks(values: list[int], size: int) -> list[list[int]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def check_settings(bundle: ModelBundle, config: DistilConfig, device: str) -> None:
    """Raises `InputError` for a model or settings that cannot be distilled, `DiveError` for a missing extra."""
    check_fused(bundle)
    if bundle.student is not None:
        raise InputError(
            f"the model is a student itself, of {bundle.student.teacher[:12]}…, and has no guidance to distil; give its"
            " teacher, the fused model"
        )
    check_training(config, device)


def _people(bundle: ModelBundle, exclude: Sequence[str]) -> list[str]:
    """The model's identities but for the excluded ones; an unknown or no identity raises `InputError`."""
    assert bundle.prompts is not None
    for pid in exclude:
        bundle.prompts.identity(pid)
    kept = [one.pid for one in bundle.prompts.identities if one.pid not in set(exclude)]
    if not kept:
        raise InputError(f"--exclude leaves none of the model's {len(bundle.prompts.identities):,} identities")
    return kept
