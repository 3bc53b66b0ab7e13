"""The backends: one row each, read by `load_engine`, `doctor`, `bench` and the command line. No heavy import.

A new backend is a file that opens it and a row here.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dive_fast.types import DiveError

EXPORTED, OPTIMUM, MODEL = "onnxruntime", "optimum", "model"
# What a folder may hold beside a built engine, whose kind is its backend's name.
KINDS = {EXPORTED: "an exported engine", OPTIMUM: "an export by optimum", MODEL: "a diffusers model"}
TORCH = {  # diffusers and transformers import their parts at first use: these are parts that we use
    "torch": "torch",
    "diffusers": "diffusers.models.unets.unet_2d_condition",
    "transformers": "transformers.models.clip.modeling_clip",
}


@dataclass(frozen=True)
class Backend:
    """One way to run the networks.

    `packages` maps the distributions it imports to the module that shows whether they work; `extra` is the extra of
    dive-fast that installs them. `reads` are the kinds of folder that it opens, and `remedy` says how to make one.
    `opens` is "module:function" of `(folder, Choice) -> Engine`. `why_not` is "module:function" of
    `(name, device) -> list[str]`: every reason why this machine cannot run it, asked only when its packages work.
    `wins` is "module:function" of `(folder, device, precision) -> str`: why auto takes this backend before the others, or ""
    where it does not; of the rows without one, auto takes the first that reads the folder.
    """

    name: str
    extra: str
    packages: Mapping[str, str]
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    reads: tuple[str, ...]
    remedy: str
    opens: str
    why_not: str = ""
    wins: str = ""

    def on(self, device: str) -> str:
        """The name of this backend on one of its devices, as `doctor` lists it."""
        return self.name if len(self.devices) == 1 else f"{self.name}-{device}"

    def misfits(self, device: str, precision: str) -> list[str]:
        """Every reason why this backend cannot run so, each with what it can, and who else reads such folders and can."""
        wanted = (("device", device, "devices"), ("precision", precision, "precisions"))
        return [
            f"{name} {value}: {self.name} has {', '.join(getattr(self, known))} only{self._unlike(known, value)}"
            for name, value, known in wanted
            if value not in ("auto", *getattr(self, known))
        ]

    def _unlike(self, known: str, value: str) -> str:
        readers = (row for row in BACKENDS.values() if set(row.reads) & set(self.reads))
        names = [row.name for row in readers if value in getattr(row, known)]
        return f", unlike {', '.join(names)}" if names else ""


OPENVINO = Backend(
    name="openvino",
    extra="openvino",
    packages={"openvino": "openvino", "torch": "torch"},
    devices=("cpu",),
    precisions=("fp32", "bf16", "int8"),
    reads=(EXPORTED,),
    remedy="export it first (dive-fast export)",
    opens="dive_fast.engines.openvino_engine:open_openvino",
    wins="dive_fast.engines.openvino_engine:wins",
)
ONNXRUNTIME = Backend(
    name="onnxruntime",
    extra="cpu",
    packages={"onnxruntime": "onnxruntime"},
    devices=("cpu", "cuda"),
    precisions=("fp32", "fp16", "bf16", "fp8", "int8"),
    reads=(EXPORTED, OPTIMUM),
    remedy="export it first (dive-fast export)",
    opens="dive_fast.engines.onnx_engine:open_onnx",
    why_not="dive_fast.engines.onnx_engine:why_not",
)
ONNXRUNTIME_TENSORRT = replace(
    ONNXRUNTIME,
    name="onnxruntime-tensorrt",
    extra="gpu",
    packages={"onnxruntime-gpu": "onnxruntime", "torch": "torch"},
    devices=("cuda",),
    precisions=("fp32", "fp16", "bf16"),
)
TENSORRT = Backend(
    name="tensorrt",
    extra="trt",
    packages={"tensorrt": "tensorrt", "torch": "torch"},
    devices=("cuda",),
    precisions=("fp32", "fp16", "bf16", "fp8"),
    reads=("tensorrt",),
    remedy="build it first (dive-fast build)",
    opens="dive_fast.engines.tensorrt_engine:open_tensorrt",
    why_not="dive_fast.engines.tensorrt_api:why_not",
)
TENSORRT_RTX = replace(
    TENSORRT,
    name="tensorrt-rtx",
    extra="rtx",
    packages={"tensorrt-rtx": "tensorrt_rtx", "torch": "torch"},
    reads=("tensorrt-rtx",),
)
EAGER = Backend(
    name="torch",
    extra="torch",
    packages=TORCH,
    devices=("cpu", "cuda"),
    precisions=("fp32", "fp16", "bf16"),
    reads=(MODEL,),
    remedy="give the fused model folder",
    opens="dive_fast.engines.torch_engine:open_torch",
)
COMPILED = replace(
    EAGER,
    name="torch-compiled",
    precisions=(*EAGER.precisions, "fp8"),
    opens="dive_fast.engines.compiled_engine:open_compiled",
)
# Backend auto takes a row that wins, else the first that reads the folder.
_ROWS = (ONNXRUNTIME, ONNXRUNTIME_TENSORRT, OPENVINO, TENSORRT, TENSORRT_RTX, EAGER, COMPILED)
BACKENDS = {row.name: row for row in _ROWS}


def choices() -> dict[str, tuple[str, ...]]:
    """The values of the options `backend`, `device` and `precision`, auto first."""
    rows = BACKENDS.values()
    return {
        "backend": ("auto", *BACKENDS),
        "device": ("auto", *dict.fromkeys(device for row in rows for device in row.devices)),
        "precision": ("auto", *dict.fromkeys(precision for row in rows for precision in row.precisions)),
    }


def installed(distribution: str) -> str | None:
    """Returns the version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; `capability` is its compute capability like "9.0"."""

    name: str
    capability: str

    @property
    def label(self) -> str:
        """As EngineSpec.gpu names it."""
        return f"{self.name} (compute capability {self.capability})"


def driver_gpus() -> tuple[list[Gpu], str | None, str]:
    """Returns the NVIDIA driver's CUDA devices, its CUDA version, and why there is no device ("" if there is one)."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [], None, "no NVIDIA driver (libcuda.so.1) is installed"
    if code := cuda.cuInit(0):
        return [], None, f"the NVIDIA driver offers no GPU (CUDA error {code})"
    number, name = ctypes.c_int(), ctypes.create_string_buffer(256)

    def ask(function: Any, *arguments: int) -> int:
        function(ctypes.byref(number), *arguments)
        return number.value

    version, found = ask(cuda.cuDriverGetVersion), []
    for i in range(ask(cuda.cuDeviceGetCount)):
        device = ask(cuda.cuDeviceGet, i)
        cuda.cuDeviceGetName(name, len(name), device)
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        capability = [str(ask(cuda.cuDeviceGetAttribute, attribute, device)) for attribute in (75, 76)]
        found.append(Gpu(name.value.decode(), ".".join(capability)))
    return found, f"{version // 1000}.{version % 1000 // 10}", "" if found else "the NVIDIA driver lists no GPU"


def resolve(reference: str) -> Any:
    """The function that "module:function" names."""
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)


@dataclass(frozen=True)
class Choice:
    """What the caller of `load_engine` asked for, the kind of the folder, and why this backend opens it."""

    backend: Backend
    kind: str
    why: str
    device: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    size: tuple[int, int] | None = None
    check_finite: bool = False
    cache: Path | None = None
    graphs: bool = False

    def refuse(self, folder: Path, reasons: list[str]) -> None:
        """Raises `DiveError` with `reasons` and those of the backend's row, unless there are none."""
        found = [*reasons, *self.backend.misfits(self.device, self.precision)]
        if found:
            raise DiveError(f"engine {folder} cannot run as asked: {'; '.join(found)}")
