"""What a model computes once and a training reads often, in files of a few rows: kill-safe, made by all processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.distributed import first_rank_first, rank_and_size
from dive_fast.io import atomic_path
from dive_fast.models.files import check_safetensors, write_tensors
from dive_fast.progress import ProgressBar
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

    Rows = dict[str, torch.Tensor]

BLOCK = 32  # rows of a file
_BYTES = {"float16": 2, "uint8": 1}
_TYPES = {"float16": "F16", "uint8": "U8"}  # as safetensors calls them
_RUN = "dive_fast"
_OTHER = "{} does not hold what this model and these settings make; delete it and rerun"


@dataclass(frozen=True)
class Blocks:
    """Tensors of `count` rows, which `make` returns for any of them: kept in files called `name`-*.

    `kinds` are the type and the shape of a row of each. `make` must depend on its rows, and on what `run` is the hash of.
    """

    name: str
    run: str
    count: int
    kinds: Mapping[str, tuple[str, tuple[int, ...]]]
    make: Callable[[Sequence[int]], Rows]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.count * sum(prod(shape) * _BYTES[dtype] for dtype, shape in self.kinds.values())

    def kept(self, work: Path, progress: bool) -> Rows:
        """Makes what `work` lacks and returns all; a block of another run raises `InputError`."""
        import torch

        self.missing(work)  # refuses a block of another run before any is made
        rank, size = rank_and_size()
        blocks = self._files(work)
        mine = list(blocks.items())[rank::size]
        for path, rows in ProgressBar(mine, desc=self.name, unit="block", disable=not progress):
            if not path.exists():
                with atomic_path(path) as temporary:
                    write_tensors(temporary, self.make(rows), metadata={_RUN: self.run})
        with first_rank_first():  # all wait for all
            pass
        found = [self._read(path, len(rows)) for path, rows in blocks.items()]
        return {key: torch.cat([part[key] for part in found]) for key in self.kinds}

    def timed(self, most: int) -> tuple[Rows, int, float]:
        """Makes the first rows, `most` and a block's at most; returns them, their number, and the seconds that each took."""
        self.make(range(1))  # the first call takes longer
        few = min(most, self.count, BLOCK)
        begun = time.perf_counter()
        made = self.make(range(few))
        return made, few, (time.perf_counter() - begun) / few

    def missing(self, work: Path) -> int:
        """Returns the number of rows that `work` lacks; a block of another run raises `InputError`."""
        blocks = self._files(work)
        there = {path: rows for path, rows in blocks.items() if path.exists()}
        for path, rows in there.items():
            self._check(path, len(rows))
        return self.count - sum(map(len, there.values()))

    def _files(self, work: Path) -> dict[Path, range]:
        """The rows of each file."""
        firsts = range(0, self.count, BLOCK)
        names = (f"{self.name}-{number:05d}.safetensors" for number in range(len(firsts)))
        return {work / name: range(at, min(at + BLOCK, self.count)) for name, at in zip(names, firsts, strict=True)}

    def _check(self, path: Path, rows: int) -> None:
        """Raises `InputError` for a file of another run or of other tensors; reads its header only."""
        from safetensors import safe_open

        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            run, slices = (file.metadata() or {}).get(_RUN), {key: file.get_slice(key) for key in sorted(file.keys())}
            kinds = {key: (part.get_dtype(), [*part.get_shape()]) for key, part in slices.items()}
        ours = {key: (_TYPES[kind], [rows, *shape]) for key, (kind, shape) in self.kinds.items()}
        if run != self.run or kinds != ours:
            raise InputError(_OTHER.format(path))

    def _read(self, path: Path, rows: int) -> Rows:
        from safetensors.torch import load_file

        self._check(path, rows)
        found: Rows = load_file(path)
        if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
            raise InputError(_OTHER.format(path))
        return found
