"""Records from files that nobody should trust."""

from __future__ import annotations

import math
import types
from dataclasses import is_dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dive_fast.types import InputError, from_dict

R = TypeVar("R")


def checked(cls: type[R], data: object, where: str) -> R:
    """A record, nested ones too, from untrusted JSON; unknown, missing and wrongly typed fields raise `InputError`."""
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    if isinstance(data, dict):
        data = {
            name: checked(hints[name], value, f"{where} {name}") if is_dataclass(hints.get(name)) else value
            for name, value in data.items()
        }
    record = from_dict(cls, data, where)
    for name, hint in hints.items():
        if not _fits(getattr(record, name), hint):
            raise InputError(f"{where}: {name} is {getattr(record, name)!r}, which is no {hint}; make the file again")
    return record


def is_inside(name: str) -> bool:
    """Whether a relative POSIX path stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)  # slow, and asked for every line of a manifest


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, type) and hint is not float:
        return type(value) is hint  # bool is no int
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in arguments
    if kind in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if isinstance(value, dict):
        return kind is dict and all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
    if isinstance(value, tuple):
        if kind is not tuple:
            return False
        wanted = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(wanted) == len(value) and all(_fits(item, hint) for item, hint in zip(value, wanted, strict=True))
    return hint is float and type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
