"""What this machine can run, what it lacks and the remedy, as a table: a pure function of `Machine`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dive_fast.engines.registry import BACKENDS
from dive_fast.environment.packages import Machine, Wanted, known_packages
from dive_fast.environment.support import RTX_BUILD, TRITON, describe, engine_names

__all__ = ["Row", "engine_names", "rows", "table"]

GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One line of the table. `no`: absent or not usable; `broken`: installed but failing.

    `tried` is what we have run of an engine, on our machines (`environment.support`).
    """

    area: Literal["machine", "packages", "engines", "assets"]
    name: str
    state: Literal["ok", "no", "broken"]
    value: str
    remedy: str = ""
    tried: str = ""

    @property
    def reason(self) -> str:
        """Value and remedy in one text."""
        return "; ".join(filter(None, [self.value, self.remedy]))


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
        tried = f" [{row.tried}]" if row.tried else ""
        lines.append(f"  {row.state:<7} {row.name:<21} {row.reason}{tried}")
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
    remedy = "a GPU needs NVIDIA's driver, and a container the option that shows it, as --gpus all"
    return [*listed, Row("machine", "gpu", "no", machine.gpu_problem or "none found", remedy)]


def _package_rows(machine: Machine) -> list[Row]:
    listed = []
    for name, wanted in known_packages().items():
        package = machine.packages.get(name)
        if package is None:
            listed.append(Row("packages", name, "no", "not installed", _install(wanted)))
        elif package.error:
            value = f"{package.version}, import fails: {package.error}"
            listed.append(Row("packages", name, "broken", value, _reinstall(name)))
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
    listed = []
    for row in BACKENDS.values():
        missing = _missing(machine, row.packages)
        for where in row.devices:
            gpu = [] if where == "cpu" else device if "torch" in row.packages else no_gpu
            listed.append(_engine_row(row.on(where), missing, [*gpu, *machine.refusals.get(row.on(where), ())]))
    return [
        *listed,
        _engine_row(RTX_BUILD, _missing(machine, ["tensorrt-rtx"]), []),
        _engine_row(TRITON, _missing(machine, ["triton"]), device),
    ]


def _engine_row(name: str, missing: dict[str, str], reasons: Iterable[str]) -> Row:
    """A row with every reason against it: packages as `_missing` gives them, and what else."""
    why_not = [*missing, *dict.fromkeys(reasons)]
    remedies = "; ".join(dict.fromkeys(missing.values()))
    tried = f"dive-fast's tests: {describe(name)}"
    return Row("engines", name, "no" if why_not else "ok", "; ".join(why_not) or "can run", remedies, tried)


def _missing(machine: Machine, names: Iterable[str]) -> dict[str, str]:
    """Why packages cannot be used, and the remedy of each; another distribution of the same module serves as well."""
    known = known_packages()
    working = {known[name].module for name, package in machine.packages.items() if name in known and not package.error}
    found = {}
    for name in names:
        if known[name].module not in working:
            package = machine.packages.get(name)
            reason = f"{name}: " + (f"import fails ({package.error})" if package else "not installed")
            found[reason] = _reinstall(name) if package else _install(known[name])
    return found


def _install(wanted: Wanted) -> str:
    return f"pip install 'dive-fast[{wanted.extra}]'" if wanted.extra else "pip install dive-fast"


def _reinstall(name: str) -> str:
    return f"reinstall it: pip install --force-reinstall {name}"


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
        return Row("assets", name, "broken", found.error, "make kernels compiles them again")
    skipped = f"; skipped: {', '.join(found.skipped)}" if found.skipped else ""
    chips = ", ".join(f"sm_{architecture}" for architecture in found.architectures)
    value = f"{found.count} for {chips}{skipped}" if found.count else f"none{skipped}"
    if found.stale:
        return Row(
            "assets", name, "broken", f"{found.stale} have another source than this version: {value}", "make kernels"
        )
    return Row("assets", name, "ok" if found.count else "no", value)
