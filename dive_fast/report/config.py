"""The settings of `dive-fast report`."""

from __future__ import annotations

from dataclasses import dataclass

from dive_fast.settings import PositiveInt, Settings


@dataclass(frozen=True)
class ReportConfig(Settings):
    """What a gallery, or a single page, shows and how many processes make it."""

    workers: PositiveInt | None = None
    """Processes that make the gallery's thumbnails; by default up to 4."""
    people: PositiveInt = 24
    """Identities that a single page shows."""
    pairs: PositiveInt = 4
    """Pairs of each identity that a single page shows."""
