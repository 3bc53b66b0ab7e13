"""What the thin module says of the two TensorRT packages, of this machine and of GPUs."""

from __future__ import annotations

import importlib
import re
from types import SimpleNamespace

import pytest

from dive_fast.engines import tensorrt_api as trt
from dive_fast.types import DiveError

H200 = trt.Gpu("NVIDIA H200", "9.0")


def test_a_package_that_is_not_there_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "version", lambda kind: None)
    assert trt.reasons(trt.TENSORRT) == ["tensorrt is not installed: pip install 'dive-fast[trt]'"]
    with pytest.raises(DiveError, match=r"tensorrt-rtx .*dive-fast\[rtx\]"):
        trt.load(trt.RTX)


@pytest.mark.parametrize(("found", "fits"), [("10.9.0", False), ("11.0.9", False), ("11.1", True), ("12.0.0", False)])
def test_versions_compare_by_number(monkeypatch: pytest.MonkeyPatch, found: str, fits: bool) -> None:
    monkeypatch.setattr(trt, "version", lambda kind: found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: object())
    message = f"tensorrt {found} is installed, this version of dive-fast knows >= 11.1, < 12"
    assert trt.reasons(trt.TENSORRT) == ([] if fits else [message])


def test_a_package_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libnvinfer.so.11: cannot open\nshared object file")

    monkeypatch.setattr(trt, "version", lambda kind: "11.4.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    (reason,) = trt.reasons(trt.TENSORRT)
    assert "does not import (OSError: libnvinfer.so.11: cannot open shared object file)" in reason


@pytest.mark.parametrize(
    ("kind", "label", "gpu", "reason"),
    [
        (trt.TENSORRT, H200.label, H200, ""),
        (trt.TENSORRT, H200.label, trt.Gpu("NVIDIA H100", "9.0"), "built for NVIDIA H200 .*here is NVIDIA H100"),
        (trt.TENSORRT, "compute capability 9.0", trt.Gpu("NVIDIA H100", "9.0"), ""),
        (trt.TENSORRT, "compute capability 8.9", H200, "built for compute capability 8.9, here is NVIDIA H200"),
        (trt.TENSORRT, trt.ANY_AMPERE, trt.Gpu("NVIDIA B200", "10.0"), ""),
        (trt.TENSORRT, trt.ANY_AMPERE, trt.Gpu("Tesla T4", "7.5"), "8.0 or later, here is Tesla T4"),
        (trt.RTX, trt.ANY_AMPERE, trt.Gpu("RTX 4090", "8.9"), ""),
        (trt.RTX, trt.ANY_AMPERE, H200, "no code for compute capability 9.0 of the NVIDIA H200"),
        (trt.TENSORRT, "GPU 7", H200, "names the GPU 'GPU 7', which is none"),
        (trt.TENSORRT, None, H200, "names the GPU None"),
    ],
)
def test_a_plan_fits_the_gpu_it_was_built_for(kind: trt.Flavour, label: str, gpu: trt.Gpu, reason: str) -> None:
    found = "; ".join(trt.misfits(kind, label, gpu))
    assert re.search(reason, found) if reason else not found


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(DiveError, match="type FP4 has no torch type"):
        trt.torch_dtype(SimpleNamespace(name="FP4"))


def test_the_types_have_the_names_that_torch_and_the_package_know() -> None:
    import torch

    assert all(isinstance(getattr(torch, name), torch.dtype) for name in trt.DTYPES.values())
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert all(hasattr(rtx.DataType, name) for name in trt.DTYPES)
    known = {f"SM{capability.replace('.', '')}" for capability in trt.RTX.capabilities}
    assert known == {name for name in rtx.ComputeCapability.__members__ if name.startswith("SM")}
