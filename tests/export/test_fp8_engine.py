"""`dive-fast quantize` and `export --blocks`: the report files, and an engine with FP8 layers that runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dive_export.fp8_engine import quantize_engine
from dive_export.options import Fp8Config
from dive_export.tensorrt import BuildConfig
from dive_export.tensorrt_build import build_plan
from dive_export.tensorrt_job import Build
from dive_fast.engines import Engine, load_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.sampling.config import Sampling
from dive_fast.types import DiveError
from tests.support.cli import Run, last_json
from tests.support.engines import latents_of
from tests.support.tensorrt_double import Double
from tests.support.tensorrt_engines import built, opened, quiet

pytestmark = pytest.mark.slow

BUDGET = "0.04"


@pytest.fixture(scope="module")
def quantised(tiny_bank: Path, tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "engine"
    quantize_engine(tiny_bank, tiny_fused, out, Fp8Config(budget=float(BUDGET)), Sampling(steps=4), 4, progress=quiet)
    return out


def prediction(engine: Engine) -> Tensor:
    embeddings, index = engine.prompts.encode(engine.encode_text, [("0001", "cam1"), ("0002", "cam3")])
    latents = torch.randn(2, *engine.latent_shape, generator=torch.Generator().manual_seed(5))
    return engine.eps(latents, 500, engine.condition(embeddings), index)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def images(engine: Engine, steps: int) -> Tensor:
    """Pixels of three images in float64."""
    return engine.decode(latents_of(engine, seeds=[7, 8, 9], steps=steps, scale=2.0)).double()


def test_an_engine_is_quantised_within_its_budget(quantised: Path, tiny_bank: Path) -> None:
    report = json.loads((quantised / "fp8.json").read_text())
    assert 0 < report["error"] <= float(BUDGET)
    assert "fp8.json" not in json.loads((quantised / "engine.json").read_text())["sha256"]  # a report, as parity.json
    graph = (quantised / "unet/model.onnx").read_bytes()
    assert graph.count(b"DequantizeLinear") > len([layer for layer in report["layers"] if layer["quantised"]]) > 0
    plain, engine = load_engine(tiny_bank, device="cpu"), load_engine(quantised, device="cpu")
    assert engine.spec.precision == "fp8" and engine.fingerprint != plain.fingerprint
    # Other inputs than those held out: the same kind of error, not the same number.
    assert 1e-3 < relative(prediction(engine), prediction(plain)) < 3 * float(BUDGET)
    with pytest.raises(DiveError, match="precision fp32: .* fp8"):
        load_engine(quantised, precision="fp32")


def test_fp8_costs_images_less_than_half_the_steps_do(quantised: Path, tiny_bank: Path) -> None:
    plain, engine = load_engine(tiny_bank, device="cpu"), load_engine(quantised, device="cpu")
    expected = images(plain, 6)
    by_fp8, by_steps = (float((x - expected).square().mean().sqrt()) for x in (images(engine, 6), images(plain, 3)))
    assert 0.1 < by_fp8 < by_steps  # of 255


def test_tensorrt_takes_an_fp8_engine(quantised: Path, tmp_path: Path, double: Double) -> None:
    """By a stand-in for the module, which runs the graphs with onnxruntime."""
    engine = opened(built(quantised, tmp_path / "plans"), double)
    assert engine.spec.precision == "fp8"
    torch.testing.assert_close(prediction(engine), prediction(load_engine(quantised, device="cpu")), rtol=0, atol=2e-5)


def test_tensorrt_rtx_builds_the_unet_for_gpus_that_have_fp8(quantised: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'dive-fast[rtx]'")
    rows = {"rows": (4,), "vae_rows": (2,), "text_rows": (2,), "prompts_max": 16}
    job = Build.from_export(quantised, BuildConfig("tensorrt-rtx", **rows, target="8.9", cache=tmp_path)).parts["unet"]
    module = trt.load(trt.RTX)
    assert build_plan(trt.RTX, module, job, quiet).data
    with pytest.raises(DiveError, match="fp8_e4m3"):
        build_plan(trt.RTX, module, replace(job, target="8.6"), quiet)


def test_a_timing_table_decides_which_layers_are_tried(
    quantised: Path, tiny_bank: Path, tiny_fused: Path, tmp_path: Path, run: Run
) -> None:
    layers = json.loads((quantised / "fp8.json").read_text())["layers"]
    faster = "down_blocks.1.resnets.0.conv1"
    table = {row["name"]: {"plain_ms": 0.2, "fp8_ms": 0.1 if row["name"] == faster else 0.3} for row in layers}
    times, out = tmp_path / "times.json", tmp_path / "fp8"
    line = f"quantize --engine {tiny_bank} --model {tiny_fused} --out {out} --times {times}"
    arguments = f"{line} --images 2 --budget 10 --steps 2".split()
    times.write_text(json.dumps({"layers": {**table, "nowhere": table[faster]}}))
    code, _, error = run(*arguments)
    assert code == 2 and "'nowhere'" in error and not out.exists()
    times.write_text(json.dumps({"layers": table}))
    code, text, error = run(*arguments, "--json")
    assert code == 0, error
    report = json.loads((out / "fp8.json").read_text())
    assert report == {key: value for key, value in last_json(text).items() if key != "engine"}
    rows = report["layers"]
    assert [row["name"] for row in rows if row["quantised"]] == [faster]
    assert "timing gate: 0.3 ms in fp8, 0.2 ms without" in {row["why"] for row in rows}
    code, again, _ = run(*arguments, "--json")
    assert code == 0 and "finished by an earlier run" in again and last_json(again) == last_json(text)
    code, _, error = run(*arguments, "--percentile", "99")
    assert code == 2 and f"{out} holds another engine (config differ)" in error


def test_only_the_engines_own_model_may_make_the_inputs(
    tiny_engine: Path, tiny_base: Path, tmp_path: Path, run: Run
) -> None:
    line = f"quantize --engine {tiny_engine} --model {tiny_base} --out {tmp_path / 'out'} --images"
    code, _, error = run(*line.split(), 2)
    assert code == 2 and str(tiny_base) in error
    assert not list(tmp_path.iterdir())
    code, _, error = run(*line.split(), 3)
    assert code == 2 and "--images must be even" in error


def test_a_report_block_by_block_is_shown_and_kept_beside_the_engine(
    tiny_engine: Path, tiny_fused: Path, tmp_path: Path, run: Run
) -> None:
    engine = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    rows = json.loads((engine / "engine.json").read_text())["profile"]["rows_max"]
    code, text, error = run("export", "--model", tiny_fused, "--out", engine, "--rows-max", rows, "--blocks")
    assert code == 0, error
    blocks = {row["block"]: row for row in json.loads((engine / "blocks.json").read_text())}
    assert "mid_block.resnets.0" in blocks and "mid_block.resnets.0" in text
    assert 0 < blocks["output"]["rms"] < 1e-5  # float32 rounding through a small network
    load_engine(engine)  # the report is none of the files that make the engine
