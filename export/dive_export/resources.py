"""How long a step took and how much memory the process held meanwhile."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

STATM = Path("/proc/self/statm")
INTERVAL = 0.05  # seconds between samples; the exporter's peaks last longer


@dataclass
class Resources:
    """A context manager that measures `seconds`, the block's wall time, and `peak_mb`, its largest resident set.

    The kernel's peak of the process never falls, so this samples. Without Linux's /proc `peak_mb` stays None.
    """

    seconds: float = 0.0
    peak_mb: float | None = None

    def __enter__(self) -> Resources:
        self._begun = time.monotonic()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        self.seconds = time.monotonic() - self._begun

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") if STATM.is_file() else 0
        while page:
            resident = int(STATM.read_text().split()[1]) * page / 1e6
            self.peak_mb = max(self.peak_mb or 0.0, resident)
            if self._over.wait(INTERVAL):
                break
