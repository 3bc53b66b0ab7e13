"""What this machine can run, what it lacks and the remedy, as a table: a pure function of `Machine`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dive_fast.engines.registry import BACKENDS
from dive_fast.environment.packages import Machine, known_packages

GIB = 1 << 30
RTX_BUILD, TRITON = "tensorrt-rtx-build", "triton-kernels"  # what is no backend, and has a row


@dataclass(frozen=True)
class Row:
    """One line of the table. `no`: absent or not usable; `broken`: installed but failing."""

    area: Literal["machine", "packages", "engines", "assets"]
    name: str
    state: Literal["ok", "no", "broken"]
    value: str
    remedy: str = ""


def rows(machine: Machine) -> list[Row]:
    """Returns the whole table."""
    assets = [*_asset_rows(machine), _kernel_row(machine)]
    return [*_machine_rows(machine), *_package_rows(machine), *_engine_rows(machine), *assets]


def table(listed: Iterable[Row]) -> str:
    """Formats rows, with a heading for each area."""
    lines: list[str] = []
    area = ""
    for row in listed:
        if row.area != area:
            area = row.area
            lines.append(area)
        remedy = f"; {row.remedy}" if row.remedy else ""
        lines.append(f"  {row.state:<7} {row.name:<21} {row.value}{remedy}")
    return "\n".join(lines)


def _machine_rows(machine: Machine) -> list[Row]:
    memory = "unknown"
    if machine.memory:
        memory = f"{machine.memory[0] / GIB:.1f} GiB, {machine.memory[1] / GIB:.1f} GiB available"
    listed = [
        Row("machine", "python", "ok", machine.python),
        Row("machine", "system", "ok", machine.system),
        Row("machine", "cores", "ok", str(machine.cores)),
        Row("machine", "memory", "ok", memory),
        Row("machine", "disk", "ok", f"{machine.disk[1] / GIB:.1f} GiB free in {machine.disk[0]}"),
    ]
    if machine.gpus:
        driver = f" (driver for CUDA {machine.driver})" if machine.driver else ""
        return [*listed, Row("machine", "gpu", "ok", ", ".join(machine.gpus) + driver)]
    return [*listed, Row("machine", "gpu", "no", machine.gpu_problem or "none found")]


def _package_rows(machine: Machine) -> list[Row]:
    listed = []
    for name, wanted in known_packages().items():
        package = machine.packages.get(name)
        install = f"pip install 'dive-fast[{wanted.extra}]'" if wanted.extra else "pip install dive-fast"
        if package is None:
            listed.append(Row("packages", name, "no", "not installed", install))
        elif package.error:
            again = f"reinstall it: pip install --force-reinstall {name}"
            listed.append(Row("packages", name, "broken", f"{package.version}, import fails: {package.error}", again))
        else:
            listed.append(Row("packages", name, "ok", package.version))
    if {"onnxruntime", "onnxruntime-gpu"} <= set(machine.packages):
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


def _engine_rows(machine: Machine) -> list[Row]:
    """Each backend on each of its devices, and what else runs on a GPU, with every reason why it cannot."""
    no_gpu = [] if machine.gpus else ["no GPU (see machine)"]
    device = [*no_gpu, machine.torch_problem] if machine.torch_problem else no_gpu
    reasons: dict[str, list[str]] = {}
    for row in BACKENDS.values():
        missing = _missing(machine, row.packages)
        for where in row.devices:
            gpu = [] if where == "cpu" else device if "torch" in row.packages else no_gpu
            reasons[row.on(where)] = [*missing, *gpu, *machine.refusals.get(row.on(where), ())]
    reasons[RTX_BUILD] = _missing(machine, ["tensorrt-rtx"])
    reasons[TRITON] = [*_missing(machine, ["triton"]), *device]
    return [
        Row("engines", name, "no" if why_not else "ok", "; ".join(dict.fromkeys(why_not)) or "can run")
        for name, why_not in reasons.items()
    ]


def engine_names() -> tuple[str, ...]:
    """The names of the engine rows, which `doctor --need` takes."""
    return (*(row.on(device) for row in BACKENDS.values() for device in row.devices), RTX_BUILD, TRITON)


def _missing(machine: Machine, names: Iterable[str]) -> list[str]:
    """Why packages cannot be used, each with the remedy; another distribution of the same module serves as well."""
    known = known_packages()
    working = {known[name].module for name, package in machine.packages.items() if name in known and not package.error}
    found = []
    for name in names:
        if known[name].module not in working:
            package = machine.packages.get(name)
            install = f"not installed, pip install 'dive-fast[{known[name].extra}]'"
            found.append(f"{name}: " + (f"import fails ({package.error})" if package else install))
    return found


def _asset_rows(machine: Machine) -> list[Row]:
    return [
        Row("assets", name, "ok", f"{size / 1e6:.1f} MB")
        if size is not None
        else Row("assets", name, "no", "not in this installation", "reinstall dive-fast from a complete checkout")
        for name, size in machine.assets.items()
    ]


def _kernel_row(machine: Machine) -> Row:
    """The kernels compiled ahead of time: how many, for what, and what was skipped."""
    found, name = machine.kernels, "kernels ahead of time"
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
