"""The table as a function of facts: what can run, and every reason and remedy otherwise; and that facts are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dive_fast.environment import packages as probing
from dive_fast.environment.doctor import Row, rows, table
from dive_fast.environment.packages import ASSETS, PACKAGES, CompiledKernels, Machine, Package, known_packages

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
    packages={name: Package("1.0") for name in known_packages() if name != "onnxruntime"},
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


def test_a_cpu_machine() -> None:
    assert engines(CPU) == {
        "torch-cpu": "ok",
        "torch-cuda": "no",
        "torch-compiled-cpu": "ok",
        "torch-compiled-cuda": "no",
        "onnxruntime-cpu": "ok",
        "onnxruntime-cuda": "no",
        "onnxruntime-tensorrt": "no",
        "tensorrt": "no",
        "tensorrt-rtx": "no",
        "tensorrt-rtx-build": "no",
        "triton-kernels": "no",
    }
    assert by_name(CPU)["torch-cuda"].value == f"no GPU (see machine); {CPU.torch_problem}"
    assert by_name(CPU)["gpu"] == Row("machine", "gpu", "no", "no NVIDIA driver is loaded")
    kernels = by_name(CPU)["triton-kernels"].value
    assert "pip install 'dive-fast[gpu]'" in kernels
    assert "no GPU" in kernels


def test_a_gpu_machine_runs_everything() -> None:
    assert set(engines(GPU).values()) == {"ok"}
    assert by_name(GPU)["gpu"].value == "NVIDIA H200 (driver for CUDA 13.0)"


def test_a_missing_package_names_its_extra() -> None:
    bare = replace(CPU, packages={}, torch_problem=None, refusals={})
    assert set(engines(bare).values()) == {"no"}
    found = by_name(bare)
    assert found["torch"].remedy == "pip install 'dive-fast[torch]'"
    assert found["numpy"].remedy == "pip install dive-fast"
    assert found["ray"].remedy == "pip install 'dive-fast[ray]'"
    assert found["onnxruntime-cpu"].value == "onnxruntime: not installed, pip install 'dive-fast[cpu]'"


def test_a_broken_install_is_shown_and_takes_its_engines_along() -> None:
    packages = {**CPU.packages, "diffusers": Package("1.0", "RuntimeError: operator torchvision::nms does not exist")}
    found = by_name(replace(CPU, packages=packages))
    assert found["diffusers"].state == "broken"
    assert "operator torchvision::nms does not exist" in found["diffusers"].value
    assert found["torch-cpu"].state == "no"
    assert "diffusers: import fails (RuntimeError" in found["torch-cpu"].value


def test_both_onnxruntimes_are_a_conflict() -> None:
    packages = {**GPU.packages, "onnxruntime": Package("1.0")}
    conflict = by_name(replace(GPU, packages=packages))["onnxruntime twice"]
    assert conflict.state == "broken"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in conflict.remedy


def test_what_a_backend_refuses_is_shown() -> None:
    refusals = {"onnxruntime-cuda": ("this onnxruntime has no CUDAExecutionProvider",)}
    found = by_name(replace(GPU, refusals=refusals))
    assert found["onnxruntime-cpu"].state == found["onnxruntime-tensorrt"].state == "ok"
    assert found["onnxruntime-cuda"] == Row("engines", "onnxruntime-cuda", "no", *refusals["onnxruntime-cuda"])


def test_onnxruntime_without_providers_of_gpus_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = probing._refusals({"onnxruntime": Package("1.0"), "torch": Package("2.0")})
    assert found["onnxruntime-cpu"] == ()
    for name, provider in (("onnxruntime-cuda", "CUDA"), ("onnxruntime-tensorrt", "Tensorrt")):
        assert f"{provider}ExecutionProvider" in found[name][0] and len(found[name]) == 1


def test_rtx_builds_without_a_gpu_and_runs_with_one_only() -> None:
    found = by_name(replace(CPU, packages={**CPU.packages, "tensorrt-rtx": Package("1.7")}))
    assert found["tensorrt-rtx-build"].state == "ok"
    assert found["tensorrt-rtx"].state == "no" and "no GPU" in found["tensorrt-rtx"].value
    assert "pip install 'dive-fast[trt]'" in found["tensorrt"].value


def test_help_names_the_backends_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime", "torch", "tensorrt", "tensorrt_rtx"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(probing, "DRIVER_FILES", (Path("/no/driver"),))
    assert probing.backends_here() == ["onnxruntime"]  # torch alone does not open a diffusers folder
    monkeypatch.setattr(probing, "DRIVER_FILES", (Path("/no/driver"), Path(__file__)))
    assert probing.backends_here() == ["onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"]


def test_absent_assets() -> None:
    found = by_name(replace(CPU, assets=dict.fromkeys(ASSETS)))
    assert {found[name].state for name in ASSETS} == {"no"}
    assert by_name(CPU)["pocket adapter"].value == "12.0 MB"


def test_kernels_ahead_of_time_are_one_row() -> None:
    name, skipped = "kernels ahead of time", ("Triton kernels (DIVE_KERNELS_AOT was off)",)
    assert by_name(CPU)[name].state == "no" and by_name(CPU)[name].remedy == "make kernels compiles them"
    built = CompiledKernels("cubins", count=36, architectures=(80, 90), skipped=skipped)
    assert by_name(replace(CPU, kernels=built))[name] == Row(
        "assets", name, "ok", "36 for sm_80, sm_90; skipped: Triton kernels (DIVE_KERNELS_AOT was off)"
    )
    nothing = by_name(replace(CPU, kernels=CompiledKernels("cubins", skipped=skipped)))[name]
    assert (nothing.state, nothing.value) == ("no", "none; skipped: Triton kernels (DIVE_KERNELS_AOT was off)")
    stale = by_name(replace(CPU, kernels=replace(built, stale=2)))[name]
    assert stale.state == "broken" and "2 have another source than this version" in stale.value
    broken = by_name(replace(CPU, kernels=CompiledKernels("cubins", error="cubins: there is no kernels.json")))[name]
    assert (broken.state, broken.value) == ("broken", "cubins: there is no kernels.json")


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


def test_the_table_has_every_row_under_its_heading() -> None:
    text = table(rows(CPU))
    assert [line for line in text.splitlines() if not line.startswith(" ")] == [
        "machine",
        "packages",
        "engines",
        "assets",
    ]
    assert len(text.splitlines()) == len(rows(CPU)) + 4
    assert "  no      ray                   not installed; pip install 'dive-fast[ray]'" in text


def test_an_import_error_becomes_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_thing.py").write_text("raise OSError('libnvinfer.so.10: cannot open\\nmore lines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = probing._package("pytest", "broken_thing")
    assert package.error == "OSError: libnvinfer.so.10: cannot open"


class FakeDriver(SimpleNamespace):
    """cuda.bindings.driver with two devices, or with a failing first call."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)

    def __init__(self, failure: object = 0) -> None:
        super().__init__(
            cuInit=lambda _: (failure,),
            cuDriverGetVersion=lambda: (0, 13010),
            cuDeviceGetCount=lambda: (0, 2),
            cuDeviceGet=lambda i: (0, i),
            cuDeviceGetName=lambda size, device: (0, f"GPU {device}".encode().ljust(size, b"\0")),
        )


def test_gpus_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"cuda-python": Package("13")}
    monkeypatch.setattr(probing.importlib, "import_module", lambda _: FakeDriver())
    assert probing._gpus(installed) == (("GPU 0", "GPU 1"), "13.1", None)
    failure = SimpleNamespace(name="CUDA_ERROR_NO_DEVICE")
    monkeypatch.setattr(probing.importlib, "import_module", lambda _: FakeDriver(failure))
    assert probing._gpus(installed) == ((), None, "cuInit returned CUDA_ERROR_NO_DEVICE")


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine of the machine that runs the tests, without importing the heavy packages again."""
    monkeypatch.setattr(probing, "PACKAGES", {name: PACKAGES[name] for name in ("numpy", "pillow", "ray")})
    found = probing.collect(tmp_path)
    assert found.cores >= 1
    assert found.disk[1] > 0
    assert found.packages["numpy"].error is None
    assert set(found.assets) == set(ASSETS)
