"""Stable Diffusion 1.5's size, without memory: shapes and bytes of a training step, by tensors that hold nothing."""

import sys
from contextlib import nullcontext

import pytest
import torch

from dive_fast.bench.sd15 import sd15
from dive_fast.distil.config import DistilConfig
from dive_fast.distil.trainer import StudentTrainer
from dive_fast.train.config import Compute
from dive_fast.train.memory import PeakMemory, optimizer_bytes, tensor_bytes

pytestmark = pytest.mark.slow

GIB = 1 << 30


def test_a_step_of_stable_diffusions_size_fits_a_card_of_24_gb(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta tensors lack
    monkeypatch.setattr(sys.modules["dive_fast.distil.trainer"], "attention_sums", lambda _: (0.0,))
    bundle = sd15(real=())
    bundle.__dict__["fingerprint"] = "random"
    config = DistilConfig(batch=4, compute=Compute(checkpointing=True))
    trainer = StudentTrainer(bundle, config, device="meta")
    with torch.device("meta"):
        lora = trainer.parameters()
    trajectories = {"states": torch.zeros(4, 4, 4, 64, 32, dtype=torch.float16)}
    with PeakMemory() as memory:
        loss, errors = trainer.error(trajectories, range(4))
        loss.backward()
    assert len(errors) == 4 and all(parameter.grad is not None for parameter in lora)
    trained = sum(parameter.numel() for parameter in lora)
    weights = tensor_bytes([bundle.unet, bundle.text_encoder])
    total = weights + optimizer_bytes(lora, average=True) + memory.peak
    sizes = [f"{size / GIB:.2f} GiB" for size in (weights, memory.peak, total)]
    print(f"{trained:,} trained values; weights, step and all with optimizer and average: {', '.join(sizes)}")
    assert trained < 0.1 * sum(parameter.numel() for parameter in bundle.unet.parameters())
    assert total < 20 * GIB
