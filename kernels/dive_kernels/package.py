"""Reads the folder of kernels compiled ahead of time, which `python -m dive_kernels.aot` makes.

The folder holds the index, `kernels.json`, and the files that it names: a cubin for each kernel, and PTX if a plugin
needs it. Reading checks the index's types, limits, file names, sizes and hashes. This file imports the standard library
only; `driver` loads and starts the kernels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from dive_kernels.sources import PACKAGE, source_file, source_hash

FOLDER = "DIVE_KERNELS_CUBINS"  # names another folder; empty means none, and Triton compiles everything
SHIPPED = PACKAGE / "cubins"
INDEX = "kernels.json"
FORMAT = 1
MAKE = "make kernels"
INDEX_LIMIT = 32 << 20  # bytes
FILE_LIMIT = 64 << 20
SHARED_LIMIT = 227 << 10  # bytes a thread block may have on the largest chip (sm_90, sm_100)
SCALARS = ("i32", "i64", "fp32")
POINTERS = ("*fp32", "*fp16", "*bf16", "*i64", "*i32", "*u8", "*fp8e4nv")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
FILE_NAME = re.compile(r"[\w.-]+")
KERNEL = re.compile(r"(dive_kernels(\.\w+)+|\w+/\w+\.cu):\w+")
# What an entry's texts match (None: anything), and the least and most of its numbers.
TEXTS: dict[str, re.Pattern[str] | None] = {
    **{"name": FILE_NAME, "kernel": KERNEL},
    **dict.fromkeys(("op", "dtype", "target", "function"), IDENTIFIER),
    **dict.fromkeys(("source_sha256", "compiler", "ptx_version", "build")),
}
NUMBERS = {
    **{"architecture": (50, 999), "warps": (1, 32), "stages": (0, 64), "null_pointers": (0, 4)},
    **{"shared_bytes": (0, SHARED_LIMIT), "registers": (0, 255), "spill_bytes": (0, 1 << 20)},
}
Constant = int | float | bool | str | None


@dataclass(frozen=True)
class Binary:
    """One file of the folder."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Compilation:
    """What one kernel is compiled from, for one architecture."""

    name: str
    op: str
    dtype: str
    key: dict[str, int]  # what this variant is for: head_dim, channels, ...
    architecture: int  # 90 for compute capability 9.0
    kernel: str  # as `Launch.kernel`
    arguments: tuple[tuple[str, str], ...]  # name and type of each, in order
    constants: dict[str, Constant]
    warps: int
    stages: int
    source_sha256: str

    @property
    def identity(self) -> tuple[Any, ...]:
        """As `Launch.identity`."""
        return identity(self.kernel, self.arguments, self.constants, self.warps, self.stages)


@dataclass(frozen=True)
class Kernel(Compilation):
    """A compiled kernel: its files, how to start it, and what it takes of the chip."""

    target: str  # as the assembler calls it: sm_90a; with an "a" it runs on this architecture alone
    function: str
    shared_bytes: int
    registers: int  # a thread
    spill_bytes: int  # a thread, stores and loads
    null_pointers: int  # to append to the arguments: Triton's scratch memory, which these kernels do not use
    compiler: str
    ptx_version: str
    build: str  # hash of all that the compilation depends on
    cubin: Binary
    ptx: Binary | None = None

    @classmethod
    def from_compilation(cls, source: Compilation, **result: Any) -> Kernel:
        return cls(**{field.name: getattr(source, field.name) for field in fields(Compilation)}, **result)

    def runs_on(self, capability: int) -> bool:
        """Returns whether a chip runs the cubin: CUDA requires the same major version and no smaller minor one.

        A target with an "a" runs on its own chip only.
        """
        newer = self.architecture // 10 == capability // 10 and self.architecture < capability
        return self.architecture == capability or (newer and not self.target.endswith("a"))

    def assembles_for(self, capability: int) -> bool:
        """Returns whether the driver can assemble the PTX: for every newer chip, but not from a target with an "a"."""
        return self.ptx is not None and self.architecture < capability and not self.target.endswith("a")


@dataclass(frozen=True, eq=False)
class Code:
    """A cubin, or PTX that the driver assembles, and what starting its function needs beside the launch."""

    function: str
    image: bytes
    is_ptx: bool = False
    shared_bytes: int = 0  # dynamic
    null_pointers: int = 0


@dataclass(frozen=True)
class Package:
    """A folder of kernels; `skipped` holds what was not built and why."""

    folder: Path
    kernels: tuple[Kernel, ...]
    skipped: tuple[tuple[str, str], ...]

    def find(self, wanted: tuple[Any, ...], capability: int) -> Kernel | None:
        """Returns the kernel of this identity with the nearest cubin that the chip runs.

        If there is none, returns one whose PTX the driver can assemble.
        """
        same = self.matching(wanted)
        fitting = [kernel for kernel in same if kernel.runs_on(capability)]
        fitting = fitting or [kernel for kernel in same if kernel.assembles_for(capability)]
        return max(fitting, key=lambda kernel: kernel.architecture) if fitting else None

    def matching(self, wanted: tuple[Any, ...]) -> list[Kernel]:
        """Returns every architecture's kernel of one identity."""
        return [kernel for kernel in self.kernels if kernel.identity == wanted]

    @property
    def architectures(self) -> list[int]:
        return sorted({kernel.architecture for kernel in self.kernels})

    def read(self, wanted: Binary) -> bytes:
        """Returns the contents of a file of the folder. Raises `ValueError` if the file is not the one in the index."""
        file = self.folder / wanted.name
        try:
            content = file.read_bytes() if file.stat().st_size == wanted.size else b""
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror}); {MAKE} makes it again") from error
        if binary(wanted.name, content) != wanted:
            raise ValueError(
                f"{file}: is not the file that {INDEX} describes (size or hash differ); {MAKE} makes it again"
            )
        return content


def identity(
    kernel: str, arguments: Sequence[tuple[str, str]], constants: Mapping[str, Constant], warps: int, stages: int
) -> tuple[Any, ...]:
    """Returns what distinguishes one compilation from another for the same architecture."""
    written = tuple(sorted((name, repr(value)) for name, value in constants.items()))
    return kernel, tuple((name, kind) for name, kind in arguments), written, warps, stages


def folder() -> Path | None:
    """Returns where to look for kernels compiled ahead of time; None if the user wants none."""
    named = os.environ.get(FOLDER)
    if named == "":
        return None
    return Path(named) if named else SHIPPED


def installed() -> Package | None:
    """Returns the package of this installation, or None if there is none.

    Raises `ValueError` if the package is broken, or named by the user and missing.
    """
    place = folder()
    if place is None or (place == SHIPPED and not (place / INDEX).is_file()):
        return None
    return _read_once(place)


@cache
def has_cuda_python() -> bool:
    return importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.core") is not None


def stale(kernel: Kernel) -> str | None:
    """Returns why a kernel no longer matches its source, with the remedy; None if it does."""
    if not source_file(kernel.kernel).is_file():
        return f"{kernel.name} was compiled from a source that this version does not have; {MAKE} compiles again"
    if source_hash(kernel.kernel) != kernel.source_sha256:
        return f"{kernel.name} was compiled from another {source_file(kernel.kernel).name}; {MAKE} compiles it again"
    return None


def read(place: Path) -> Package:
    """Returns the package in a folder. Raises `ValueError` with the fault of its index."""
    index = place / INDEX
    if not index.is_file():
        raise ValueError(f"{place}: there is no {INDEX}; {MAKE} writes it, or unset {FOLDER}")
    try:
        if index.stat().st_size > INDEX_LIMIT:
            raise ValueError(f"it has {index.stat().st_size} bytes, the limit is {INDEX_LIMIT}")
        data = json.loads(index.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"its format is {data.get('format') if isinstance(data, dict) else None}, not {FORMAT}")
        kernels = tuple(_kernel(entry) for entry in _list(data, "kernels"))
        skipped = tuple((_text(entry, "what"), _text(entry, "why")) for entry in _list(data, "skipped"))
        taken: set[tuple[Any, ...]] = set()
        for kernel in kernels:
            if (kernel.identity, kernel.architecture) in taken:
                raise ValueError(f"{kernel.name} is there twice")
            taken.add((kernel.identity, kernel.architecture))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{index}: no index of compiled kernels ({error}); {MAKE} writes it, or unset {FOLDER}"
        ) from error
    return Package(place, kernels, skipped)


def write(package: Package) -> None:
    """Writes the index atomically; the files that it names must exist."""
    kernels = [json.dumps(asdict(kernel)) for kernel in sorted(package.kernels, key=lambda kernel: kernel.name)]
    skipped = [json.dumps({"what": what, "why": why}) for what, why in package.skipped]
    lists = {"kernels": ",\n".join(kernels), "skipped": ",\n".join(skipped)}
    lines = [f'"{name}": [\n{entries}\n]' for name, entries in lists.items()]
    write_atomically(package.folder / INDEX, f'{{"format": {FORMAT},\n{",".join(lines)}}}\n'.encode())


def write_atomically(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def binary(name: str, content: bytes) -> Binary:
    """Returns how the index describes a file."""
    return Binary(name, len(content), hashlib.sha256(content).hexdigest())


_read_once = cache(read)


@cache
def code(place: Path, wanted: tuple[Any, ...], capability: int) -> Code | str:
    """Returns the code for a launch, or why there is none. Warns of a stale kernel: the user meant it to be used."""
    package = _read_once(place)
    kernel = package.find(wanted, capability)
    if kernel is None:
        others = sorted({found.architecture for found in package.matching(wanted)})
        built = f"only for {', '.join(f'sm_{a}' for a in others)}" if others else "only with other types or constants"
        return f"{place} has {wanted[0]} not for sm_{capability}, {built} ({MAKE} makes it)"
    why = stale(kernel)
    if why is not None:
        warnings.warn(f"{place}: {why}", RuntimeWarning, stacklevel=2)
        return f"{place}: {why}"
    is_ptx = kernel.ptx is not None and not kernel.runs_on(capability)
    image = package.read(kernel.ptx if kernel.ptx is not None and is_ptx else kernel.cubin)
    return Code(kernel.function, image, is_ptx, kernel.shared_bytes, kernel.null_pointers)


def _kernel(entry: object) -> Kernel:
    """Returns one entry of the index after checking every field."""
    if not isinstance(entry, dict):
        raise ValueError(f"an entry is {type(entry).__name__}, not an object")
    unknown = set(entry) - {field.name for field in fields(Kernel)}
    if unknown:
        raise ValueError(f"an entry has unknown fields: {', '.join(sorted(unknown))}")
    key, constants = entry.get("key"), entry.get("constants")
    if not isinstance(key, dict) or not all(type(value) is int for value in key.values()):
        raise ValueError("key must hold integers")
    if not isinstance(constants, dict) or not all(isinstance(v, Constant) for v in constants.values()):
        raise ValueError("constants must hold numbers, strings or null")
    checked: dict[str, Any] = {name: _text(entry, name, pattern) for name, pattern in TEXTS.items()}
    checked |= {name: _number(entry, name, *limits) for name, limits in NUMBERS.items()}
    checked["arguments"] = tuple(_argument(pair) for pair in _list(entry, "arguments"))
    checked["ptx"] = None if entry.get("ptx") is None else _binary(entry["ptx"])
    return Kernel(key=key, constants=constants, cubin=_binary(entry.get("cubin")), **checked)


def _binary(entry: object) -> Binary:
    if not isinstance(entry, dict):
        raise ValueError("cubin and ptx must be objects with name, size and sha256")
    name = _text(entry, "name", FILE_NAME)
    return Binary(name, _number(entry, "size", 1, FILE_LIMIT), _text(entry, "sha256", re.compile("[0-9a-f]{64}")))


def _argument(pair: object) -> tuple[str, str]:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
        raise ValueError(f"an argument must be [name, type], got {pair!r}")
    if pair[1] not in POINTERS + SCALARS:
        raise ValueError(f"argument {pair[0]!r} has type {pair[1]!r}, known are {', '.join(POINTERS + SCALARS)}")
    return pair[0], pair[1]


def _list(entry: Mapping[str, Any], name: str) -> list[Any]:
    value = entry.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {type(value).__name__}")
    return value


def _text(entry: Any, name: str, pattern: re.Pattern[str] | None = None) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, str) or (pattern is not None and not pattern.fullmatch(value)):
        raise ValueError(f"{name} is {value!r}, which is no valid {name}")
    return value


def _number(entry: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    value = entry.get(name)
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(f"{name} is {value!r}, it must be a whole number from {lowest} to {highest}")
    return value
