import copy
import shutil
from pathlib import Path

import pytest

from dive_fast.models import Adapter, ModelBundle, load_bundle
from tests.support.tiny import tiny_adapter


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base model to break."""
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


@pytest.fixture(scope="session")
def _loaded(tiny_base: Path) -> ModelBundle:
    loaded = load_bundle(tiny_base)
    assert loaded.fingerprint  # computed here once; copies keep it
    return loaded


@pytest.fixture
def bundle(_loaded: ModelBundle) -> ModelBundle:
    """The base model, for this test alone."""
    return copy.deepcopy(_loaded)


@pytest.fixture
def adapter(_loaded: ModelBundle) -> Adapter:
    return tiny_adapter(_loaded)
