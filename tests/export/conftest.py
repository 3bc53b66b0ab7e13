"""What the export tests share, each made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from dive_export import GraphOptions
from tests.conftest import ENGINE_ROWS

HALF_BANK = GraphOptions("bank", "fp16", any_size=True)


@pytest.fixture(scope="session")
def half_bank(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fused tiny model in the bank form, half precision, any size. Read only."""
    from dive_export import export_engine

    folder = tmp_path_factory.mktemp("half") / "engine"
    export_engine(tiny_fused, folder, rows_max=ENGINE_ROWS, options=HALF_BANK)
    return folder
