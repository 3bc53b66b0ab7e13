"""How long a step took and how much memory the process held meanwhile."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Resources:
    """A context manager that measures `seconds`, the block's wall time, and `peak_mb`, its largest resident set.

    Entering resets the kernel's peak of the process, so blocks are not nested. Where Linux's /proc does not allow that,
    `peak_mb` stays None.
    """

    seconds: float = 0.0
    peak_mb: float | None = None

    def __enter__(self) -> Resources:
        try:
            CLEAR.write_text("5")  # proc(5): the peak becomes the present size
            self._reset = True
        except OSError:
            self._reset = False
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._begun
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if self._reset else None
        self.peak_mb = None if found is None else int(found[1]) * 1024 / 1e6
