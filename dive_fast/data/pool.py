"""Work on many items by a few threads, results in order, never more than a window of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 4
WINDOW = 64


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with its result, in the items' order; the first failure is raised once it is its turn."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="dive-photos") as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        remaining = iter(items)
        try:
            for item in islice(remaining, WINDOW):
                waiting.append((item, pool.submit(work, item)))
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
                waiting.extend((item, pool.submit(work, item)) for item in islice(remaining, 1))
        finally:
            for _, future in waiting:
                future.cancel()
