"""Opens an engine from a folder. An explicit choice works or raises; only `auto` chooses, and says what and why."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch

from dive_fast.engines.base import Engine
from dive_fast.types import DiveError, EngineSpec, InputError

CHOICES = {
    "backend": ("auto", "onnxruntime", "torch"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("auto", "fp32", "fp16", "bf16"),
}
Size = tuple[int, int]


def load_engine(
    path: Path | str,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    precision: str = "auto",
    size: Size | None = None,
) -> Engine:
    """The engine in `path`: an engine folder (`engine.json`) by onnxruntime, a fused or base model folder by torch.

    `backend` is auto, onnxruntime or torch; `device` auto, cpu or cuda; `precision` auto, fp32, fp16 or bf16 (auto:
    fp32 on a CPU, fp16 by torch on a GPU); `size` is (height, width) in pixels, by default the model's own. `threads`
    limits the CPU threads (torch: of the whole process).
    Raises `InputError` for a bad folder or option, and `DiveError` with every reason why this choice cannot run here.
    """
    given = {"backend": backend, "device": device, "precision": precision}
    for option, value in given.items():
        if value not in CHOICES[option]:
            raise InputError(f"{option} {value!r} is unknown; choose one of {', '.join(CHOICES[option])}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    folder = Path(path)
    kind = _kind(folder)
    if backend not in ("auto", kind):
        remedy = "give the fused model folder" if backend == "torch" else "export it first (dive-fast export)"
        raise InputError(f"backend {backend!r} cannot open {folder}, which is for {kind}; {remedy}")
    why = "the folder holds an exported engine" if kind == "onnxruntime" else "the folder holds a diffusers model"
    why = f"backend: {why if backend == 'auto' else 'asked for'}"
    open_folder = _open_onnx if kind == "onnxruntime" else _open_torch
    return open_folder(folder, device, threads, precision, size, why)


def _kind(folder: Path) -> Literal["onnxruntime", "torch"]:
    if (folder / "engine.json").is_file():
        return "onnxruntime"
    if (folder / "model_index.json").is_file() or str(folder) == "pocket":
        return "torch"
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise InputError(
        f"engine {folder} has neither engine.json nor model_index.json (found: {found or 'nothing'}); "
        "give an engine folder (dive-fast export) or a fused model folder (dive-fast fuse)"
    )


def _open_torch(folder: Path, device: str, threads: int | None, precision: str, size: Size | None, why: str) -> Engine:
    cuda = torch.cuda.is_available()
    where = device if device != "auto" else "cuda" if cuda else "cpu"
    exact = precision if precision != "auto" else "fp16" if where == "cuda" else "fp32"
    reasons = []
    if where == "cuda" and not cuda:
        reasons.append(f"device cuda: torch {torch.__version__} sees no CUDA GPU")
    if where == "cpu" and exact != "fp32":
        reasons.append(f"precision {exact}: on a CPU torch needs minutes a step with it, use fp32")
    _raise_all(folder, reasons)
    why = f"{why}, device: {'asked for' if device != 'auto' else 'a CUDA GPU is there' if cuda else 'no CUDA GPU'}"
    from dive_fast.engines.torch_engine import TorchEngine
    from dive_fast.models import load_bundle

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchEngine(load_bundle(folder), torch.device(where), exact, size, why)


def _open_onnx(folder: Path, device: str, threads: int | None, precision: str, size: Size | None, why: str) -> Engine:
    from dive_fast.engines.onnx_engine import PROVIDERS, OnnxEngine, read_spec

    spec = read_spec(folder)
    reasons = _spec_reasons(spec, precision, size)
    if importlib.util.find_spec("onnxruntime") is None:
        reasons.append("onnxruntime is not installed: pip install 'dive-fast[cpu]'")
        _raise_all(folder, reasons)
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    cuda = PROVIDERS["cuda"] in listed
    if device == "cuda" and not cuda:
        reasons.append(f"device cuda: this onnxruntime offers {', '.join(listed)}; pip install 'dive-fast[gpu]'")
    _raise_all(folder, reasons)
    if device != "auto":
        return OnnxEngine(folder, spec, device, threads, f"{why}, device: asked for")
    missing = "onnxruntime lists no CUDA provider"
    if cuda:
        try:
            return OnnxEngine(folder, spec, "cuda", threads, f"{why}, device: onnxruntime's CUDA provider came up")
        except InputError:
            raise
        except DiveError as error:  # listed, but its libraries are not there
            missing = str(error)
    return OnnxEngine(folder, spec, "cpu", threads, f"{why}, device: {missing}")


def _spec_reasons(spec: EngineSpec, precision: str, size: Size | None) -> list[str]:
    """Why an engine of this spec is not what was asked for, or is not for this machine."""
    reasons = []
    if spec.backend != "onnxruntime":
        reasons.append(f"engine.json says backend {spec.backend!r}, this version runs onnxruntime engines")
    if spec.gpu is not None:
        reasons.append(f"it was built for the GPU {spec.gpu!r}, onnxruntime engines are for any machine")
    if precision not in ("auto", spec.precision):
        reasons.append(f"precision {precision}: the engine is {spec.precision}")
    own = (spec.profile.height, spec.profile.width)
    if size is not None and size != own:
        reasons.append(f"size {size[0]}x{size[1]}: the engine is {own[0]}x{own[1]} (height x width), export another")
    return reasons


def _raise_all(folder: Path, reasons: list[str]) -> None:
    if reasons:
        raise DiveError(f"engine {folder} cannot run as asked: {'; '.join(reasons)}")
