"""`dive-fast quantize` and `export --blocks`: the report files, and an engine with FP8 layers that runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dive_fast.engines import load_engine
from dive_fast.types import DiveError
from tests.support.cli import Run

BUDGET = "0.04"


def test_an_engine_is_quantised_within_its_budget_and_runs(
    tiny_engine: Path, tiny_fused: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "fp8"
    arguments = ["quantize", "--engine", tiny_engine, "--model", tiny_fused, "--out", out, "--budget", BUDGET]
    code, text, error = run(*arguments, "--people", "4", "--steps", "3", "--json")
    assert code == 0, error
    report = json.loads((out / "fp8.json").read_text())
    assert 0 < report["error"] <= float(BUDGET) and report == {
        name: value for name, value in json.loads(text.splitlines()[-1]).items() if name != "engine"
    }
    assert "fp8.json" not in json.loads((out / "engine.json").read_text())["sha256"]  # a report, as parity.json
    graph = (out / "unet/model.onnx").read_bytes()
    assert graph.count(b"DequantizeLinear") > len([layer for layer in report["layers"] if layer["quantised"]]) > 0
    plain, quantised = load_engine(tiny_engine), load_engine(out)
    assert quantised.spec.precision == "fp8" and quantised.fingerprint != plain.fingerprint
    keys = [("0001", "cam1"), ("0002", "cam3")]
    found = []
    for engine in (plain, quantised):
        embeddings, index = engine.prompts.encode(engine.encode_text, keys)
        latents = torch.randn(2, *engine.latent_shape, generator=torch.Generator().manual_seed(5))
        found.append(engine.eps(latents, 500, engine.condition(embeddings), index))
    # Other inputs than those held out: the same kind of error, not the same number.
    apart = float((found[1] - found[0]).square().mean().sqrt() / found[0].square().mean().sqrt())
    assert 1e-4 < apart < 3 * float(BUDGET)
    code, _, error = run(*arguments)
    assert code == 2 and f"{out} exists" in error
    with pytest.raises(DiveError, match="precision fp32: the engine is fp8"):
        load_engine(out, precision="fp32")


def test_only_the_engines_own_model_may_make_the_inputs(
    tiny_engine: Path, tiny_base: Path, tmp_path: Path, run: Run
) -> None:
    code, _, error = run(
        "quantize", "--engine", tiny_engine, "--model", tiny_base, "--out", tmp_path / "out", "--people", "2"
    )
    assert code == 2 and "give the fused model that it was exported from" in error
    assert not list(tmp_path.iterdir())
    code, _, error = run(
        "quantize", "--engine", tiny_engine, "--model", tiny_base, "--out", tmp_path / "out", "--people", "3"
    )
    assert code == 2 and "--people must be even" in error


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
