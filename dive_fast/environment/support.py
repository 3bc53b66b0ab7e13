"""What we have run of each engine, by precision and platform: one table, for `doctor` and for docs/engines.md.

Whoever runs a cell for the first time, or again, sets its day and commit here; `python -m dive_fast.environment.support`
prints the page's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dive_fast.engines.registry import BACKENDS

RTX_BUILD, TRITON = "tensorrt-rtx-build", "triton-kernels"  # what is no backend, and has a row in doctor's table
PRECISIONS = tuple(dict.fromkeys(precision for row in BACKENDS.values() for precision in row.precisions))
CPU, GPU = "Linux, x86-64, no GPU", "Linux, x86-64, NVIDIA GPU"
REFUSED = "-"


@dataclass(frozen=True)
class Tried:
    """How far we got with an engine in one precision; `day` and `commit` are those of the code that ran or was built."""

    state: Literal["run here", "built here, never run", "never run"]
    day: str = ""
    commit: str = ""

    def __str__(self) -> str:
        return f"{self.state} ({self.day}, {self.commit})" if self.day else self.state


RUN = Tried("run here", "2026-11-29", "9391764")
BUILT = Tried("built here, never run", "2026-11-29", "9391764")
NEVER = Tried("never run")
LATER = Tried("run here", "2026-11-30", "d13a2d6")
EMULATED = Tried("built here, never run", "2026-11-30", "049cec4")
# Rows are those of doctor; a precision that is left out is refused on that platform.
SUPPORT: dict[str, dict[str, Tried]] = {
    "onnxruntime-cpu": {"fp32": RUN, "fp16": RUN, "bf16": NEVER, "fp8": RUN, "int8": LATER},
    "onnxruntime-cuda": {"fp32": NEVER, "fp16": NEVER, "bf16": NEVER, "fp8": NEVER, "int8": NEVER},
    "onnxruntime-tensorrt": {"fp32": NEVER, "fp16": NEVER, "bf16": NEVER},
    "openvino": {"fp32": LATER, "bf16": LATER, "int8": LATER},
    "tensorrt": {"fp32": NEVER, "fp16": NEVER, "bf16": NEVER, "fp8": NEVER},
    "tensorrt-rtx": {"fp32": NEVER, "fp16": NEVER, "bf16": NEVER, "fp8": NEVER},
    "torch-cpu": {"fp32": RUN, "bf16": RUN},
    "torch-cuda": {"fp32": NEVER, "fp16": NEVER, "bf16": NEVER},
    "torch-compiled-cpu": {"fp32": RUN, "bf16": Tried("run here", "2026-11-25", "fb62cb2")},
    "torch-compiled-cuda": {"fp32": NEVER, "fp16": NEVER, "bf16": NEVER, "fp8": EMULATED},
    RTX_BUILD: {"fp32": BUILT, "fp16": BUILT, "bf16": NEVER, "fp8": BUILT},
    TRITON: {"fp32": NEVER, "fp16": BUILT, "bf16": BUILT},
}


def engine_names() -> tuple[str, ...]:
    """The names of doctor's engine rows."""
    return (*(row.on(device) for row in BACKENDS.values() for device in row.devices), RTX_BUILD, TRITON)


def platform(engine: str) -> str:
    """Where an engine of doctor's table runs."""
    on_cpu = {RTX_BUILD, *(row.on("cpu") for row in BACKENDS.values() if "cpu" in row.devices)}
    return CPU if engine in on_cpu else GPU


def describe(engine: str) -> str:
    """One line of an engine's cells: "fp32, bf16 run here (2026-11-29, 9391764); fp8 never run"."""
    cells = SUPPORT.get(engine, {"all precisions": NEVER})
    by_state = {str(tried): [name for name, other in cells.items() if other == tried] for tried in cells.values()}
    return "; ".join(f"{', '.join(names)} {state}" for state, names in by_state.items())


def markdown() -> str:
    """The table of docs/engines.md."""
    lines = [f"| engine | platform | {' | '.join(PRECISIONS)} |", f"|{'---|' * (2 + len(PRECISIONS))}"]
    for engine in engine_names():
        cells = [str(SUPPORT[engine].get(precision, REFUSED)) for precision in PRECISIONS]
        lines.append(f"| `{engine}` | {platform(engine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
