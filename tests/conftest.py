"""Models that several rooms' tests share, each made once a session."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dive_fast.engines.registry import BACKENDS, OPENVINO
from tests.support.cli import run, step
from tests.support.tiny import ENGINE_ROWS

__all__ = ["run", "step"]  # fixtures of every test


def pytest_configure() -> None:
    """Ends a shell's order to background jobs to ignore Ctrl-C, which the processes that tests stop by it would inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of exported engines slow: the first one of a session waits half a minute for the export."""
    for item in items:
        if {"tiny_engine", "half_bank"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def auto_takes_onnxruntime() -> Iterator[None]:
    """So that tests mean the same where OpenVINO is installed; test_openvino_engine.py tests what auto does with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "openvino", replace(OPENVINO, wins="tests.support.backends:never"))
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base model folder. Read only: copy it to change it."""
    from tests.support.tiny import tiny_bundle_folder

    return tiny_bundle_folder(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_fused(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with a random adapter fused in: pids 0001, 0002, 0003, cameras cam1, cam3, cam7. Read only."""
    from dive_fast.models import fuse, load_bundle, save_bundle
    from tests.support.tiny import tiny_adapter

    bundle = load_bundle(tiny_base)
    folder = tmp_path_factory.mktemp("tiny") / "fused"
    save_bundle(fuse(bundle, tiny_adapter(bundle)), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_engine(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fused model as an engine folder of `ENGINE_ROWS` rows (about 30 s to make). Read only."""
    from dive_export import export_engine

    folder = tmp_path_factory.mktemp("tiny") / "engine"
    export_engine(tiny_fused, folder, rows_max=ENGINE_ROWS)
    return folder


@pytest.fixture(scope="session")
def half_bank(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fused tiny model in the kv-cache variant, half precision, any size. Read only."""
    from dive_export import export_engine
    from tests.support.engines import HALF_BANK

    folder = tmp_path_factory.mktemp("half") / "engine"
    export_engine(tiny_fused, folder, rows_max=ENGINE_ROWS, options=HALF_BANK)
    return folder


@pytest.fixture(scope="session")
def tiny_bank(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fused tiny model with a K/V cache, for up to 8 rows. Read only."""
    from dive_export import GraphOptions, export_engine

    folder = tmp_path_factory.mktemp("bank") / "engine"
    export_engine(tiny_fused, folder, rows_max=8, check=False, options=GraphOptions("kv-cache"))
    return folder
