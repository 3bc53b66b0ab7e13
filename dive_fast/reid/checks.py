"""Checks of config records: every field has its type, numbers are within their bounds."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dive_fast.types import InputError


def check_fields(config: Any, **bounds: tuple[float, float | None]) -> None:
    """Raises `InputError` for the first field of a dataclass with a value of another type or outside its bounds.

    `bounds` maps a field to its lowest and highest value, both allowed; None is no limit. A field of None is not compared.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise InputError(f"{name} must be {_describe(hint)}, got {value!r}")
        if name in bounds and value is not None:
            low, high = bounds[name]
            if not (low <= value and (high is None or value <= high)):
                limits = f"at least {low}" if high is None else f"within {low}..{high}"
                raise InputError(f"{name} must be {limits}, got {value}")


def _fits(value: Any, hint: Any) -> bool:
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is tuple:
        kinds = options[:1] * len(value) if options[-1] is Ellipsis and isinstance(value, tuple) else options
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    """ "one of 'gem', 'avg'", "int or None", "tuple of (float, float)"."""
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_describe, options))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, options))}"
    if get_origin(hint) is tuple:
        parts = [_describe(option) for option in options if option is not Ellipsis]
        return f"tuple of {parts[0]}" if options[-1] is Ellipsis else f"({', '.join(parts)})"
    return "None" if hint is type(None) else str(hint.__name__)
