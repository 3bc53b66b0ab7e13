"""JSON that others wrote: read from untrusted files, broken and doubtful ones refused. Standard library only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dive_fast.io import POINTER, brief, decode_text, is_pointer
from dive_fast.types import InputError

_DEEPEST = 50  # nested lists and objects; no file of ours, of diffusers or of PEFT has ten
_DOUBTFUL = re.compile(r"[0-9]{20}|[eE]\+?[0-9]{3}|NaN|Infinity|\\u[dD][89a-fA-F]")  # in all that `_parse` refuses


def read_json(path: Path | str, what: str, infinite: bool = False) -> Any:
    """Parsed JSON of an untrusted file; a missing or broken one raises `InputError` that names `what`.

    `parse_json` says what counts as broken.
    """
    path = Path(path)
    with _open_file(path, what) as stream:
        data = stream.read()
    try:
        return parse_json(data, infinite)
    except ValueError as error:
        reason = f"is not valid JSON ({brief(error, 80)}); make it again"
        raise InputError(f"{what}: {path} {POINTER if is_pointer(data) else reason}") from error


def parse_json(data: bytes, infinite: bool = False) -> Any:
    """Returns the value of JSON in UTF-8, with or without a byte-order mark, or in UTF-16 with it.

    Raises `ValueError` for other text, for more than 50 levels, and for what programs read differently or cannot write:
    whole numbers of more than 64 bits, numbers that are not finite (`infinite` allows them) and halves of characters.
    """
    text = decode_text(data)
    try:
        value = _parse(text, infinite) if _DOUBTFUL.search(text) else json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(value)
    return value


def _parse(text: str, infinite: bool) -> Any:
    def whole(digits: str) -> int:
        if len(digits.lstrip("-")) > 20:
            raise ValueError(f"a whole number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number) and not infinite:
            raise ValueError(f"a number that is not finite: {brief(digits, 20)}")
        return number

    value = json.loads(text, parse_int=whole, parse_float=real, parse_constant=real)
    json.dumps(value, ensure_ascii=False).encode()  # half of a character has no bytes
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        nodes = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list))
        level = [child for children in nodes for child in children if isinstance(child, dict | list)]
    if level:
        raise ValueError("nested too deep")


def read_jsonl(path: Path | str, what: str) -> Iterator[Any]:
    """Streams the values of a JSON-lines file; a broken line raises `InputError` with its number."""
    path = Path(path)
    with _open_file(path, what) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                value = parse_json(line)
            except ValueError as error:
                where = f"{path} line {number}"
                raise InputError(f"{what}: {where} is not valid JSON; delete the file and rerun") from error
            yield value


@contextmanager
def _open_file(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Opens a file, but no folder, pipe or device, which may never end; else raises `InputError`."""
    try:
        if path.exists() and not path.is_file():
            kind = "directory" if path.is_dir() else "pipe or device"
            raise InputError(f"{what}: {path} is a {kind}, not a file; put the file itself there")
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise InputError(f"{what}: {path} {reason}") from error
