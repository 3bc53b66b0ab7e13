"""The Triton kernels against float64: on a GPU, or under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dive_kernels.groupnorm_silu import groupnorm_silu
from dive_kernels.run import capability
from tests.support.groupnorm_cases import CASES, Case, exact
from tests.support.kernel_cases import (
    DEVICE,
    TYPE_IDS,
    TYPES,
    assert_as_good_as_torch,
    needs_a_gpu_or_the_interpreter,
    skip_what_cannot_be_interpreted,
)

needs_a_gpu_or_the_interpreter()
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("dtype", TYPES, ids=TYPE_IDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error_is_within_twice_plain_torchs(case: Case, dtype: torch.dtype) -> None:
    """Plain torch is the two-pass reference: torch's own GroupNorm is far worse on a CPU where the mean is not zero."""
    skip_what_cannot_be_interpreted(dtype)
    inputs = case.inputs(dtype, DEVICE)
    got = groupnorm_silu(**inputs, impl="fused")
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_torch(got, groupnorm_silu(**inputs, impl="reference"), exact(inputs))


def test_constant_input_has_no_variance() -> None:
    inputs = Case(40, 4, rows=3, size=(7, 5)).inputs(torch.float32, DEVICE)
    inputs["x"].fill_(3.0)
    got = groupnorm_silu(**inputs, impl="fused")
    expected = functional.silu(inputs["bias"])[:, None, None].expand_as(got)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    inputs = Case(48, 4, others=16, rows=3, size=(9, 7)).inputs(torch.float32, DEVICE)
    whole = groupnorm_silu(**inputs, impl="fused")
    alone = {**inputs, "x": inputs["x"][1:2], "skip": inputs["skip"][1:2]}
    torch.testing.assert_close(groupnorm_silu(**alone, impl="fused"), whole[1:2], rtol=0, atol=0)


def test_empty_batch() -> None:
    inputs = Case(8, 4, rows=0).inputs(torch.float32, DEVICE)
    for impl in ("fused", "reference", "eager"):
        assert groupnorm_silu(**inputs, impl=impl).shape == (0, 8, 8, 4)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a second device")
def test_tensors_in_two_places_are_refused() -> None:
    inputs = Case(8, 4).inputs(torch.float32, DEVICE)
    with pytest.raises(ValueError, match="bias is on cpu, x on cuda"):
        groupnorm_silu(**{**inputs, "bias": inputs["bias"].cpu()}, impl="eager")


def test_auto_takes_what_the_table_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernels where a measurement has them first, torch's own for another key."""
    from dive_kernels.groupnorm_silu import api

    inputs = Case(8, 4, shifts=1).inputs(torch.float32, DEVICE)
    key = {"channels": 8, "skip": 0, "shift": 1, "silu": 1}
    entry = {"op": "groupnorm_silu", "capability": capability(inputs["x"].device), "dtype": "float32", "key": key}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"entries": [{**entry, "work": 256, "ms": {"fused": 1.0, "eager": 2.0}}]}))
    monkeypatch.setenv("DIVE_KERNELS_TABLE", str(table))
    planned = []
    plan = api.plan
    monkeypatch.setattr(api, "plan", lambda *given: planned.append(given) or plan(*given))
    groupnorm_silu(**inputs)
    assert len(planned) == 1
    groupnorm_silu(**{**inputs, "silu": False})
    assert len(planned) == 1
