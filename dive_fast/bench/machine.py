"""What every results file says of where, on what and by which code it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "dive-fast",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "triton",
    "numpy",
    "pillow",
)
SOURCE = Path(__file__).resolve().parents[2]
NO_CHECKOUT = "not a git checkout"


def processor() -> str:
    """The CPU's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit(folder: Path = SOURCE) -> str:
    """The commit that is checked out in `folder`, "-dirty" behind it where files of the checkout differ from it."""
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
    except FileNotFoundError:  # no git on this machine
        return NO_CHECKOUT
    return found.stdout.strip() or NO_CHECKOUT


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, Any]:
    """CPU, cores, threads and, with device "cuda", the GPU, its memory and capability."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, Any] = {"cpu": processor(), "cores": cores, "threads": torch.get_num_threads(), "device": device}
    if device == "cuda":
        chip = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {
            "gpu": chip.name,
            "gpu memory GB": round(chip.total_memory / 1e9, 1),
            "capability": f"{chip.major}.{chip.minor}",
            "cuda": torch.version.cuda,
        }
    return found
