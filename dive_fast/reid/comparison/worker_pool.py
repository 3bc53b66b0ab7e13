"""A pool of worker processes: two cores train two small models faster than one model with two threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dive_fast.progress import ProgressBar, use_thread_lock

Job = TypeVar("Job")
_POLL_SECONDS = 0.5
_steps_done: Any = None  # in a worker: the counter that it shares with the parent


def run_all(jobs: Sequence[Job], work: Callable[[Job], None], workers: int, total: int | None, progress: bool) -> None:
    """Calls `work` (a module's function) on every job in `workers` processes and raises the first error here.

    Each process gets an equal part of the cores as threads. `total` is the number of steps that all jobs report through
    `count_step`, for the progress bar (None: unknown). On an error or Ctrl-C, and when this process is killed, the processes
    end; what they saved stays.
    """
    context = multiprocessing.get_context("spawn")
    done = context.Value("l", 0)
    threads = max(1, (os.cpu_count() or 1) // workers)
    with (
        context.Pool(workers, _start_worker, (done, threads)) as pool,
        ProgressBar(total=total, desc="reid", unit="step", disable=not progress) as bar,
    ):
        pending = [pool.apply_async(work, (job,)) for job in jobs]  # one job a task: they are few and long
        while pending:
            pending[0].wait(_POLL_SECONDS)
            bar.update(done.value - bar.n)
            for result in [r for r in pending if r.ready()]:
                result.get()
                pending.remove(result)


def count_step() -> None:
    """Adds one to the parent's progress; does nothing outside a worker."""
    if _steps_done is not None:
        with _steps_done.get_lock():
            _steps_done.value += 1


def _start_worker(done: Any, threads: int) -> None:
    import torch

    global _steps_done
    _steps_done = done
    use_thread_lock()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: a killed parent cannot end it, and a rerun would train beside it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
