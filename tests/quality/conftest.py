"""An untrained ReID model, and the fixtures that the page of docs shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.io import sha256_file, write_json
from dive_fast.quality.reid_extractor import ReidExtractor, open_extractor
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import to_dict
from tests.support.city import one_thread
from tests.support.quality import dataset, only_rgb, real

__all__ = ["dataset", "one_thread", "only_rgb", "real"]


MakeNet = Callable[..., Path]


@pytest.fixture(scope="session")
def make_net(tmp_path_factory) -> MakeNet:
    """Writes the checkpoint of an untrained model; `record` changes what its reid.json says (None: leaves that out)."""

    def make(seed: int = 0, **record: object) -> Path:
        out = tmp_path_factory.mktemp("net")
        config = ReidConfig(model=ModelConfig(height=64, width=32, stripes=1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ReidModel(config.model, 3)
            for module in model.modules():  # statistics as training would leave them, roughly
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
        save_file(model.state_dict(), out / "model.safetensors")
        known = {"synthetic": 0, "images": 60, "data": "d", "pids": ["1", "2", "3"], "config": to_dict(config)}
        known |= {"sha256": sha256_file(out / "model.safetensors"), **record}
        write_json(out / "reid.json", {name: value for name, value in known.items() if value is not None})
        return out

    return make


@pytest.fixture(scope="session")
def checkpoint(make_net) -> Path:
    return make_net()


@pytest.fixture(scope="session")
def extractor(checkpoint) -> ReidExtractor:
    return open_extractor(checkpoint)
