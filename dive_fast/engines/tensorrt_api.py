"""The differences between `tensorrt` and `tensorrt-rtx`, and what both share. Standard library on import.

|                          | `tensorrt` >= 11.1, < 12          | `tensorrt-rtx` >= 1.3, < 2                           |
|--------------------------|-----------------------------------|------------------------------------------------------|
| builds without a GPU     | no                                | yes, but for refittable or stripped plans            |
| a plan is for            | the GPU that it was built on      | one named compute capability, or Ampere and later    |
| compute capabilities     | 7.5 and later                     | 7.5, 8.0, 8.6, 8.9, 12.0, 12.1: no 9.0 (H100, H200)  |
| timing cache             | yes                               | its calls are no-ops and warn                        |
| plans for other GPUs     | HardwareCompatibilityLevel        | unsupported, it warns                                |
| compiled Python plugins  | yes                               | no                                                   |

Version-compatible plans are not offered: tensorrt-rtx lacks the lean runtime for them, and tensorrt would run code from the
plan. Both have removed precision flags and calibrators: networks are strongly typed by the ONNX graph. Layers are returned
as `ILayer`: an attention needs its class set before it has attributes (`allow_decomposition`).

Run so far: tensorrt-rtx 1.7.1 on a CPU. Not run: `tensorrt` (its column is NVIDIA's documentation), and what needs a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive_fast.engines.registry import BACKENDS, driver_gpus, installed
from dive_fast.engines.registry import Gpu as Gpu
from dive_fast.io import brief
from dive_fast.types import DiveError, shown


@dataclass(frozen=True)
class Flavour:
    """One of the two packages. `name` is the backend in engine.json and the distribution; `versions` is [from, before)."""

    name: str
    versions: tuple[str, str]
    builds_without_gpu: bool
    capabilities: tuple[str, ...]  # compute capabilities that it has code for; empty: 7.5 and every later one
    timing_cache: bool
    compatibility: bool  # whether it knows HardwareCompatibilityLevel
    python_plugins: bool  # whether it takes Python plugins that are compiled ahead of time (`dive_export.trt_plugin`)

    @property
    def module(self) -> str:
        return BACKENDS[self.name].packages[self.name]


TENSORRT = Flavour("tensorrt", ("11.1", "12"), False, (), True, True, True)
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
RTX = Flavour("tensorrt-rtx", ("1.3", "2"), True, RTX_CAPABILITIES, False, False, False)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, RTX)}
ANY_AMPERE = "compute capability 8.0 or later"  # what tensorrt-rtx builds for when no target is named

# By the names of trt.DataType's members: the torch type of the same bits.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def version(kind: Flavour) -> str | None:
    """Returns the version of the installed package, None if there is none."""
    return installed(kind.name)


def reasons(kind: Flavour) -> list[str]:
    """Returns every reason why the package cannot be imported here, each with its remedy."""
    found = version(kind)
    if found is None or importlib.util.find_spec(kind.module) is None:
        return [f"{kind.name} is not installed: pip install 'dive-fast[{BACKENDS[kind.name].extra}]'"]
    first, before = kind.versions
    if not _numbers(first) <= _numbers(found) < _numbers(before):
        return [f"{kind.name} {found} is installed, this version of dive-fast knows >= {first}, < {before}"]
    try:
        importlib.import_module(kind.module)
    except Exception as problem:  # noqa: BLE001 - a missing library raises whatever the binding makes of it
        return [f"{kind.name} {found} does not import ({type(problem).__name__}: {brief(problem)}); install it again"]
    return []


def why_not(name: str, device: str) -> list[str]:
    """`reasons` of the flavour `name`, for the registry of backends."""
    return reasons(FLAVOURS[name])


def load(kind: Flavour) -> Any:
    """Imports the module; raises `DiveError` with the reason if it cannot be imported."""
    found = reasons(kind)
    if found:
        raise DiveError("; ".join(found))
    return importlib.import_module(kind.module)


def find_gpu() -> tuple[Gpu | None, str]:
    """Returns the driver's first CUDA device, and why there is none ("" if there is one)."""
    found, _, why = driver_gpus()
    return (found[0], "") if found else (None, why)


def misfits(kind: Flavour, label: str | None, gpu: Gpu) -> list[str]:
    """Returns every reason why a plan whose EngineSpec.gpu is `label` does not run on `gpu`."""
    found = []
    if kind.capabilities and gpu.capability not in kind.capabilities:
        found.append(
            f"{kind.name} has no code for compute capability {gpu.capability} of the {gpu.name}, "
            f"only for {', '.join(kind.capabilities)}"
        )
    wanted = re.fullmatch(r"(?:(.+) \()?compute capability ([0-9.]+)( or later)?\)?", label or "")
    if wanted is None:
        return [
            *found,
            f"engine.json names the GPU {shown(label)}, which is none that dive-fast writes; build it again",
        ]
    name, capability, later = wanted.groups()
    fits = _numbers(capability) <= _numbers(gpu.capability) if later else capability == gpu.capability
    if not fits or (name is not None and name != gpu.name):
        found.append(f"it was built for {label}, here is {gpu.label}; build it again on this machine")
    return found


def logger(trt: Any) -> Any:
    """Makes an ILogger that collects errors in `errors` and prints nothing."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Messages()


def first(errors: Iterable[str]) -> str:
    """Returns the first error in brief; later ones only repeat it."""
    return brief(next(iter(errors), "no reason given"))


def torch_dtype(kind: Any) -> str:
    """Returns the name of a trt.DataType's torch type; raises `DiveError` if there is none."""
    if kind.name not in DTYPES:
        raise DiveError(f"TensorRT type {kind.name} has no torch type; export the engine in fp32, fp16 or bf16")
    return DTYPES[kind.name]


def allow_decomposition(trt: Any, network: Any) -> None:
    """Lets TensorRT decompose attentions without a fused kernel (small heads, float32)."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def open_plan(trt: Any, plan: bytes, where: str, graph: Path | None = None, weights: Iterable[str] = ()) -> Any:
    """Loads a plan as ICudaEngine, and refits it with the `weights` of the ONNX file `graph` if there are any.

    Needs a GPU. Raises `DiveError` naming `where` if TensorRT refuses the plan, and as `refit`.
    """
    log = logger(trt)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise DiveError(f"{where} cannot be loaded ({first(log.errors)}); build it again on this machine")
    if graph is not None and weights:
        refit(trt, log, engine, graph, weights)
    return engine


def refit(trt: Any, log: Any, engine: Any, graph: Path, expected: Iterable[str]) -> None:
    """Refits `engine` with the weights of the ONNX file `graph`, all or none. Needs a GPU.

    `expected` names the weights that the graph must set (the parser's map at build time). Raises `DiveError` with count and
    names, before anything reaches the GPU, if a weight is missing, unknown or refused.
    """
    refitter = trt.Refitter(engine, log)
    every = set(refitter.get_all_weights())
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(graph)):  # sets weights; refit_cuda_engine applies them
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise DiveError(f"refit from {graph}: TensorRT refuses its weights ({first([*errors, *log.errors])})")
    wanted = every & set(expected)
    unset = {name for name in wanted if not refitter.get_named_weights(name).size}
    left = sorted(unset | set(refitter.get_missing_weights()))
    if left or not wanted:
        raise DiveError(
            f"refit from {graph}: {len(left)} of {len(every)} weights would keep old values "
            f"({', '.join(left[:3]) or 'the plan knows none of the names'}); build this adapter's engine instead"
        )
    if not refitter.refit_cuda_engine():
        raise DiveError(f"refit from {graph}: TensorRT failed at it ({first(log.errors)}); open the engine again")


def _numbers(text: str) -> tuple[int, ...]:
    """ "11.4.0" as (11, 4, 0), to compare versions and compute capabilities."""
    return tuple(int(digits) for digits in re.findall(r"\d+", text))
