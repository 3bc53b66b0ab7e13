"""A step of `dive-fast personalize` against diffusers' LoRA example: `python -m benchmarks.personalize --out FILE`.

The peer does what the settings of diffusers' examples/text_to_image/train_text_to_image_lora.py say, written here anew: at
each step it encodes pixels and captions, and PEFT's LoRA on to_q, to_k, to_v, to_out.0 learns by the mean squared error,
plain AdamW, gradients clipped to norm 1. Ours is the whole step of a run: photos drawn, captions written and tokenized, the
optimizer fused, the average kept. Same model, batch, rank and precision in one process, blocks of steps in turn. The peer's
photos and tokens lie ready in memory, which a loader must first bring about. A figure is a median; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import interleaved, metadata, options_of, write
from dive_fast.bench.timing import ratio
from dive_fast.models import load_bundle
from dive_fast.models.lora import lora_targets
from dive_fast.train.config import Compute, PersonalizeConfig
from dive_fast.train.loop import TrainState
from dive_fast.train.photos import image_size
from dive_fast.train.precision import autocast, half, loss_scaler
from dive_fast.train.trainer import Trainer, phase_configs
from dive_fast.types import Sample

PEER = "diffusers' example"
PEOPLE = 8


def _samples(folder: Path, size: tuple[int, int]) -> list[Sample]:
    """Photos of noise, two of each person in RGB and two in infrared: what is on them takes no time."""
    rng = np.random.default_rng(0)
    samples = []
    for person, camera, shot in itertools.product(range(PEOPLE), ("cam1", "cam3"), range(2)):
        path = folder / f"{person}-{camera}-{shot}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(path, f"{person:04d}", camera, modality="ir" if camera == "cam3" else "rgb"))
    return samples


def _ours(options: argparse.Namespace, folder: Path, identity_steps: int) -> tuple[Callable[[], torch.Tensor], int]:
    """Does one step and gives its loss; and how many values learn. With `identity_steps` the LoRA alone, as in the peer."""
    compute = Compute(options.precision, checkpointing=options.checkpointing)
    config = PersonalizeConfig(
        identity_steps=identity_steps, steps=10**6, batch=options.batch, rank=options.rank, compute=compute
    )
    bundle = load_bundle(options.model)
    samples = _samples(folder, image_size(bundle))
    trainer = Trainer(bundle, samples, config, None, options.device, progress=False)
    configs = phase_configs(config, folder, "", progress=False)
    phase = trainer.phases(configs, trainer.encode(samples, progress=False), None)[-1]
    trainer.model.set_trainable(phase.rows, phase.lora)
    train = TrainState(phase.config, trainer.model.groups, phase.loss_at, trainer.model.lora)
    steps = itertools.count()
    return lambda: train.step(next(steps))[0], sum(parameter.numel() for parameter in train.parameters)


class _Peer:
    """The example's training loop, but for its data loader."""

    def __init__(self, options: argparse.Namespace) -> None:
        from diffusers import DDPMScheduler
        from peft import LoraConfig

        self.bundle, self.options = load_bundle(options.model), options
        bundle, dtype = self.bundle, half(options.precision) or torch.float32
        self.device = torch.device(options.device)
        for network in (bundle.unet, bundle.vae, bundle.text_encoder):
            torch.nn.Module.to(network, self.device, dtype)
        targets = lora_targets(bundle.unet)
        lora = LoraConfig(r=options.rank, lora_alpha=options.rank, init_lora_weights="gaussian", target_modules=targets)
        bundle.unet.add_adapter(lora)
        self.learned = [p for p in bundle.unet.parameters() if p.requires_grad]
        for parameter in self.learned:
            parameter.data = parameter.data.float()
        if options.checkpointing:
            bundle.unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.learned, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.scheduler = DDPMScheduler.from_config(bundle.scheduler_config)
        self.scaler = loss_scaler(options.precision, self.device)
        self.dtype = dtype
        self.pixels = torch.rand(options.batch, 3, *image_size(bundle)).mul(2).sub(1)
        captions = [f"a photo of person {number}" for number in range(options.batch)]
        self.ids = torch.tensor(bundle.tokenizer(captions, padding="max_length", truncation=True)["input_ids"])

    def step(self) -> torch.Tensor:
        bundle, scheduler = self.bundle, self.scheduler
        with torch.no_grad():
            encoded = bundle.vae.encode(self.pixels.to(self.device, self.dtype)).latent_dist.sample()
            text = bundle.text_encoder(self.ids.to(self.device)).last_hidden_state
        latents = encoded * bundle.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=self.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        is_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if is_v else noise
        with autocast(self.options.precision, self.device):
            output = bundle.unet(noisy, timesteps, text).sample
        loss = torch.nn.functional.mse_loss(output.float(), target.float())
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss.detach()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Steps a second of the peer and of ours, where the LoRA learns alone and where identities learn beside it."""
    with tempfile.TemporaryDirectory() as folder:
        peer = _Peer(options)
        alone, values = _ours(options, Path(folder), identity_steps=1)
        both, _ = _ours(options, Path(folder), identity_steps=0)
        if values != sum(parameter.numel() for parameter in peer.learned):
            raise SystemExit(f"ours learns {values:,} values, the peer others; their speed cannot be compared")
        steps = {PEER: peer.step, "ours, LoRA": alone, "ours, identities and LoRA": both}

        def block(step: Callable[[], torch.Tensor]) -> float:
            for _ in range(options.steps - 1):
                step()
            return step().item()  # waits for a GPU

        times = interleaved({name: partial(block, step) for name, step in steps.items()}, options.repeats)
    return {"values that learn": values, "rows": [_row(name, times, options.steps) for name in times]}


def _row(name: str, times: dict[str, list[float]], steps: int) -> dict[str, Any]:
    faster, rate = ratio(times[PEER], times[name]), 1e3 * steps / statistics.median(times[name])
    print(f"{name:<28}{rate:>9.2f} steps/s   {faster.median:.2f}x", flush=True)
    low, median, high = (round(value, 2) for value in (faster.low, faster.median, faster.high))
    return {"what": name, "steps/s": round(rate, 3), "times the example's": median, "range": [low, high]}


def main() -> None:
    parser = options_of(__doc__, batch=16, rank=8)
    parser.add_argument("--model", default="pocket", help="base model folder")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="steps of a block that is timed")
    parser.add_argument("--repeats", type=int, default=9, help="blocks of each, after one to warm up")
    options = parser.parse_args()
    found = metadata(
        ("torch", "diffusers", "transformers", "peft"),
        gpu=torch.cuda.get_device_name() if options.device == "cuda" else None,
        threads=torch.get_num_threads(),
        repeats=options.repeats,
        **{name: getattr(options, name) for name in ("model", "batch", "rank", "precision", "checkpointing")},
    )
    write(options.out, {**found, "steps a block": options.steps, **measure(options)})


if __name__ == "__main__":
    main()
