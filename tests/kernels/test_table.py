"""The table of measurements that `auto` reads: what counts as measured, and that a broken table is not taken for none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dive_kernels import table
from tests.support.refusals import refused


def entry(work: int, ms: dict[str, float], **changes: Any) -> dict[str, Any]:
    key = {"head_dim": 40}
    return {"op": "attention", "capability": 90, "dtype": "float16", "key": key, "work": work, "ms": ms, **changes}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of one's own, in place of the shipped one."""
    path = tmp_path / "table.json"
    monkeypatch.setenv(table.OWN, str(path))
    return path


def test_the_nearest_size_decides(own: Path) -> None:
    small, large = {"fused": 1.0, "cudnn": 2.0}, {"fused": 9.0, "cudnn": 8.0}
    own.write_text(json.dumps({"entries": [entry(1000, small), entry(100000, large)]}))
    assert table.measured("attention", 90, torch.float16, {"head_dim": 40}, 5000) == small
    assert table.measured("attention", 90, torch.float16, {"head_dim": 40}, 20000) == large


@pytest.mark.parametrize(
    "asked",
    [
        ("attention", 80, torch.float16, {"head_dim": 40}),
        ("attention", 90, torch.bfloat16, {"head_dim": 40}),
        ("attention", 90, torch.float16, {"head_dim": 80}),
        ("cross_attention", 90, torch.float16, {"head_dim": 40}),
    ],
)
def test_another_gpu_type_or_key_is_not_measured(own: Path, asked: tuple[Any, ...]) -> None:
    own.write_text(json.dumps({"entries": [entry(1000, {"fused": 1.0})]}))
    assert table.measured(*asked, 1000) is None


def test_the_fastest_of_what_is_offered() -> None:
    times = {"fused": 2.0, "cudnn": 3.0, "inductor": 1.0}
    assert table.fastest(times, ("fused", "cudnn"), "sdpa") == "fused"
    assert table.fastest(times, ("fused", "cudnn", "inductor"), "sdpa") == "inductor"
    assert table.fastest(times, ("flash",), "sdpa") == table.fastest(None, ("fused",), "sdpa") == "sdpa"


def test_a_measurement_comes_before_what_is_taken_unmeasured(own: Path) -> None:
    """The ops' own auto, on a GPU of compute capability 9.0."""
    from dive_kernels.geglu import api

    x, weight = torch.zeros(2, 3, dtype=torch.float16), torch.zeros(8, 3, dtype=torch.float16)
    own.write_text('{"entries": []}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "capability", lambda device: 90)
        assert api._fastest(x, weight, ["fused"]) == "fused" and api._fastest(x, weight, []) == "eager"
        assert api._fastest(x.float(), weight.float(), ["fused"]) == "eager"
        times = {"fused": 2.0, "eager": 1.0}
        own.write_text(json.dumps({"entries": [entry(8, times, op="geglu", key={"inner": 3, "outer": 4})]}))
        table._entries.cache_clear()
        assert api._fastest(x, weight, ["fused"]) == "eager"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"entries": [{"op": "attention"}]}',
        json.dumps({"entries": [entry(0, {"fused": 1.0})]}),
        json.dumps({"entries": [entry(10, {"fused": -1.0})]}),
        json.dumps({"entries": [entry(10**400, {"fused": 1.0})]}),
        "[" * 100_000,
    ],
    ids=["empty", "list", "fields", "no work", "negative time", "huge work", "deep"],
)
def test_a_broken_table_is_named(own: Path, text: str) -> None:
    own.write_text(text)
    asked = ("attention", 90, torch.float16, {"head_dim": 40}, 1)
    refused(r"table\.json: .* python -m benchmarks\.kernels", table.measured, *asked, error=ValueError)


def test_the_shipped_table_is_whole() -> None:
    assert json.loads(table.SHIPPED.read_text())["entries"] == table._entries(str(table.SHIPPED))
