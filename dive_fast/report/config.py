"""The settings of `dive-fast report`."""

from __future__ import annotations

from dataclasses import dataclass

from dive_fast.types import InputError


@dataclass(frozen=True)
class ReportConfig:
    """What a gallery, or a single page, shows and how many processes make it."""

    workers: int | None = None
    """Processes that make the gallery's thumbnails; by default up to 4."""
    people: int = 24
    """Identities that a single page shows."""
    pairs: int = 4
    """Pairs of each identity that a single page shows."""

    def __post_init__(self) -> None:
        for name in ("workers", "people", "pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
