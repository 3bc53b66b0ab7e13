"""`dive-fast export` by recipe, and the rows that `dive-fast synth` takes of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dive_export import GraphOptions
from dive_fast.synth import save_plan
from dive_fast.types import EngineSpec, Profile
from tests.support.cli import Run
from tests.support.fake_engine import FakeEngine, plan_of

GPU = {"options": GraphOptions(variant="kv-cache", precision="fp16"), "rows_max": 144, "rows_usual": 72}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("", {"options": GraphOptions(), "rows_max": 64, "rows_usual": 32}),
        ("--recipe gpu", GPU),
        ("--recipe gpu --rows-max 72", {**GPU, "rows_max": 72}),
        ("--recipe gpu --precision bf16", {**GPU, "options": GraphOptions(variant="kv-cache", precision="bf16")}),
    ],
)
def test_export_starts_from_a_recipe(
    options: str, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
) -> None:
    """On a GPU: the K/V cache, fp16, 72 rows, which are two of DiVE's calls of 18 images with guidance, and at most 144."""
    seen: dict[str, Any] = {}

    def export(model: Path, out: Path, rows_max: int, check: bool, **given: Any) -> EngineSpec:
        seen.update(rows_max=rows_max, **given)
        return EngineSpec("onnxruntime", "fp16", Profile(1, 1, rows_max, 64, 32), "m", {}, {})

    monkeypatch.setattr("dive_export.artifact.export_engine", export)
    code, _, error = run(f"export --model m --out {tmp_path}/e {options}")
    assert code == 0, error
    assert seen == {**wanted, "size": None}  # the model's own
    assert GPU["rows_usual"] == 2 * 18 * 2 and GPU["rows_max"] == 4 * 18 * 2


@pytest.mark.parametrize(("options", "rows"), [("", 8), ("--rows 4", 4)])
def test_synth_takes_the_rows_that_the_engine_is_made_for(
    options: str, rows: int, monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
) -> None:
    engine = FakeEngine()
    assert engine.spec.profile.rows_opt == 8
    monkeypatch.setattr("dive_fast.engines.load_engine", lambda **_: engine)
    save_plan(plan_of(), tmp_path / "plan.json")
    code, _, error = run(f"synth --plan {tmp_path}/plan.json --engine e --out {tmp_path}/pairs {options}")
    assert code == 0, error
    assert max(engine.eps_rows) == rows
