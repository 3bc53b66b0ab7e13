"""Records from untrusted JSON, with every field's type checked."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from dive_fast.settings import has_type
from dive_fast.types import InputError, from_dict, shown

R = TypeVar("R")


def checked(cls: type[R], data: object, where: str) -> R:
    """A record, with its nested records and tuples, from untrusted JSON.

    Unknown, missing and wrongly typed fields raise `InputError` naming `where`.
    """
    if not isinstance(data, dict):
        return from_dict(cls, data, where)
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    fields = {}
    for name, value in data.items():
        hint = hints.get(name, Any)
        fields[name] = _from_json(hint, value, f"{where} {name}")
        if not has_type(fields[name], hint):
            raise InputError(f"{where}: {name} is {shown(value)}, which is no {hint}; make the file again")
    return from_dict(cls, fields, where)


def is_inside(name: str) -> bool:
    """Whether a relative POSIX path stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)  # slow, and needed for every line of a manifest


def _from_json(hint: Any, value: Any, where: str) -> Any:
    """`value` with records for objects and tuples for lists, where `hint` wants these."""
    if is_dataclass(hint):
        return checked(hint, value, where)  # type: ignore[arg-type]
    if not isinstance(value, list):
        return value
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = next((option for option in options if get_origin(option) is tuple), None)
    if wanted is None:
        return value
    hints = get_args(wanted)
    each = hints[:1] * len(value) if hints[1:] == (...,) else hints if len(hints) == len(value) else [Any] * len(value)
    return tuple(_from_json(h, item, f"{where} {n}") for n, (h, item) in enumerate(zip(each, value, strict=True)))
