"""A student of the tiny fused model, distilled for a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from dive_fast.distil.distil import distil
from dive_fast.models import load_bundle
from tests.support.city import one_thread, single_thread
from tests.support.distilling import CONFIG

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def student(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student of two steps. Read only."""
    out = tmp_path_factory.mktemp("distil") / "student"
    with single_thread():  # as the tests that compare with it
        distil(load_bundle(tiny_fused), out, CONFIG, progress=False)
    return out
