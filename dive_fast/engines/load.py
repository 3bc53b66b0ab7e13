"""Opens an engine from a folder. An explicit choice works or raises; only `auto` chooses, and says what and why."""

from __future__ import annotations

from pathlib import Path

from dive_fast.engines.base import Engine
from dive_fast.engines.registry import BACKENDS, EXPORTED, KINDS, MODEL, OPTIMUM, Backend, Choice, choices, resolve
from dive_fast.types import InputError, shown


def load_engine(
    path: Path | str,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    *,
    precision: str = "auto",
    size: tuple[int, int] | None = None,
    check_finite: bool = False,
    cache: Path | str | None = None,
    graphs: bool = False,
) -> Engine:
    """Opens the engine in `path`: an engine folder (`engine.json`) by the backend it was made for, a folder that optimum
    exported (`unet/model.onnx`) by onnxruntime, a fused or base model folder by torch.

    `backend` is auto or a name in `registry.BACKENDS`. torch-compiled is torch with inductor, whose first call of each row
    count takes a minute or more (`CompiledEngine`). onnxruntime-tensorrt is onnxruntime with its TensorRT provider, which
    builds at the first call of each shape. Both keep what they build in `cache` (by default in the user's cache folder).
    openvino compiles at the first call of each shape, for seconds, and keeps that in `cache` alone.
    `device` is auto, cpu or cuda; `precision` auto, fp32, fp16, bf16 or int8 (auto: the graphs' own; torch: fp32 on a CPU,
    fp16 on a GPU); `size` is (height, width) in pixels, by default the model's own, and another only where the graphs leave
    it free. `threads` limits the CPU threads (torch: of the whole process). `check_finite` checks the output of every
    network (`EngineBase`). `graphs` replays UNet calls as CUDA graphs (torch-compiled, tensorrt, tensorrt-rtx).
    Raises `InputError` for a bad folder or option, and `DiveError` with every reason why this choice cannot run here.
    """
    known = choices()
    for option, value in {"backend": backend, "device": device, "precision": precision}.items():
        if value not in known[option]:
            raise InputError(f"{option} {shown(value)} is unknown; choose one of {', '.join(known[option])}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    folder = Path(path)
    row, kind, why = _backend(folder, backend, device, precision)
    choice = Choice(
        backend=row,
        kind=kind,
        why=f"backend: {why if backend == 'auto' else 'asked for'}",
        device=device,
        threads=threads,
        precision=precision,
        size=size,
        check_finite=check_finite,
        cache=None if cache is None else Path(cache),
        graphs=graphs,
    )
    engine: Engine = resolve(row.opens)(folder, choice)
    engine.folder = folder
    return engine


def _backend(folder: Path, name: str, device: str, precision: str) -> tuple[Backend, str, str]:
    """The backend that opens `folder`, the kind that it reads, and why it was chosen."""
    kinds = _kinds(folder)
    if not kinds:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise InputError(
            f"engine {folder} has neither engine.json nor model_index.json (found: {found or 'nothing'}); "
            "give an engine folder (dive-fast export) or a fused model folder (dive-fast fuse)"
        )
    for kind in kinds:
        for row in sorted(BACKENDS.values(), key=lambda row: not row.wins):
            if kind in row.reads and name in ("auto", row.name):
                why = f"the folder holds {KINDS.get(kind, 'a built engine')}"
                if name == "auto" and row.wins:
                    why = resolve(row.wins)(folder, device, precision)
                if why:
                    return row, kind, why
    runs = ", ".join(row.name for kind in kinds for row in BACKENDS.values() if kind in row.reads)
    raise InputError(f"backend {shown(name)} cannot open {folder}, which is for {runs}; {BACKENDS[name].remedy}")


def _kinds(folder: Path) -> list[str]:
    """The kinds of engine in `folder`, the one that auto takes first: weights before graphs."""
    if (folder / "engine.json").is_file():
        from dive_fast.engines.engine_folder import read_spec

        backend = read_spec(folder).backend
        # onnxruntime refuses an unknown backend with every reason.
        return [backend if any(backend in row.reads for row in BACKENDS.values()) else EXPORTED]
    if not (folder / "model_index.json").is_file() and str(folder) != "pocket":
        return []
    graphs = (folder / "unet" / "model.onnx").is_file()
    weights = not graphs or any((folder / "unet").glob("*.safetensors"))
    return [*([MODEL] if weights else []), *([OPTIMUM] if graphs else [])]
