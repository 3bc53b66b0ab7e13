"""Checkpoints of untrained networks, as trainings write them."""

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
