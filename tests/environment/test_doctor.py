"""The table as a function of facts: what can run, and every reason and remedy otherwise; and that facts are found."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dive_fast.engines.registry import BACKENDS, Gpu, driver_gpus
from dive_fast.environment import packages as probing
from dive_fast.environment.doctor import Row, engine_names, rows, table
from dive_fast.environment.packages import ASSETS, PACKAGES, CompiledKernels, Machine, Package
from dive_fast.environment.support import NEVER, RTX_BUILD, SUPPORT, TRITON, describe, markdown

ROOT = Path(__file__).parents[2]
CPU_PACKAGES = ("numpy", "pillow", "torch", "diffusers", "transformers", "safetensors", "peft", "onnx", "onnxruntime")
CPU = Machine(
    python="3.11.7 (/usr/bin/python)",
    system="Linux",
    cores=2,
    memory=(8 << 30, 4 << 30),
    disk=("/work", 50 << 30),
    packages={name: Package("1.0") for name in CPU_PACKAGES},
    gpu_problem="no NVIDIA driver is loaded",
    torch_problem="torch 2.13.0+cpu is built without CUDA, install a build for this machine's driver",
    refusals={
        "onnxruntime-cuda": ("this onnxruntime has no CUDAExecutionProvider",),
        "onnxruntime-tensorrt": ("this onnxruntime has no TensorrtExecutionProvider",),
    },
    assets=dict.fromkeys(ASSETS, 12_000_000),
)
GPU = replace(
    CPU,
    packages={name: Package("1.0") for name in PACKAGES if name != "onnxruntime"},
    gpus=("NVIDIA H200",),
    driver="13.0",
    gpu_problem=None,
    torch_problem=None,
    refusals={},
)


def by_name(facts: Machine) -> dict[str, Row]:
    return {row.name: row for row in rows(facts)}


def engines(facts: Machine) -> dict[str, str]:
    return {row.name: row.state for row in rows(facts) if row.area == "engines"}


def test_engines_and_assets_of_machines() -> None:
    able = {name for name, state in engines(CPU).items() if state == "ok"}
    assert able == {"torch-cpu", "torch-compiled-cpu", "onnxruntime-cpu"} and set(engines(CPU)) == set(engine_names())
    assert set(engines(GPU).values()) == {"ok"} and set(engines(BARE).values()) == {"no"}
    found = by_name(replace(CPU, assets=dict.fromkeys(ASSETS)))
    assert {found[name].state for name in ASSETS} == {"no"}


def with_package(machine: Machine, name: str, package: Package) -> Machine:
    return replace(machine, packages={**machine.packages, name: package})


BARE = replace(CPU, packages={}, torch_problem=None, refusals={})
BROKEN = with_package(CPU, "diffusers", Package("1.0", "RuntimeError: operator torchvision::nms does not exist"))
RTX = with_package(CPU, "tensorrt-rtx", Package("1.7"))
BUILT = CompiledKernels("cubins", count=36, architectures=(80, 90), skipped=("Triton kernels (off)",))
NO_FILE = CompiledKernels("cubins", error="cubins: there is no kernels.json")
AHEAD = "kernels ahead of time"


@pytest.mark.parametrize(
    ("machine", "name", "state", "text"),
    [
        (CPU, "torch-cuda", "no", f"no GPU (see machine); {CPU.torch_problem}"),
        (CPU, "gpu", "no", "no NVIDIA driver is loaded"),
        (CPU, "triton-kernels", "no", "pip install 'dive-fast[gpu]'"),
        (CPU, "triton-kernels", "no", "no GPU"),
        (CPU, "pocket adapter", "ok", "12.0 MB"),
        (GPU, "gpu", "ok", "NVIDIA H200 (driver for CUDA 13.0)"),
        (BARE, "torch", "no", "pip install 'dive-fast[torch]'"),
        (BARE, "numpy", "no", "pip install dive-fast"),
        (BARE, "ray", "no", "pip install 'dive-fast[ray]'"),
        (BARE, "onnxruntime-cpu", "no", "onnxruntime: not installed; pip install 'dive-fast[cpu]'"),
        (BROKEN, "diffusers", "broken", "torchvision::nms"),
        (BROKEN, "torch-cpu", "no", "diffusers: import fails (RuntimeError"),
        (
            with_package(GPU, "onnxruntime", Package("1.0")),
            "onnxruntime twice",
            "broken",
            "pip uninstall -y onnxruntime onnxruntime-gpu",
        ),
        (RTX, "tensorrt-rtx-build", "ok", ""),
        (RTX, "tensorrt-rtx", "no", "no GPU"),
        (RTX, "tensorrt", "no", "pip install 'dive-fast[trt]'"),
        (CPU, AHEAD, "no", "none, Triton and NVRTC compile at first use"),
        (replace(CPU, kernels=BUILT), AHEAD, "ok", "36 for sm_80, sm_90; skipped: Triton kernels (off)"),
        (replace(CPU, kernels=replace(BUILT, count=0)), AHEAD, "no", "none; skipped: Triton kernels (off)"),
        (replace(CPU, kernels=replace(BUILT, stale=2)), AHEAD, "broken", "2 have another source than this version: 36"),
        (replace(CPU, kernels=NO_FILE), AHEAD, "broken", "there is no kernels.json"),
    ],
)
def test_rows_of_the_table(machine: Machine, name: str, state: str, text: str) -> None:
    row = by_name(machine)[name]
    assert row.state == state and text in f"{row.value}; {row.remedy}"


def test_onnxruntime_without_providers_of_gpus_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = probing._refusals({"onnxruntime": Package("1.0"), "torch": Package("2.0")})
    assert found["onnxruntime-cpu"] == ()
    for name, provider in (("onnxruntime-cuda", "CUDA"), ("onnxruntime-tensorrt", "Tensorrt")):
        assert f"{provider}ExecutionProvider" in found[name][0] and len(found[name]) == 1


def test_help_names_the_backends_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime", "torch", "tensorrt", "tensorrt_rtx"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(probing, "DRIVER_FILES", (Path("/no/driver"),))
    assert probing.backends_here() == ["onnxruntime"]  # torch alone does not open a diffusers folder
    monkeypatch.setattr(probing, "DRIVER_FILES", (Path("/no/driver"), Path(__file__)))
    assert probing.backends_here() == ["onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"]


def test_kernels_ahead_of_time_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVE_KERNELS_CUBINS", "")
    assert probing._kernels() is None
    monkeypatch.setenv("DIVE_KERNELS_CUBINS", str(tmp_path))
    missing = probing._kernels()
    assert missing is not None and missing.error is not None and "there is no kernels.json" in missing.error
    skipped = '[{"what": "CUDA C++ kernels", "why": "no nvcc found"}]'
    (tmp_path / "kernels.json").write_text(f'{{"format": 1, "kernels": [], "skipped": {skipped}}}')
    found = CompiledKernels(str(tmp_path), skipped=("CUDA C++ kernels (no nvcc found)",))
    assert probing._kernels() == found


def test_every_package_that_the_product_imports_has_a_row() -> None:
    """By their names on import; a package's own requirements, like transformers' tokenizers, come with it."""
    imported = {
        name.split(".")[0]
        for package in ("dive_fast", "kernels/dive_kernels", "export/dive_export")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in imported_names(node)
    }
    known = {wanted.module.split(".")[0] for wanted in PACKAGES.values()}
    come_along = {"tokenizers", "markupsafe", "ml_dtypes"}
    assert (
        imported - known - come_along - sys.stdlib_module_names - {"dive_fast", "dive_kernels", "dive_export"} == set()
    )


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_what_has_run_is_written_down_once() -> None:
    """A cell for each engine and each precision that its backend takes, but for those that it refuses on a CPU."""
    refused = {("torch-cpu", "fp16"), ("torch-compiled-cpu", "fp16"), ("torch-compiled-cpu", "fp8")}
    wanted = {
        (row.on(device), precision)
        for row in BACKENDS.values()
        for device in row.devices
        for precision in row.precisions
    }
    cells = {(engine, precision) for engine, row in SUPPORT.items() for precision in row}
    assert wanted - refused == {cell for cell in cells if cell[0] not in (RTX_BUILD, TRITON)}
    assert set(engine_names()) == set(SUPPORT)
    for engine, row in SUPPORT.items():
        for tried in row.values():
            assert bool(tried.day) == bool(tried.commit) == (tried != NEVER), engine
    assert describe("torch-cpu") in by_name(CPU)["torch-cpu"].tried
    assert "| bf16 |" in markdown() and markdown() in (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


def test_every_row_that_lacks_a_package_has_a_remedy() -> None:
    lacking = [row for row in rows(BARE) if "not installed" in row.value]
    assert {row.area for row in lacking} == {"packages", "engines"}
    assert all(row.remedy.startswith("pip install") for row in lacking)


def test_the_table_has_every_row_under_its_heading() -> None:
    text = table(rows(CPU))
    headings = [line for line in text.splitlines() if not line.startswith(" ")]
    assert headings == ["machine", "packages", "engines", "assets"]
    assert len(text.splitlines()) == len(rows(CPU)) + 4
    assert "  no      ray                   not installed; pip install 'dive-fast[ray]'" in text


def test_an_import_error_becomes_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_thing.py").write_text("raise OSError('libnvinfer.so.10: cannot open\\nmore lines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = probing._package("pytest", "broken_thing")
    assert package.error == "OSError: libnvinfer.so.10: cannot open"


def test_gpus_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """By libcuda's own functions, which write numbers to where a pointer points."""

    def answer(pointer: Any, *given: int) -> None:
        pointer._obj.value = {(): 2, (0,): 7, (1,): 8, (75, 7): 9, (76, 7): 0, (75, 8): 8, (76, 8): 9}[given]

    def name(buffer: Any, size: int, device: int) -> None:
        buffer.value = f"GPU {device}".encode()

    library = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDriverGetVersion=lambda pointer: setattr(pointer._obj, "value", 13010),
        **dict.fromkeys(("cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute"), answer),
        cuDeviceGetName=name,
    )
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    assert driver_gpus() == ([Gpu("GPU 7", "9.0"), Gpu("GPU 8", "8.9")], "13.1", "")
    monkeypatch.setattr(library, "cuInit", lambda flags: 100)
    assert driver_gpus() == ([], None, "the NVIDIA driver offers no GPU (CUDA error 100)")


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine of the machine that runs the tests, without importing the heavy packages again."""
    monkeypatch.setattr(probing, "PACKAGES", {name: PACKAGES[name] for name in ("numpy", "pillow", "ray")})
    found = probing.collect(tmp_path)
    assert found.cores >= 1 and found.disk[1] > 0 and found.packages["numpy"].error is None
    assert set(found.assets) == set(ASSETS)
