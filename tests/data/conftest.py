from pathlib import Path

import pytest

from tests.support.trees import mixed_trees


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """A SYSU tree and a Market tree, see `mixed_trees`."""
    mixed_trees(tmp_path / "raw")
    return tmp_path / "raw"
