"""The engine folder: whole or not there, and left alone when it is the one asked for."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dive_export import GraphOptions, artifact, export_engine
from dive_export.graphs import Graph
from dive_export.onnx import AS_EXPORTED
from dive_export.resources import CLEAR, Resources
from dive_fast.engines.engine_folder import read_spec
from dive_fast.io import sha256_file
from dive_fast.outputs import holds, output_folder
from dive_fast.types import DiveError, InputError, to_dict
from dive_fast.unet.optimizations import OPTIMIZATIONS
from tests.support.engines import HALF_BANK
from tests.support.refusals import refused
from tests.support.tensorrt_engines import quiet
from tests.support.tiny import ENGINE_ROWS


@pytest.fixture
def copied_parts(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes graphs from the finished engine in place of the slow exporter; the parts asked for are listed."""
    asked: list[str] = []

    def copy(graph: Graph, path: Path, precision: str) -> None:
        asked.append(graph.part)
        path.parent.mkdir(parents=True)
        for file in (tiny_engine / graph.part).glob("model.onnx*"):
            shutil.copyfile(file, path.parent / file.name)

    monkeypatch.setattr(artifact, "export_graph", copy)
    return asked


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_its_spec_says(tiny_engine: Path, tiny_fused: Path) -> None:
    spec = json.loads((tiny_engine / "engine.json").read_text())
    assert spec["backend"] == "onnxruntime" and spec["precision"] == "fp32" and spec["gpu"] is None
    assert spec["versions"]["opset"] == "23"
    assert spec["variant"] == "plain" and spec["optimizations"] == ["time_table", "unit_scale", "fused_qkv"]
    assert spec["any_size"] is False
    assert files(tiny_engine) == {*spec["sha256"], "engine.json", "export.json", "parity.json"}
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


def test_the_bank_form_is_whole_and_measured_too(half_bank: Path) -> None:
    spec = read_spec(half_bank)
    assert set(spec.files) == {"text_encoder", "prompt_bank", "unet", "vae_decoder", "vae_encoder"}
    assert (spec.variant, spec.precision, spec.optimizations, spec.any_size) == (
        "kv-cache",
        "fp16",
        OPTIMIZATIONS,
        True,
    )
    assert files(half_bank) == {*spec.sha256, "engine.json", "export.json", "parity.json"}
    for part, record in json.loads((half_bank / "parity.json").read_text()).items():
        assert record["measured"] == AS_EXPORTED
        # half precision shows (2^-11 of numbers of about 1), and no more than its roundings explain
        assert 1e-5 < max(record["errors"].values()) <= record["budget"] < 0.02, part


def test_the_report_tells_time_memory_and_size_of_each_part(half_bank: Path) -> None:
    report = json.loads((half_bank / "export.json").read_text())
    assert list(report) == list(read_spec(half_bank).files)
    for part, record in report.items():
        files = sum(file.stat().st_size for file in (half_bank / part).glob("model.onnx*"))
        assert record["file_mb"] == pytest.approx(files / 1e6)
        assert record["seconds"] > 0
        assert 100 < record["peak_mb"] < 20_000 if CLEAR.exists() else record["peak_mb"] is None


def test_the_peak_is_the_blocks_own() -> None:
    if not CLEAR.exists():
        pytest.skip("resident sets are read from /proc, which this system lacks")
    with Resources() as before:
        pass
    with Resources() as large:
        block = bytearray(300_000_000)
        block[::4096] = bytes(len(block[::4096]))
        del block
    with Resources() as after:
        pass
    assert before.peak_mb and large.peak_mb and after.peak_mb
    assert large.peak_mb - before.peak_mb > 250 and large.peak_mb - after.peak_mb > 250


@pytest.mark.parametrize(
    ("options", "differ"),
    [
        (GraphOptions("kv-cache", "fp16"), "any_size"),
        (GraphOptions("kv-cache", any_size=True), "precision"),
        (GraphOptions("kv-cache", "fp16", ("time_table",), True), "optimizations"),
        (GraphOptions("plain", "fp16", any_size=True), "files, variant, optimizations"),
    ],
)
def test_an_engine_of_other_options_is_another_engine(
    half_bank: Path, tiny_fused: Path, options: GraphOptions, differ: str
) -> None:
    with pytest.raises(InputError, match=rf"\({differ} differ"):
        export_engine(tiny_fused, half_bank, rows_max=ENGINE_ROWS, options=options)


@pytest.mark.parametrize(("made", "options"), [("tiny_engine", None), ("half_bank", HALF_BANK)])
def test_a_rerun_does_nothing(
    made: str, options: GraphOptions | None, tiny_fused: Path, copied_parts: list[str], request: pytest.FixtureRequest
) -> None:
    engine: Path = request.getfixturevalue(made)
    before = {path: path.stat().st_mtime_ns for path in engine.rglob("*")}
    lines: list[str] = []
    spec = export_engine(tiny_fused, engine, rows_max=ENGINE_ROWS, options=options, progress=lines.append)
    assert copied_parts == [] and {path: path.stat().st_mtime_ns for path in engine.rglob("*")} == before
    assert json.loads(json.dumps(to_dict(spec))) == json.loads((engine / "engine.json").read_text())
    assert spec == read_spec(engine) and len(lines) == 1


def test_a_check_left_out_is_made_up_for(tiny_fused: Path, copied_parts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "engine"
    first = export_engine(tiny_fused, out, rows_max=ENGINE_ROWS, check=False, progress=quiet)
    assert not (out / "parity.json").exists()
    assert export_engine(tiny_fused, out, rows_max=ENGINE_ROWS, progress=quiet) == first
    assert (out / "parity.json").exists() and len(copied_parts) == 4


def test_another_engine_is_not_overwritten(
    tiny_engine: Path, tiny_fused: Path, copied_parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="profile differ"):
        export_engine(tiny_fused, tiny_engine, rows_max=ENGINE_ROWS + 1)
    damaged = shutil.copytree(tiny_engine, tmp_path / "damaged")
    (damaged / "unet/model.onnx").write_bytes(b"?")
    with pytest.raises(InputError, match="unet/model.onnx differs"):
        export_engine(tiny_fused, damaged, rows_max=ENGINE_ROWS)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    for out in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.tex"):
        with pytest.raises(InputError, match=f"{out.name} "):
            export_engine(tiny_fused, out)
    assert copied_parts == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_export_leaves_nothing(
    tiny_fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def stop(graph: Graph, path: Path, precision: str) -> None:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
        if graph.part == "vae_decoder":
            raise interruption

    monkeypatch.setattr(artifact, "export_graph", stop)
    with pytest.raises(interruption):
        export_engine(tiny_fused, tmp_path / "engine", progress=quiet)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_cleared(tiny_fused: Path, copied_parts: list[str], tmp_path: Path) -> None:
    leftover = tmp_path / ".engine.dive-tmp" / "new"
    leftover.mkdir(parents=True)
    (leftover / "model.onnx").write_bytes(b"half")
    (tmp_path / "engine").mkdir()  # an empty folder is as good as none
    export_engine(tiny_fused, tmp_path / "engine", rows_max=ENGINE_ROWS, check=False, progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_two_exports_do_not_write_one_folder(tiny_fused: Path, copied_parts: list[str], tmp_path: Path) -> None:
    with output_folder(tmp_path / "engine", holds("engine.json")):
        refused("another run", export_engine, tiny_fused, tmp_path / "engine", progress=quiet)
    export_engine(tiny_fused, tmp_path / "engine", rows_max=ENGINE_ROWS, check=False, progress=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_part_that_computes_something_else_is_not_shipped(
    tiny_fused: Path, copied_parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest weight of the UNet off by 1 %."""
    copy = vars(artifact)["export_graph"]  # the fixture's

    def damage(graph: Graph, path: Path, precision: str) -> None:
        copy(graph, path, precision)
        if graph.part == "unet":
            weights = np.fromfile(path.parent / "model.onnx.data", dtype=np.float32)
            weights[np.abs(weights).argmax()] *= 1.01
            weights.tofile(path.parent / "model.onnx.data")

    monkeypatch.setattr(artifact, "export_graph", damage)
    with pytest.raises(DiveError, match="export unet: "):
        export_engine(tiny_fused, tmp_path / "engine", rows_max=ENGINE_ROWS, progress=quiet)
    assert list(tmp_path.iterdir()) == []


def test_only_fused_models_are_exported(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompts.json"):
        export_engine(tiny_base, tmp_path / "engine")
    with pytest.raises(InputError, match="rows_max .* got 0"):
        export_engine(tiny_base, tmp_path / "engine", rows_max=0)


def test_a_missing_package_names_the_extra(tiny_fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(DiveError, match=r"onnxscript.*dive-fast\[export,cpu\]"):
        export_engine(tiny_fused, tmp_path / "engine")
