"""The engine folder: whole or not there, and left alone when it is the one asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dive_export import artifact, export_engine
from dive_export.graphs import Graph
from dive_fast.io import sha256_file
from dive_fast.types import DiveError, InputError, to_dict
from tests.conftest import ENGINE_ROWS


@pytest.fixture
def copied_parts(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes graphs from the finished engine in place of the slow exporter; the parts asked for are listed."""
    asked: list[str] = []

    def copy(graph: Graph, path: Path, rows_max: int) -> None:
        asked.append(graph.part)
        path.parent.mkdir(parents=True)
        for file in (tiny_engine / graph.part).glob("model.onnx*"):
            shutil.copyfile(file, path.parent / file.name)

    monkeypatch.setattr(artifact, "export_graph", copy)
    return asked


def test_the_folder_holds_what_its_spec_says(tiny_engine: Path, tiny_fused: Path) -> None:
    spec = json.loads((tiny_engine / "engine.json").read_text())
    assert spec["backend"] == "onnxruntime" and spec["precision"] == "fp32" and spec["gpu"] is None
    assert spec["versions"]["opset"] == "23"
    on_disk = {p.relative_to(tiny_engine).as_posix() for p in tiny_engine.rglob("*") if p.is_file()}
    assert on_disk == {*spec["sha256"], "engine.json", "parity.json"}
    assert all(sha256_file(tiny_engine / name) == value for name, value in spec["sha256"].items())
    assert (tiny_engine / "prompts.json").read_bytes() == (tiny_fused / "prompts.json").read_bytes()
    assert not list(tiny_engine.parent.glob(".*"))


def test_parity_is_recorded_for_every_part_and_row_count(tiny_engine: Path) -> None:
    parity = json.loads((tiny_engine / "parity.json").read_text())
    assert set(parity) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for part, record in parity.items():
        last = "8" if part.startswith("vae") else str(ENGINE_ROWS)
        assert set(record["errors"]) == {"1", "3", last}
        assert 0 < max(record["errors"].values()) <= record["budget"] < 1e-5
        assert max(record["largest"].values()) < 1e-4


def test_a_rerun_does_nothing(tiny_engine: Path, tiny_fused: Path, copied_parts: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_engine.rglob("*")}
    lines: list[str] = []
    spec = export_engine(tiny_fused, tiny_engine, rows_max=ENGINE_ROWS, progress=lines.append)
    assert copied_parts == [] and {path: path.stat().st_mtime_ns for path in tiny_engine.rglob("*")} == before
    assert json.loads(json.dumps(to_dict(spec))) == json.loads((tiny_engine / "engine.json").read_text())
    assert "is there already" in lines[-1]


def test_a_check_left_out_is_made_up_for(tiny_fused: Path, copied_parts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "engine"
    first = export_engine(tiny_fused, out, rows_max=ENGINE_ROWS, check=False, progress=lambda line: None)
    assert not (out / "parity.json").exists()
    assert export_engine(tiny_fused, out, rows_max=ENGINE_ROWS, progress=lambda line: None) == first
    assert (out / "parity.json").exists() and len(copied_parts) == 4


def test_another_engine_is_not_overwritten(
    tiny_engine: Path, tiny_fused: Path, copied_parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"holds another engine \(profile differ\)"):
        export_engine(tiny_fused, tiny_engine, rows_max=ENGINE_ROWS + 1)
    damaged = shutil.copytree(tiny_engine, tmp_path / "damaged")
    (damaged / "unet/model.onnx").write_bytes(b"?")
    with pytest.raises(InputError, match="changed since its export; delete the folder"):
        export_engine(tiny_fused, damaged, rows_max=ENGINE_ROWS)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    for out in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.tex"):
        with pytest.raises(InputError, match="exists and is no engine folder"):
            export_engine(tiny_fused, out)
    assert copied_parts == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing(
    tiny_fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def stop(graph: Graph, path: Path, rows_max: int) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        if graph.part == "vae_decoder":
            raise interruption

    monkeypatch.setattr(artifact, "export_graph", stop)
    with pytest.raises(interruption):
        export_engine(tiny_fused, tmp_path / "engine", progress=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared(tiny_fused: Path, copied_parts: list[str], tmp_path: Path) -> None:
    leftover = tmp_path / ".engine.partial" / "unet"
    leftover.mkdir(parents=True)
    (leftover / "model.onnx").write_bytes(b"half")
    (tmp_path / "engine").mkdir()  # an empty folder is as good as none
    export_engine(tiny_fused, tmp_path / "engine", rows_max=ENGINE_ROWS, check=False, progress=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_part_that_computes_something_else_is_not_shipped(
    tiny_fused: Path, copied_parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest weight of the UNet off by 1 %."""
    copy = vars(artifact)["export_graph"]  # the fixture's

    def damage(graph: Graph, path: Path, rows_max: int) -> None:
        import numpy as np

        copy(graph, path, rows_max)
        if graph.part == "unet":
            weights = np.fromfile(path.parent / "model.onnx.data", dtype=np.float32)
            weights[np.abs(weights).argmax()] *= 1.01
            weights.tofile(path.parent / "model.onnx.data")

    monkeypatch.setattr(artifact, "export_graph", damage)
    with pytest.raises(DiveError, match="export unet: onnxruntime is .* from torch"):
        export_engine(tiny_fused, tmp_path / "engine", rows_max=ENGINE_ROWS, progress=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_only_fused_models_are_exported(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no prompts.json; fuse an adapter"):
        export_engine(tiny_base, tmp_path / "engine")
    with pytest.raises(InputError, match="rows_max must be at least 1"):
        export_engine(tiny_base, tmp_path / "engine", rows_max=0)


def test_a_missing_package_names_the_extra(tiny_fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(DiveError, match=r"export needs onnxscript: pip install 'dive-fast\[export,cpu\]'"):
        export_engine(tiny_fused, tmp_path / "engine")
