"""A stand-in for `registry.Backend.wins`."""

from __future__ import annotations

from pathlib import Path


def never(folder: Path, device: str, precision: str) -> str:
    """Of a backend that auto does not take."""
    return ""
