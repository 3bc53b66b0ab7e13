"""Data for a page from file://, which may run scripts beside it but not read files.

Each script hands one string of JSON or base64 to the page, never code: a manifest's text cannot become a program.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_write

BLOCK = 65_536  # pairs of one column's file: some 350 kB as base64
RECORDS = 256  # pairs of one file of records, which a click loads

_TYPES = {"B": "u1", "H": "<u2", "I": "<u4", "f": "<f4"}


def write_chunk(folder: Path, name: str, value: Any) -> None:
    """Writes `folder/name.js`, which hands `value` to the page as JSON."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    atomic_write(folder / f"{name}.js", f"dive.put({json.dumps(name)},{json.dumps(text)});\n")


def read_chunk(folder: Path, name: str) -> Any:
    """The value in `folder/name.js`, which `write_chunk` wrote."""
    text = (folder / f"{name}.js").read_text(encoding="ascii")
    return json.loads(json.loads("[" + text.removeprefix("dive.put(").removesuffix(");\n") + "]")[1])


def record_chunk(number: int) -> str:
    """The name of chunk `number` of the records; a thousand to a folder."""
    return f"records/{number // 1000}/{number}"


class Columns:
    """Numbers of every pair, one file a block and column; only the current block is in memory.

    `block` is in pairs. `types` maps fixed columns to array type codes; any other name makes an optional float32 column,
    NaN where a pair lacks it, whose blocks exist only where a pair has it.
    """

    def __init__(self, folder: Path, types: Mapping[str, str], block: int) -> None:
        self._folder, self._types, self._most = folder, types, block
        self._block: dict[str, array[Any]] = {}
        self._rows = 0
        self._number = 0
        self.blocks: dict[str, list[int]] = {}

    def append(self, fixed: Mapping[str, int], optional: Mapping[str, float] = MappingProxyType({})) -> None:
        """Adds one pair: a number for every fixed column, any for the optional ones."""
        for name, number in fixed.items():
            self._block.setdefault(name, array(self._types[name])).append(number)
        for name, value in optional.items():
            column = self._block.setdefault(name, array("f"))
            column.extend([np.nan] * (self._rows - len(column)))
            column.append(value)
        self._rows += 1
        if self._rows == self._most:
            self.finish()

    def read(self, name: str, number: int) -> NDArray[Any]:
        """Block `number` of a column, from disk."""
        data = base64.b64decode(read_chunk(self._folder, _column_chunk(name, number)))
        return np.frombuffer(data, _TYPES[self._types.get(name, "f")])

    def names(self) -> Iterator[str]:
        """Every file's name, as for `write_chunk`."""
        return (_column_chunk(name, number) for name, numbers in self.blocks.items() for number in numbers)

    def finish(self) -> None:
        """Writes the block at hand, if it has pairs."""
        for name, column in self._block.items():
            if name not in self._types:
                column.extend([np.nan] * (self._rows - len(column)))
            data = np.asarray(column).astype(_TYPES[column.typecode]).tobytes()
            write_chunk(self._folder, _column_chunk(name, self._number), base64.b64encode(data).decode())
            self.blocks.setdefault(name, []).append(self._number)
        self._block, self._rows, self._number = {}, 0, self._number + 1


def _column_chunk(name: str, number: int) -> str:
    if not re.fullmatch(r"[a-z0-9]+", name):
        raise ValueError(f"a column's name becomes a folder, so not {name!r}")
    return f"columns/{name}/{number}"
