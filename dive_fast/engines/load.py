"""Opens an engine from a folder. An explicit choice works or raises; only `auto` chooses, and says what and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from dive_fast.engines.base import Engine
from dive_fast.types import DiveError, EngineSpec, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dive_fast.engines.onnx_engine import EngineFiles
    from dive_fast.engines.onnx_session import Network, Provider

    Networks = Mapping[str, Network]

CHOICES = {
    "backend": ("auto", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "torch", "torch-compiled"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "fp16", "bf16", "fp8"),
}
Kind = Literal["onnx", "plans", "rtx-plans", "optimum", "model"]
RUN_BY: dict[Kind, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "onnxruntime-tensorrt"),
    "plans": ("tensorrt",),
    "rtx-plans": ("tensorrt-rtx",),
    "optimum": ("onnxruntime", "onnxruntime-tensorrt"),
    "model": ("torch", "torch-compiled"),
}
Size = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What the caller asked for, as `load_engine` documents it; `why` says how the backend was chosen."""

    backend: str
    device: str
    threads: int | None
    precision: str
    size: Size | None
    guard: bool
    cache: Path | None
    graphs: bool
    why: str


def load_engine(
    path: Path | str,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    precision: str = "auto",
    size: Size | None = None,
    guard: bool = False,
    cache: Path | str | None = None,
    graphs: bool = False,
) -> Engine:
    """The engine in `path`: an engine folder (`engine.json`) by what it was made for, onnxruntime or TensorRT; a folder
    that optimum exported (`unet/model.onnx`) by onnxruntime; a fused or base model folder by torch.

    `backend` is auto or one of `CHOICES`; torch-compiled is torch with inductor, whose first call of each row count takes a
    minute or more (`CompiledEngine`); onnxruntime-tensorrt is onnxruntime with its TensorRT provider, which builds at
    the first call of each shape and keeps what it built in `cache` (by default in the user's cache folder, by engine).
    `device` is auto, cpu or cuda; `precision` auto, fp32, fp16 or bf16 (auto: the graphs' own; torch: fp32 on a CPU, fp16
    on a GPU); `size` is (height, width) in pixels, by default the model's own, and another only where the graphs leave it
    free. `threads` limits the CPU threads (torch: of the whole process). `guard` looks at what every network answers
    (`EngineBase`). `graphs` replays UNet calls as CUDA graphs (torch-compiled, tensorrt, tensorrt-rtx).
    Raises `InputError` for a bad folder or option, and `DiveError` with every reason why this choice cannot run here.
    """
    given = {"backend": backend, "device": device, "precision": precision}
    for option, value in given.items():
        if value not in CHOICES[option]:
            raise InputError(f"{option} {value!r} is unknown; choose one of {', '.join(CHOICES[option])}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    folder = Path(path)
    kind, why = _kind(folder, backend)
    why = f"backend: {why if backend == 'auto' else 'asked for'}"
    choice = Choice(
        backend, device, threads, precision, size, guard, None if cache is None else Path(cache), graphs, why
    )
    opens = {
        "onnx": _open_onnx,
        "plans": _open_plans,
        "rtx-plans": _open_plans,
        "optimum": _open_optimum,
        "model": _open_torch,
    }
    return opens[kind](folder, choice)


def _kind(folder: Path, backend: str) -> tuple[Kind, str]:
    """What `folder` holds that `backend` runs, and in words. Where graphs lie beside a model's weights, auto takes these."""
    kinds = _holds(folder)
    if not kinds:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise InputError(
            f"engine {folder} has neither engine.json nor model_index.json (found: {found or 'nothing'}); "
            "give an engine folder (dive-fast export) or a fused model folder (dive-fast fuse)"
        )
    for kind, words in kinds.items():
        if backend in ("auto", *RUN_BY[kind]):
            return kind, f"the folder holds {words}"
    remedies = {
        "torch": "give the fused model folder",
        "torch-compiled": "give the fused model folder",
        "tensorrt": "build it first (dive-fast build)",
        "tensorrt-rtx": "build it first (dive-fast build)",
    }
    remedy = remedies.get(backend, "export it first (dive-fast export)")
    runs = ", ".join(name for kind in kinds for name in RUN_BY[kind])
    raise InputError(f"backend {backend!r} cannot open {folder}, which is for {runs}; {remedy}")


def _holds(folder: Path) -> dict[Kind, str]:
    """The kinds of engine in `folder`, each in words, the one that auto takes first."""
    if (folder / "engine.json").is_file():
        from dive_fast.engines.onnx_engine import read_spec

        built: dict[str, Kind] = {"tensorrt": "plans", "tensorrt-rtx": "rtx-plans"}
        kind = built.get(read_spec(folder).backend, "onnx")
        return {kind: "an exported engine" if kind == "onnx" else "a built engine"}
    if not (folder / "model_index.json").is_file() and str(folder) != "pocket":
        return {}
    graphs: dict[Kind, str] = {"optimum": "an export by optimum"} if (folder / "unet" / "model.onnx").is_file() else {}
    weights = not graphs or any((folder / "unet").glob("*.safetensors"))
    return {**({"model": "a diffusers model"} if weights else {}), **graphs}


def _open_torch(folder: Path, choice: Choice) -> Engine:
    device, precision = choice.device, choice.precision
    cuda = torch.cuda.is_available()
    where = device if device != "auto" else "cuda" if cuda else "cpu"
    exact = precision if precision != "auto" else "fp16" if where == "cuda" else "fp32"
    reasons = []
    if where == "cuda" and not cuda:
        reasons.append(f"device cuda: torch {torch.__version__} sees no CUDA GPU")
    if choice.graphs and choice.backend != "torch-compiled":
        reasons.append("graphs: eager torch has none, use --backend torch-compiled")
    if choice.graphs and where != "cuda":
        reasons.append("graphs: they are CUDA graphs, the device is a CPU")
    if exact == "fp8":
        reasons.append("precision fp8: torch has none, quantise an exported engine (dive-fast quantize)")
    elif where == "cpu" and exact == "fp16":
        reasons.append("precision fp16: on a CPU torch needs minutes a step with it, use fp32 or bf16")
    _raise_all(folder, reasons)
    because = "asked for" if device != "auto" else "a CUDA GPU is there" if cuda else "no CUDA GPU"
    from dive_fast.engines.torch_engine import TorchEngine
    from dive_fast.models import load_bundle

    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    given = (
        load_bundle(folder),
        torch.device(where),
        exact,
        choice.size,
        f"{choice.why}, device: {because}",
        choice.guard,
    )
    if choice.backend != "torch-compiled":
        return TorchEngine(*given)
    from dive_fast.engines.compiled_engine import CompiledEngine

    return CompiledEngine(*given, graphs=choice.graphs)


def _open_onnx(folder: Path, choice: Choice) -> Engine:
    from dive_fast.engines.onnx_engine import read_engine, read_spec

    spec = read_spec(folder)
    kind, because = _provider(folder, choice, _spec_reasons(spec, choice))
    files = read_engine(folder, spec).resized(choice.size)
    return _on_provider(files, lambda networks: files, choice, kind, because)


def _open_plans(folder: Path, choice: Choice) -> Engine:
    from dive_fast.engines.onnx_engine import read_spec
    from dive_fast.engines.tensorrt_engine import open_tensorrt, refusals

    spec = read_spec(folder)
    reasons = _fit_reasons(spec, choice)
    if reasons:
        _raise_all(folder, [*reasons, *refusals(folder, spec, choice.device)[0]])
    return open_tensorrt(
        folder, spec, choice.device, choice.threads, choice.why, guard=choice.guard, use_graphs=choice.graphs
    )


def _open_optimum(folder: Path, choice: Choice) -> Engine:
    from dive_fast.engines.optimum_folder import read_optimum, settled

    reasons = []
    if choice.backend == "onnxruntime-tensorrt":
        reasons.append("backend onnxruntime-tensorrt: it must know the precision beforehand, from an engine.json")
    kind, because = _provider(folder, choice, reasons)
    files = read_optimum(folder)
    return _on_provider(
        files, lambda networks: settled(files, networks, choice.precision, choice.size), choice, kind, because
    )


def _provider(folder: Path, choice: Choice, reasons: list[str]) -> tuple[Provider, str]:
    """The provider asked for, or chosen by `auto`, and why; `DiveError` with all `reasons` when there is any."""
    if choice.graphs:
        reasons.append("graphs: onnxruntime is run without, use --backend torch-compiled or build the engine")
    if importlib.util.find_spec("onnxruntime") is None:
        _raise_all(folder, [*reasons, "onnxruntime is not installed: pip install 'dive-fast[cpu]'"])
    import onnxruntime

    from dive_fast.engines.onnx_session import PROVIDERS

    tensorrt, listed = choice.backend == "onnxruntime-tensorrt", onnxruntime.get_available_providers()
    kind: Provider = "tensorrt" if tensorrt else "cuda"
    missing = []
    if PROVIDERS[kind] not in listed:
        missing.append(f"this onnxruntime offers {', '.join(listed)} (pip install 'dive-fast[gpu]')")
    if not torch.cuda.is_available():  # whose tensors the provider reads and writes
        missing.append(f"torch {torch.__version__} sees no CUDA GPU")
    if tensorrt and choice.device == "cpu":
        reasons.append("device cpu: TensorRT runs on a GPU alone")
    if choice.device == "cuda" or (tensorrt and choice.device == "auto"):
        reasons += [f"device cuda: {reason}" for reason in missing]
    _raise_all(folder, reasons)
    if choice.device != "auto":
        return kind if choice.device == "cuda" else "cpu", "asked for"
    if missing:
        return "cpu", "; ".join(missing)
    return kind, "a CUDA GPU is there"


def _on_provider(
    files: EngineFiles, settle: Callable[[Networks], EngineFiles], choice: Choice, kind: Provider, because: str
) -> Engine:
    """The engine on `kind`; where `auto` chose a GPU whose provider does not come up, on the CPU, and it says so.

    `settle` completes `files` by what the opened graphs tell.
    """
    from dive_fast.engines.onnx_engine import OnnxEngine, open_networks
    from dive_fast.engines.onnx_session import default_cache, place

    where = place(kind, files.spec.precision, choice.cache or default_cache(files.fingerprint))
    try:
        networks = open_networks(files, where, choice.threads)
    except InputError:
        raise
    except DiveError as error:  # listed, but its libraries are not there
        if choice.device != "auto" or kind != "cuda":
            raise
        return _on_provider(files, settle, choice, "cpu", str(error))
    return OnnxEngine(settle(networks), networks, f"{choice.why}, device: {because}", choice.guard)


def _spec_reasons(spec: EngineSpec, choice: Choice) -> list[str]:
    """Why an engine of this spec is not what was asked for, or is not for onnxruntime."""
    reasons = []
    if spec.backend != "onnxruntime":
        reasons.append(f"engine.json says backend {spec.backend!r}, which this version does not know")
    if spec.gpu is not None:
        reasons.append(f"it was built for the GPU {spec.gpu!r}, onnxruntime engines are for any machine")
    if spec.precision == "fp8" and choice.backend == "onnxruntime-tensorrt":
        reasons.append("onnxruntime's TensorRT provider has no word for fp8, build it (dive-fast build)")
    return reasons + _fit_reasons(spec, choice)


def _fit_reasons(spec: EngineSpec, choice: Choice) -> list[str]:
    reasons = []
    if choice.precision not in ("auto", spec.precision):
        reasons.append(f"precision {choice.precision}: the engine is {spec.precision}")
    own = (spec.profile.height, spec.profile.width)
    if choice.size not in (None, own) and not spec.any_size:
        height, width = choice.size or own
        reasons.append(f"size {height}x{width}: the engine is {own[0]}x{own[1]} (height x width), export another")
    return reasons


def _raise_all(folder: Path, reasons: list[str]) -> None:
    if reasons:
        raise DiveError(f"engine {folder} cannot run as asked: {'; '.join(reasons)}")
