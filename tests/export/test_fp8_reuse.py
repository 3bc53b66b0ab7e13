"""FP8 in an engine that keeps deep features: both of its UNet graphs, each on calls of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from dive_export import GraphOptions, export_engine
from dive_export.calibration import sampling_inputs
from dive_export.fp8 import Fp8Config, Fp8Report
from dive_export.fp8_engine import Sampling, quantize_engine
from dive_export.graphs import Graph, graphs
from dive_export.tensorrt import BuildConfig
from dive_export.tensorrt_build import build_plan
from dive_export.tensorrt_job import Build
from dive_fast.engines import Engine, Kept, load_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.models import ModelBundle, load_bundle
from dive_fast.sampling import Course, Schedule, dpmpp_2m, guided, initial_noise
from dive_fast.types import DiveError
from tests.support.cli import Run
from tests.support.tensorrt_double import Double, double
from tests.support.tensorrt_engines import built, opened

__all__ = ["double"]  # fixtures
BUDGET = 0.04
OPTIONS = GraphOptions(form="bank", reuse_depth=1)
SAMPLING = Sampling(images=4, steps=4)
IN_BOTH, IN_THE_WHOLE = "up_blocks.1.resnets.1.conv1", "down_blocks.1.resnets.0.conv1"
Quantised = tuple[Path, Mapping[str, Fp8Report]]


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def keeping(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("keeping") / "engine"
    export_engine(tiny_fused, out, rows_max=8, check=False, options=OPTIONS, progress=quiet)
    return out


@pytest.fixture(scope="module")
def quantised(keeping: Path, tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    out = tmp_path_factory.mktemp("quantised") / "engine"
    return out, quantize_engine(keeping, tiny_fused, out, Fp8Config(BUDGET), SAMPLING, progress=quiet)


def short_graph(bundle: ModelBundle) -> Graph:
    return next(graph for graph in graphs(bundle, None, 8, OPTIONS)[0] if graph.part == "unet_short")


def test_short_calls_are_those_of_an_engine_that_keeps_deep_features(tiny_fused: Path) -> None:
    """The torch engine with `Kept`, run as synth runs it: of three steps one is whole."""
    keys, seeds, steps, scale = [("0001", "cam1"), ("0003", "cam3")], [4, 9], 6, 3.0
    graph = short_graph(load_bundle(tiny_fused))
    calls = sampling_inputs(load_bundle(tiny_fused), graph, keys, seeds, steps, scale, reuse=3)
    engine = load_engine(tiny_fused, "torch", device="cpu")
    embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
    conditioning, kept = engine.condition(embeddings), Kept(1)
    schedule = Schedule.from_config(engine.scheduler_config, steps)
    seen: list[tuple[int, Tensor, Tensor]] = []

    def eps_rows(latents: Tensor, timestep: int, rows: Tensor) -> Tensor:
        if schedule.timesteps.index(timestep) in (0, 3):
            kept.deep = None
        if kept.deep is not None:
            seen.append((timestep, latents, kept.deep))
        return engine.eps(latents, timestep, conditioning, rows, kept)

    eps = guided(eps_rows, index[1:], int(index[0]), scale)
    dpmpp_2m(eps, initial_noise(seeds, engine.latent_shape), schedule)
    assert len(calls) == 4
    for call, (timestep, latents, deep) in zip(calls, seen, strict=True):
        assert list(call) == list(graph.inputs) and call["timestep"].tolist() == [timestep]
        np.testing.assert_allclose(call["sample"], latents.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(call["deep"], deep.numpy(), rtol=0, atol=1e-4)


def test_both_graphs_are_within_the_budget_and_reported(quantised: Quantised, keeping: Path, tiny_fused: Path) -> None:
    """The short graph's error is measured here again, on the short calls of the people held out."""
    folder, reports = quantised
    whole, short = reports["unet"], reports["unet_short"]
    record = json.loads((folder / "fp8.json").read_text())
    assert {row["name"] for row in record["unet_short"]["layers"]} < {row["name"] for row in record["layers"]}
    assert record["error"] == whole.error and record["unet_short"]["error"] == short.error
    assert (whole.calls, short.calls, short.held_out) == (4, 2, 2)
    for part, report in reports.items():
        model = onnx.load(folder / part / "model.onnx", load_external_data=False)
        weights = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT8E4M3FN]
        assert len([tensor for tensor in weights if tensor.dims]) == len(report.quantised) > 3
        assert {row.name for row in report.layers if row.why.startswith("kept by")} == {"conv_in", "conv_out"}
        assert [row.name for row in report.layers if row.why.startswith("error gate")]
    assert whole.error is not None and 0 < whole.error <= BUDGET

    bundle = load_bundle(tiny_fused)
    keys = [(pid, camera) for camera in ("cam1", "cam3", "cam7") for pid in ("0001", "0002", "0003")]
    held_out = sampling_inputs(bundle, short_graph(bundle), [keys[2], keys[6]], [1, 3], steps=4, guidance=2.0)
    errors = []
    for call in held_out:
        exact, found = (
            onnxruntime.InferenceSession(str(engine / "unet_short/model.onnx")).run(None, call)[0]
            for engine in (keeping, folder)
        )
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert short.error == pytest.approx(max(errors), rel=1e-2) and 0 < max(errors) <= 1.01 * BUDGET


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def two_steps(engine: Engine, deep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A whole call, the deep features that it leaves, and a short call on these or on `deep`."""
    embeddings, index = engine.prompts.encode(engine.encode_text, [("0001", "cam1"), ("0002", "cam3")])
    first, second = torch.randn(2, 2, *engine.latent_shape, generator=torch.Generator().manual_seed(5))
    conditioning, kept = engine.condition(embeddings), Kept(1)
    whole = engine.eps(first, 500, conditioning, index, kept)
    assert kept.deep is not None
    left = kept.deep.clone()
    kept.deep = left if deep is None else deep
    return whole, left, engine.eps(second, 450, conditioning, index, kept)


def sampled(engine: Engine, reuse: int) -> Tensor:
    """Pixels of three people, of whose steps one in `reuse` is whole."""
    keys = [("0001", "cam1"), ("0002", "cam3"), ("0003", "cam7")]
    embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
    conditioning, kept = engine.condition(embeddings), Kept(1)
    course = Course.of(Schedule.from_config(engine.scheduler_config, 6), 2.0, None, reuse)

    def eps_rows(latents: Tensor, timestep: int, rows: Tensor) -> Tensor:
        if timestep in course.whole:
            kept.deep = None
        return engine.eps(latents, timestep, conditioning, rows, kept)

    eps = guided(eps_rows, index[1:], int(index[0]), 2.0)
    latents = dpmpp_2m(eps, initial_noise([7, 8, 9], engine.latent_shape), course.schedule)
    return engine.decode(latents).double()


def test_calls_and_images_are_near_those_without_fp8(quantised: Quantised, keeping: Path) -> None:
    folder, _ = quantised
    plain, engine = load_engine(keeping, device="cpu"), load_engine(folder, device="cpu")
    assert engine.spec.precision == "fp8" and engine.spec.reuse_depth == 1
    assert engine.fingerprint != plain.fingerprint
    expected = two_steps(plain)
    # Other inputs than those held out: the same kind of error, not the same number.
    for found, exact in zip(two_steps(engine), expected, strict=True):
        assert 1e-3 < relative(found, exact) < 3 * BUDGET
    *_, own = two_steps(engine, expected[1])
    assert 1e-3 < relative(own, expected[2]) < 3 * BUDGET  # the short graph's layers, on exact deep features
    images = sampled(plain, 2)
    by_fp8, by_reuse = (float((x - images).square().mean().sqrt()) for x in (sampled(engine, 2), sampled(plain, 1)))
    assert 0.1 < by_fp8 < by_reuse  # of 255; reuse itself is an approximation that a plan has agreed to


def test_tensorrt_takes_both_graphs(quantised: Quantised, tmp_path: Path, double: Double) -> None:
    """By a stand-in for the module, which runs the graphs with onnxruntime."""
    folder, _ = quantised
    engine = opened(built(folder, tmp_path / "plans"), double)
    assert engine.spec.precision == "fp8" and "unet_short" in engine.spec.files
    for found, expected in zip(two_steps(engine), two_steps(load_engine(folder, device="cpu")), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_tensorrt_rtx_builds_the_short_graph_for_gpus_that_have_fp8(quantised: Quantised, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'dive-fast[rtx]'")
    rows = {"rows": (4,), "vae_rows": (2,), "text_rows": (2,), "prompts_max": 16}
    job = Build.of(quantised[0], BuildConfig("tensorrt-rtx", **rows, target="8.9", cache=tmp_path)).parts["unet_short"]
    module = trt.load(trt.flavour("tensorrt-rtx"))
    assert build_plan(trt.flavour("tensorrt-rtx"), module, job, quiet).data
    with pytest.raises(DiveError, match="fp8_e4m3"):
        build_plan(trt.flavour("tensorrt-rtx"), module, replace(job, target="8.6"), quiet)


def test_one_timing_table_decides_in_both_graphs(
    quantised: Quantised, keeping: Path, tiny_fused: Path, tmp_path: Path, run: Run
) -> None:
    names = {row.name for report in quantised[1].values() for row in report.layers}
    faster = {IN_BOTH, IN_THE_WHOLE}
    table = {name: {"plain_ms": 0.2, "fp8_ms": 0.1 if name in faster else 0.3} for name in names}
    times, out = tmp_path / "times.json", tmp_path / "fp8"
    arguments = ["quantize", "--engine", keeping, "--model", tiny_fused, "--out", out, "--times", times]
    arguments += ["--people", "2", "--budget", "10"]
    times.write_text(json.dumps({"layers": {**table, "nowhere": table[IN_BOTH]}}))
    code, _, error = run(*arguments, "--steps", "2")
    assert code == 2 and "names unknown 1 layer(s), first 'nowhere'" in error
    times.write_text(json.dumps({"layers": table}))
    code, _, error = run(*arguments, "--steps", "1")
    assert code == 2 and "1 steps with reuse 2 have no short call" in error and not out.exists()
    code, text, error = run(*arguments, "--steps", "3", "--reuse", "3", "--json")
    assert code == 0, error
    record = json.loads((out / "fp8.json").read_text())
    assert record == {key: value for key, value in json.loads(text.splitlines()[-1]).items() if key != "engine"}
    short = record["unet_short"]
    assert (short["calls"], short["held_out"]) == (2, 2)
    for report, chosen in ((record, faster), (short, {IN_BOTH})):
        assert {row["name"] for row in report["layers"] if row["quantised"]} == chosen
        others = {row["why"] for row in report["layers"] if not row["quantised"]}
        assert "timing gate: 0.3 ms in fp8, 0.2 ms without" in others
    assert f"unet_short: 1 of {len(short['layers'])} layers in FP8" in text
