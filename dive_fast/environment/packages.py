"""Finds what this machine has: Python, memory, GPUs, packages and whether they import, shipped assets."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dive_fast.engines.registry import BACKENDS, TORCH, driver_gpus, installed, resolve

ASSETS = {
    "pocket base model": "pocket-base/model_index.json",
    "pocket adapter": "pocket-adapter/adapter.json",
    "pocket encoder": "pocket-encoder/encoder.json",
}


@dataclass(frozen=True)
class Wanted:
    """A package that some part uses: the module to import, and the extra that installs it."""

    module: str
    extra: str | None  # None: a core dependency


PACKAGES = {
    "numpy": Wanted("numpy", None),
    "pillow": Wanted("PIL.Image", None),
    "jinja2": Wanted("jinja2", None),
    "tqdm": Wanted("tqdm", None),
    **{name: Wanted(module, "torch") for name, module in TORCH.items()},
    "safetensors": Wanted("safetensors", "torch"),
    "peft": Wanted("peft", "train"),
    "accelerate": Wanted("accelerate", "train"),
    "tensorboard": Wanted("tensorboard", "tensorboard"),
    "onnx": Wanted("onnx", "export"),
    "onnxscript": Wanted("onnxscript", "export"),
    "onnxruntime": Wanted("onnxruntime", "cpu"),
    "onnxruntime-gpu": Wanted("onnxruntime", "gpu"),
    "openvino": Wanted("openvino", "openvino"),
    "triton": Wanted("triton", "gpu"),
    "nvidia-cudnn-frontend": Wanted("cudnn", "fp8"),
    "cuda-python": Wanted("cuda.bindings.driver", "gpu"),
    "matplotlib": Wanted("matplotlib", "report"),
    "tensorrt": Wanted("tensorrt", "trt"),
    "tensorrt-rtx": Wanted("tensorrt_rtx", "rtx"),
    "ray": Wanted("ray", "ray"),
    "fsspec": Wanted("fsspec", "remote"),
    "pyarrow": Wanted("pyarrow", "parquet"),
    "scipy": Wanted("scipy", "reid"),
    "scikit-learn": Wanted("sklearn", "reid"),
}


# Present with a loaded NVIDIA driver, on Linux and on Linux within Windows.
DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))


def backends_here() -> list[str]:
    """Backends whose packages are installed, with an NVIDIA driver where they need one.

    Imports nothing, for `--help`; `collect` tests whether they work.
    """
    driver = any(file.exists() for file in DRIVER_FILES)
    return [
        name
        for name, row in BACKENDS.items()
        if all(importlib.util.find_spec(module.split(".")[0]) for module in row.packages.values())
        and (driver or "cpu" in row.devices)
    ]


def known_packages() -> dict[str, Wanted]:
    """`PACKAGES`, and those that only a backend's row names."""
    rows = BACKENDS.values()
    named = {name: Wanted(module, row.extra) for row in rows for name, module in row.packages.items()}
    return {**PACKAGES, **{name: wanted for name, wanted in named.items() if name not in PACKAGES}}


@dataclass(frozen=True)
class Package:
    """An installed distribution; `error` is the error of its import."""

    version: str
    error: str | None = None


@dataclass(frozen=True)
class CompiledKernels:
    """The folder of kernels compiled ahead of time; `error` is the error of reading it."""

    folder: str
    count: int = 0
    architectures: tuple[int, ...] = ()  # compute capabilities, 90 for 9.0
    stale: int = 0  # compiled from another source than this version's
    skipped: tuple[str, ...] = ()  # what was not built, and why
    error: str | None = None


@dataclass(frozen=True)
class Machine:
    """Everything that doctor's rows are derived from."""

    python: str
    system: str
    cores: int
    memory: tuple[int, int] | None  # bytes: total, available
    disk: tuple[str, int]  # folder, free bytes
    packages: dict[str, Package]  # installed ones only
    gpus: tuple[str, ...] = ()
    driver: str | None = None
    gpu_problem: str | None = None
    torch_problem: str | None = None  # why torch, if it is there, uses no GPU
    refusals: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of a backend's `why_not`, by name and device
    assets: dict[str, int | None] = field(default_factory=dict)  # bytes, None: absent
    kernels: CompiledKernels | None = None


def collect(folder: Path) -> Machine:
    """Inspects this machine; imports each installed package once to test it."""
    packages = {name: _package(name, wanted.module) for name, wanted in known_packages().items() if installed(name)}
    gpus, driver, problem = driver_gpus()
    return Machine(
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory(),
        disk=(str(folder), shutil.disk_usage(folder).free),
        packages=packages,
        gpus=tuple(gpu.name for gpu in gpus),
        driver=driver,
        gpu_problem=problem or None,
        torch_problem=_torch_problem() if works(packages, "torch") else None,
        refusals=_refusals(packages),
        assets={name: _size(Path(__file__).parents[1] / "assets" / file) for name, file in ASSETS.items()},
        kernels=_kernels(),
    )


def works(packages: dict[str, Package], name: str) -> bool:
    """Whether a package is installed and can be imported."""
    return name in packages and packages[name].error is None


def _package(name: str, module: str) -> Package:
    error = None
    try:
        importlib.import_module(module)
    except Exception as problem:  # noqa: BLE001 - whatever a broken install raises is what we are here to show
        error = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}"
    return Package(installed(name) or "?", error)


def _torch_problem() -> str | None:
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, install a build for this machine's driver"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, sees no GPU"
    return None


def _refusals(packages: dict[str, Package]) -> dict[str, tuple[str, ...]]:
    working = {known.module for name, known in known_packages().items() if works(packages, name)}
    found = {}
    for row in BACKENDS.values():
        if row.why_not and working.issuperset(row.packages.values()):
            for device in row.devices:
                try:
                    found[row.on(device)] = tuple(resolve(row.why_not)(row.name, device))
                except ImportError as error:
                    found[row.on(device)] = (str(error),)
    return found


def _kernels() -> CompiledKernels | None:
    """Returns what was compiled ahead of time; reading the index needs the standard library only."""
    package = importlib.import_module("dive_kernels.package")
    place = package.folder()
    try:
        found = package.installed()
    except ValueError as error:
        return CompiledKernels(str(place), error=str(error))
    if found is None:
        return None
    return CompiledKernels(
        folder=str(place),
        count=len(found.kernels),
        architectures=tuple(found.architectures),
        stale=sum(package.stale(kernel) is not None for kernel in found.kernels),
        skipped=tuple(f"{what} ({why})" for what, why in found.skipped),
    )


def memory() -> tuple[int, int] | None:
    """Returns total and available bytes on Linux, else None."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines()}
    return values["MemTotal"], values["MemAvailable"]


def _size(file: Path) -> int | None:
    """Returns the bytes of an asset's folder, None without `file`, which marks it complete."""
    return sum(f.stat().st_size for f in file.parent.rglob("*") if f.is_file()) if file.is_file() else None
