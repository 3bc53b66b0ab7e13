"""Estimates of the memory that training needs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Measures the bytes of tensors that operations in the block create; `peak` is the largest sum alive at once.

    An estimate: tensors from before the block and a kernel's own workspace do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given | self._alive:  # otherwise a view, or written in place
                self._begin(storage)
        return result

    def _begin(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        self._alive.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_iter(values) if isinstance(value, torch.Tensor)]


def tensor_bytes(networks: Iterable[torch.nn.Module]) -> int:
    """Bytes of the networks' parameters and buffers."""
    return sum(t.nbytes for network in networks for t in (*network.parameters(), *network.buffers()))


def optimizer_bytes(parameters: Iterable[torch.nn.Parameter], average: bool) -> int:
    """Bytes of AdamW's two moments of float32 parameters, and of their moving average if `average`."""
    return sum(parameter.numel() for parameter in parameters) * 4 * (3 if average else 2)
