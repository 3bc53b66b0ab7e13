"""Holds kernels to their budgets: registers by architecture, blocks a multiprocessor, no spills. CI runs it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dive_kernels.chips import blocks_of
from dive_kernels.package import Kernel

STEP, MOST = 8, 255  # registers a thread: chips hand them out in steps of 8, up to 255
# Blocks that a multiprocessor must hold, by kernel and architecture: with one alone, nothing runs while it waits.
BLOCKS = {("attention.attention_kernel", 90): 2, ("geglu.geglu_kernel", 90): 2}
BUDGETS = Path(__file__).with_name("budgets.json")


def load() -> dict[str, dict[str, int]]:
    """Returns the limits of registers a thread, by kernel ("op.function") and architecture ("90")."""
    budgets: dict[str, dict[str, int]] = json.loads(BUDGETS.read_text(encoding="utf-8"))
    return budgets


def name_of(kernel: Kernel) -> str:
    return f"{kernel.op}.{kernel.function}"


def used(kernels: Iterable[Kernel]) -> dict[str, dict[str, int]]:
    """Returns the most registers that any variant takes, rounded up to `STEP`, as budgets.json has them."""
    most: dict[str, dict[str, int]] = {}
    for kernel in sorted(kernels, key=lambda kernel: (name_of(kernel), kernel.architecture)):
        chips = most.setdefault(name_of(kernel), {})
        taken = min(-(-kernel.registers // STEP) * STEP, MOST)
        chips[str(kernel.architecture)] = max(taken, chips.get(str(kernel.architecture), 0))
    return most


def excesses(kernels: Iterable[Kernel], budgets: dict[str, dict[str, int]]) -> list[str]:
    """Names every kernel that spills, exceeds its budget, has none, or lets too few blocks in, with figure and limit."""
    found = []
    for kernel in kernels:
        limit = budgets.get(name_of(kernel), {}).get(str(kernel.architecture))
        if kernel.spill_bytes:
            found.append(f"{kernel.name} spills {kernel.spill_bytes} bytes a thread, the limit is 0")
        if limit is None:
            found.append(f"{kernel.name} takes {kernel.registers} registers, {BUDGETS.name} has no limit for it")
        elif kernel.registers > limit:
            found.append(f"{kernel.name} takes {kernel.registers} registers, the limit is {limit}")
        blocks = blocks_of(kernel.architecture, kernel.warps, kernel.registers, kernel.shared_bytes)
        least = BLOCKS.get((name_of(kernel), kernel.architecture), 1)
        if blocks < least:
            found.append(f"{kernel.name} lets {blocks} block a multiprocessor run, the limit is {least}")
    return found
