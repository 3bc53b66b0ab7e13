"""What this machine can run, what it lacks and the remedy, as a table: a pure function of the facts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dive_fast.environment.packages import PACKAGES, Facts

GIB = 1 << 30
Engine = Literal[
    "torch-cpu", "torch-cuda", "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx",
    "tensorrt-rtx-build", "triton-kernels",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table. `no` is a thing that is absent, `broken` one that is there and does not work."""

    area: Literal["machine", "packages", "engines", "assets"]
    name: str
    state: Literal["ok", "no", "broken"]
    value: str
    remedy: str = ""


def rows(facts: Facts) -> list[Row]:
    """The whole table, worst news included."""
    assets = [*_asset_rows(facts), _kernel_row(facts)]
    return [*_machine_rows(facts), *_package_rows(facts), *_engine_rows(facts), *assets]


def table(listed: Iterable[Row]) -> str:
    """Rows as text, one heading an area."""
    lines: list[str] = []
    area = ""
    for row in listed:
        if row.area != area:
            area = row.area
            lines.append(area)
        remedy = f"; {row.remedy}" if row.remedy else ""
        lines.append(f"  {row.state:<7} {row.name:<21} {row.value}{remedy}")
    return "\n".join(lines)


def _machine_rows(facts: Facts) -> list[Row]:
    memory = "unknown"
    if facts.memory:
        memory = f"{facts.memory[0] / GIB:.1f} GiB, {facts.memory[1] / GIB:.1f} GiB available"
    listed = [
        Row("machine", "python", "ok", facts.python),
        Row("machine", "system", "ok", facts.system),
        Row("machine", "cores", "ok", str(facts.cores)),
        Row("machine", "memory", "ok", memory),
        Row("machine", "disk", "ok", f"{facts.disk[1] / GIB:.1f} GiB free in {facts.disk[0]}"),
    ]
    if facts.gpus:
        driver = f" (driver for CUDA {facts.driver})" if facts.driver else ""
        return [*listed, Row("machine", "gpu", "ok", ", ".join(facts.gpus) + driver)]
    return [*listed, Row("machine", "gpu", "no", facts.gpu_problem or "none found")]


def _package_rows(facts: Facts) -> list[Row]:
    listed = []
    for name, wanted in PACKAGES.items():
        package = facts.packages.get(name)
        install = f"pip install 'dive-fast[{wanted.extra}]'" if wanted.extra else "pip install dive-fast"
        if package is None:
            listed.append(Row("packages", name, "no", "not installed", install))
        elif package.error:
            again = f"reinstall it: pip install --force-reinstall {name}"
            listed.append(Row("packages", name, "broken", f"{package.version}, import fails: {package.error}", again))
        else:
            listed.append(Row("packages", name, "ok", package.version))
    if {"onnxruntime", "onnxruntime-gpu"} <= set(facts.packages):
        listed.append(
            Row(
                "packages",
                "onnxruntime twice",
                "broken",
                "onnxruntime and onnxruntime-gpu share one folder, the last one installed has overwritten the other",
                "pip uninstall -y onnxruntime onnxruntime-gpu, then install 'dive-fast[cpu]' or 'dive-fast[gpu]'",
            )
        )
    return listed


def _engine_rows(facts: Facts) -> list[Row]:
    """Each way to run the networks, with every reason why it cannot."""
    torch = [f"{name}: {why}" for name in ("torch", "diffusers", "transformers") if (why := _why_not(facts, name))]
    no_gpu = [] if facts.gpus else ["no GPU (see machine)"]
    device = [*no_gpu, facts.torch_problem] if facts.torch_problem else no_gpu
    runtime = _why_not(facts, "onnxruntime"), _why_not(facts, "onnxruntime-gpu")
    onnx = [f"onnxruntime: {runtime[0]}"] if all(runtime) else []
    providers = {
        name: []
        if f"{name}ExecutionProvider" in facts.providers
        else [f"this onnxruntime has no {name} provider, pip uninstall it and pip install 'dive-fast[gpu]'"]
        for name in ("CUDA", "Tensorrt")
    }
    triton, tensorrt, rtx = (
        [f"{name}: {why}"] if (why := _why_not(facts, name)) else [] for name in ("triton", "tensorrt", "tensorrt-rtx")
    )
    reasons: dict[Engine, list[str]] = {
        "torch-cpu": torch,
        "torch-cuda": [*torch, *device],
        "onnxruntime-cpu": onnx,
        "onnxruntime-cuda": [*onnx, *no_gpu, *providers["CUDA"]],
        "onnxruntime-tensorrt": [*onnx, *no_gpu, *providers["Tensorrt"]],
        "tensorrt": [*tensorrt, *torch, *device],
        "tensorrt-rtx": [*rtx, *torch, *device],
        "tensorrt-rtx-build": rtx,
        "triton-kernels": [*triton, *device],
    }
    return [
        Row("engines", name, "no" if why_not else "ok", "; ".join(why_not) or "can run")
        for name, why_not in reasons.items()
    ]


def _asset_rows(facts: Facts) -> list[Row]:
    return [
        Row("assets", name, "ok", f"{size / 1e6:.1f} MB")
        if size is not None
        else Row("assets", name, "no", "not in this installation", "reinstall dive-fast from a complete checkout")
        for name, size in facts.assets.items()
    ]


def _kernel_row(facts: Facts) -> Row:
    """The kernels compiled ahead of time: how many, for what, and what was skipped."""
    found, name = facts.kernels, "kernels ahead of time"
    if found is None:
        return Row("assets", name, "no", "none, Triton and NVRTC compile at first use", "make kernels compiles them")
    if found.error:
        return Row("assets", name, "broken", found.error)
    skipped = f"; skipped: {', '.join(found.skipped)}" if found.skipped else ""
    chips = ", ".join(f"sm_{architecture}" for architecture in found.architectures)
    value = f"{found.count} for {chips}{skipped}" if found.count else f"none{skipped}"
    if found.stale:
        return Row(
            "assets", name, "broken", f"{found.stale} have another source than this version: {value}", "make kernels"
        )
    return Row("assets", name, "ok" if found.count else "no", value)


def _why_not(facts: Facts, name: str) -> str | None:
    """Why a package cannot be used, with the remedy; None if it can."""
    package = facts.packages.get(name)
    if package is None:
        return f"not installed, pip install 'dive-fast[{PACKAGES[name].extra}]'"
    return f"import fails ({package.error})" if package.error else None
