"""The student in training: a LoRA on every layer of the teacher's UNet, and its error on the teacher's trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from dive_fast.distil.config import DistilConfig
from dive_fast.distil.learner import Learner
from dive_fast.distil.likeness import Likeness, likeness, psnr
from dive_fast.distil.trajectories import STATES, Drawings, Teacher, check_fused, few_step_scheduler
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
from dive_fast.train.run import check_training, work_bytes
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

    from dive_fast.distil.blocks import Rows
    from dive_fast.models.bundle import ModelBundle

_SHOWN = 8  # images of a sheet
_MARGIN = 110  # pixels for "person, camera" beside them


class StudentTrainer(Learner):
    """A fused model on `device` that becomes a student, in place. Unknown people and steps that do not fit are refused."""

    config: DistilConfig
    examples, making = "trajectories", "solving trajectories"

    def __init__(
        self, bundle: ModelBundle, config: DistilConfig, exclude: Sequence[str] = (), device: str = "cpu"
    ) -> None:
        self.bundle, self.config, self.order = bundle, config, config.seed + 1
        self.guidance = (bundle.sampling or SD15).guidance if config.guidance is None else config.guidance
        pids, precision = _people(bundle, exclude), config.compute.mixed_precision
        self.teacher = Teacher(bundle, config, self.guidance, pids)
        self.blocks, self.prompts = self.teacher.blocks, len(self.teacher.keys)
        self.fingerprint, self.attention = bundle.fingerprint, attention_sums(bundle.unet)
        few_steps = replace(bundle, scheduler_config=few_step_scheduler(bundle.scheduler_config, order=1))
        self.sampling = Sampling(steps=config.student_steps, guidance=1.0)
        self.schedule = Schedule.from_config(few_steps.scheduler_config, config.student_steps)
        self.drawings = Drawings(few_steps, self.sampling, precision, config.seed, pids)
        self.networks = [bundle.text_encoder, bundle.unet]
        for network in self.networks:
            network.to(device)
        use_cpu_attention(bundle.unet, device)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Adds the student's LoRA to the UNet, which is the teacher's until then; returns its parameters."""
        import torch

        torch.manual_seed(self.config.seed)
        unet, compute = self.bundle.unet, self.config.compute
        lora = add_lora(unet, self.config.rank, float(self.config.rank), every_layer(unet))
        if compute.checkpointing:
            unet.enable_gradient_checkpointing()
        return lora

    def error(self, made: Rows, positions: Sequence[int]) -> Loss:
        """Returns the loss of the trajectories at these positions, and the error of each of the student's steps.

        A student's step predicts clean latents, and DDIM's rule leads from them to the next state. The loss is the mean
        square difference, in clean latents, from the prediction that would lead to the teacher's next state: whatever the
        solver or the guidance did between. So guidance and steps are distilled at once.
        """
        import torch

        unet, drawn = self.bundle.unet, self.drawings
        text, index = drawn.encoder.encode(drawn.sampler.text, drawn.prompts(positions))
        states = made[STATES][list(positions)].to(unet.device).float()
        latents, text = drawn.noise(positions).to(unet.device), text[index.to(text.device)]
        losses = []
        for k, timestep in enumerate(self.schedule.timesteps):
            clean = clean_latents(self.schedule, k, latents, unet(latents, timestep, text).sample.float())
            keep, add, _ = coefficients(self.schedule, k, first_order=True)
            losses.append((clean - (states[:, k] - keep * latents) / add).square().mean())
            reached = keep * latents + add * clean
            latents = (reached if self.config.states == "own" else states[:, k]).detach()
        return torch.stack(losses).mean(), {f"step{k + 1}": value.detach() for k, value in enumerate(losses)}

    def sample(self, positions: Sequence[int]) -> torch.Tensor:
        """The student's latents [B, C, h, w] of the prompts and noise at these positions."""
        import torch

        firsts = range(0, len(positions), self.config.batch)
        return torch.cat([self.drawings.latents(positions[at : at + self.config.batch]) for at in firsts])

    def likeness(self, made: Rows) -> Likeness:
        """Measures the student on the held-out trajectories."""
        ours, theirs = self.sample(self.held), made[STATES][list(self.held), -1].float()
        return likeness(ours, theirs, psnr(self._pixels(ours), self._pixels(theirs)))

    def _pixels(self, latents: torch.Tensor) -> torch.Tensor:
        return self.drawings.decode(latents, self.config.batch)

    def sheet_callback(self, phase: PhaseConfig, made: Rows) -> Callback | None:
        """Returns the callback that draws held-out images of both beside the loss log; None without sheets."""
        if not self.config.sheet_every:
            return None
        positions = self.held[:_SHOWN]
        names = [", ".join(key) for key in self.drawings.prompts(positions)]

        def write(step: int) -> None:
            ours, theirs = self.sample(positions), made[STATES][list(positions), -1].float()
            rows = list(zip(self._pixels(theirs).numpy(), self._pixels(ours).numpy(), strict=True))
            sheet = contact_sheet(rows, names, ("teacher", "student"), _MARGIN)
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
        return replace(self.drawings.sampler.bundle, sampling=self.sampling, student=record)

    def disk_bytes(self) -> int:
        """Returns the bytes of trajectories, states, the student, logs and sheets at most."""
        config, bundle = self.config, self.bundle
        trained = sum(prod(shape) for shape in lora_shapes(bundle.unet, config.rank, every_layer(bundle.unet)).values())
        model = sum(p.numel() for network in (*self.networks, bundle.vae) for p in network.parameters()) * 4
        pixels = 2 * _SHOWN * prod(image_size(bundle))
        return self.blocks.nbytes + work_bytes(config, 4 * trained, config.steps, config.sheet_every, pixels) + model


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
