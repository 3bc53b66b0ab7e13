"""Ahead-of-time compilation: real cubins where Triton is installed, one clear sentence where nothing can be compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dive_kernels import aot


def test_names_are_distinct_and_cover_every_architecture() -> None:
    names = [variant.name for variant in aot.variants(tuple(aot.PTX_VERSIONS))]
    assert len(set(names)) == len(names) == 6 * len(aot.PTX_VERSIONS)
    assert "solver_step-fp16-order2-sm90" in names


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda _: None)
    assert aot.main(["--check"]) == 1
    assert "triton is not installed; pip install 'dive-fast[kernels]'" in capsys.readouterr().err


def test_a_cubin_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed (extra: kernels)")
    monkeypatch.setattr(aot, "variants", lambda _: [aot.Variant("fp16", True, 90)])
    assert aot.main([str(tmp_path), "--arch", "90"]) == 0
    table = json.loads((tmp_path / "kernels.json").read_text())
    assert list(table) == ["solver_step-fp16-order2-sm90"]
    launch = table["solver_step-fp16-order2-sm90"]
    assert launch["function"] == "solver_step_kernel"
    assert launch["arguments"]["eps_cond_ptr"] == "*fp16"
    assert launch["arguments"]["x_ptr"] == "*fp32"
    assert (tmp_path / "solver_step-fp16-order2-sm90.cubin").read_bytes()[:4] == b"\x7fELF"
