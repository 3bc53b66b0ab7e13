"""An untrained ReID model, and the fixtures that the page of docs shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dive_fast.quality.reid_extractor import ReidExtractor, open_extractor
from tests.support.checkpoints import write_net
from tests.support.city import one_thread
from tests.support.quality import dataset, only_rgb, real

__all__ = ["dataset", "one_thread", "only_rgb", "real"]


MakeNet = Callable[..., Path]


@pytest.fixture(scope="session")
def make_net(tmp_path_factory) -> MakeNet:
    """Writes the checkpoint of an untrained model; `record` changes what its reid.json says (None: leaves that out)."""

    def make(seed: int = 0, **record: object) -> Path:
        return write_net(tmp_path_factory.mktemp("net"), seed=seed, **record)

    return make


@pytest.fixture(scope="session")
def checkpoint(make_net) -> Path:
    return make_net()


@pytest.fixture(scope="session")
def extractor(checkpoint) -> ReidExtractor:
    return open_extractor(checkpoint)
