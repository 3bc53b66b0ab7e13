"""Checkpoints of untrained networks, as trainings write them, and the pretrained weights that a training starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from dive_fast.io import sha256_file, write_json
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import to_dict

SMALL = ModelConfig(height=64, width=32, stripes=1)


def write_net(out: Path, model: ModelConfig = SMALL, seed: int = 0, **record: object) -> Path:
    """Writes the checkpoint folder of a ReID net; `record` changes what its reid.json says (None: leaves that out)."""
    out.mkdir(parents=True, exist_ok=True)
    config = ReidConfig(model=model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ReidModel(config.model, 3)
        for module in net.modules():  # statistics as training would leave them, roughly
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
    save_file(net.state_dict(), out / "model.safetensors")
    known = {"synthetic": 0, "images": 60, "data": "d", "pids": ["1", "2", "3"], "config": to_dict(config)}
    known |= {"sha256": sha256_file(out / "model.safetensors"), **record}
    write_json(out / "reid.json", {name: value for name, value in known.items() if value is not None})
    return out


def torchvision_state(old: bool = False) -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of torchvision's resnet50, written down from its paper's table."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, size: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size, generator=generator) * (
            (2 / (inputs * size * size)) ** 0.5
        )

    def norm(name: str, channels: int) -> None:
        for leaf, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.5)):
            state[f"{name}.{leaf}"] = torch.rand(channels, generator=generator) * (0.4 if low < 0 else 0.6) + low
        if not old:
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        inner, outputs = 32 * 2**stage, 128 * 2**stage
        for block in range(depth):
            where = f"layer{stage}.{block}"
            convolutions = (inner, inputs, 1), (inner, inner, 3), (outputs, inner, 1)
            for number, (o, i, size) in enumerate(convolutions, start=1):
                conv(f"{where}.conv{number}", o, i, size)
                norm(f"{where}.bn{number}", o)
            if block == 0:
                conv(f"{where}.downsample.0", outputs, inputs, 1)
                norm(f"{where}.downsample.1", outputs)
            inputs = outputs
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
    return state
