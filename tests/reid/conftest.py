"""The toy city of tests.support.city, and a small training on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import Sample
from tests.support.city import TINY, make_samples, one_thread, train

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def city(tmp_path_factory) -> dict[str, list[Sample]]:
    """`train`: 8 paired people; `external`: 4 without infrared, `external_ir` is theirs; `query`, `gallery`: 6 others."""
    root = tmp_path_factory.mktemp("city")
    test = make_samples(root / "test", range(101, 107), (1, 2, 4, 5, 3, 6), each=2)
    return {
        "train": make_samples(root / "train", range(1, 9), (1, 2, 3, 6)),
        "external": make_samples(root / "external", range(21, 25), (7,), each=6),
        "external_ir": make_samples(root / "external", range(21, 25), (3,), each=6, source="synthetic"),
        "query": [s for s in test if s.modality == "ir"],
        "gallery": [s for s in test if s.modality == "rgb"],
    }


@pytest.fixture(scope="session")
def checkpoint(city, tmp_path_factory) -> Path:
    """A model of the training people; tests only read it."""
    return train(city["train"], replace(TINY, augment=AugmentConfig(), steps=10), tmp_path_factory.mktemp("reid"))


@pytest.fixture
def tiny() -> ReidConfig:
    return TINY
