"""Progress of long work on standard error: a bar on a terminal, a line a minute in a log, nothing when quiet."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from dive_fast import words

LINE_SECONDS = 60.0
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turns bars and `log` off in this process, or on again; warnings, errors and results stay."""
    global _quiet
    _quiet = quiet


def log(line: str) -> None:
    """Prints a line about progress to standard error; standard output is for results."""
    if not _quiet:
        write_line(line)


def write_line(text: str) -> None:
    """Prints to standard error on a line of its own, above any bar there."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def use_thread_lock() -> None:
    """Gives this process a lock of its own: tqdm's is a named semaphore, which a killed worker leaves behind."""
    tqdm.set_lock(threading.RLock())


class ProgressBar(tqdm):
    """tqdm's bar; where standard error is no terminal, a line every `LINE_SECONDS` instead."""

    _last_line: float | None = None  # the time of the last line, or of the start
    _last_n: float = 0

    @property
    def _on_terminal(self) -> bool:
        return not self.disable and not _quiet and self.fp.isatty()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Redraws the bar, or writes a line if one is due; returns whether the bar was drawn."""
        if self.fp.isatty() and not _quiet:
            return bool(super().display(msg, pos))
        now = time.monotonic()
        if self._last_line is None:
            self._last_line, self._last_n = now, self.n
        passed = now - self._last_line
        if msg is None and not _quiet and passed >= LINE_SECONDS:
            print(self._line((self.n - self._last_n) / passed if passed else 0.0), file=self.fp, flush=True)
            self._last_line, self._last_n = now, self.n
        return False

    def clear(self, *args: Any, **options: Any) -> None:
        """Clears the bar from a terminal; a log's lines stay."""
        if self._on_terminal:
            super().clear(*args, **options)

    def close(self) -> None:
        """Ends the bar. tqdm ends the line of a bar that it leaves; a log has no such line."""
        self.leave = self._on_terminal and self.leave
        super().close()

    def _line(self, rate: float) -> str:
        """Returns a line like "synth: 1,200 of 8,000 images, 12.0 min, 1.67 a second, 68.0 min left, loss=0.2".

        `rate` is that since the last line: tqdm's own, of the last updates, swings too much to forecast hours.
        """
        total = f" of {self.total:,}" if self.total is not None else ""
        parts = [f"{self.n:,}{total} {words.plural(self.unit)}"]
        parts.append(words.duration(self.format_dict["elapsed"]))
        if rate:
            parts.append(f"{rate:.3g} a second")
            parts += [] if self.total is None else [f"{words.duration((self.total - self.n) / rate)} left"]
        parts += [str(self.postfix)] if self.postfix else []
        return f"{self.desc.removesuffix(': ')}: {', '.join(parts)}"
