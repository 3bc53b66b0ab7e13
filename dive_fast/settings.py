"""What a setting may be: bounds, text forms and parts that types carry, and the base that config records check them by."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from dive_fast.types import InputError, shown


@dataclass(frozen=True)
class Bound:
    """The values that a setting may have, as in `Annotated[int, AtLeast(1)]`; `text` describes them, `names` lists them.

    The help leaves out a `hidden` one.
    """

    text: str
    holds: Callable[[Any], bool]
    names: Collection[str] = ()
    hidden: bool = False

    def __str__(self) -> str:
        return " ".join([self.text, ", ".join(self.names)]).strip()


def AtLeast(low: float) -> Bound:
    return Bound(f"at least {low}", lambda value: bool(value >= low))


def AtMost(high: int) -> Bound:
    """A bound that no one reaches by intention; the help does not mention it."""
    return Bound(f"at most {high}", lambda value: bool(value <= high), hidden=True)


def Above(low: float) -> Bound:
    return Bound(f"above {low}", lambda value: bool(value > low))


def Within(low: float, high: float) -> Bound:
    return Bound(f"within {low}..{high}", lambda value: bool(low <= value <= high))


def OneOf(names: Collection[str]) -> Bound:
    """Bounds by names that are known at runtime only, like those of a registry; `Literal` holds those in the source."""
    return Bound("one of", lambda value: value in names, names)


MOST = 10**9  # of anything that is counted: more would never end
PositiveInt = Annotated[int, AtLeast(1), AtMost(MOST)]
NonNegativeInt = Annotated[int, AtLeast(0), AtMost(2**63 - 1)]  # seeds, too
NonNegativeFloat = Annotated[float, AtLeast(0)]
PositiveFloat = Annotated[float, Above(0)]
Fraction = Annotated[float, Within(0, 1)]


@dataclass(frozen=True)
class Reads:
    """How the command line reads a setting: `read` converts its text, which has the form `form`, or raises `InputError`."""

    read: Callable[[str], Any]
    form: str


@dataclass(frozen=True)
class Part:
    """How the command line shows a record: option names start with `prefix`; `only` and `skip` select fields.

    `texts` are helps of fields that mean something else there.
    """

    prefix: str = ""
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict, hash=False)


def image_size(text: str) -> tuple[int, int]:
    """Returns (height, width) of "512x256"; raises `InputError` for any other form."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise InputError(f"an image size is HEIGHTxWIDTH, as 512x256, got {shown(text)}")
    return int(match[1]), int(match[2])


ImageSize = Annotated[tuple[int, int], Reads(image_size, "HEIGHTxWIDTH")]


def unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the type in `hint`, without `None` and `Annotated`, and the metadata of `Annotated`."""
    metadata: tuple[Any, ...] = ()
    while True:
        parts = get_args(hint)
        if get_origin(hint) is Annotated:
            hint, metadata = parts[0], (*metadata, *parts[1:])
        elif get_origin(hint) in (Union, UnionType) and NoneType in parts and len(parts) == 2:
            hint = next(part for part in parts if part is not NoneType)
        else:
            return hint, metadata


def violation(hint: Any, value: Any) -> str | None:
    """Returns what `hint` requires and `value` is not, as a text to follow the setting's name; None if `value` is valid."""
    kind, metadata = unwrap(hint)
    if not has_type(value, hint):
        return f"must be {_describe(kind)}, got {shown(value)}"
    broken = [one for one in metadata if isinstance(one, Bound) and value is not None and not one.holds(value)]
    return f"must be {broken[0]}, got {shown(value)}" if broken else None


def has_type(value: Any, hint: Any) -> bool:
    """Whether `value`, and what is in it, is of the type `hint`; bools are no numbers, NaN is none either."""
    if type(value) is hint and hint is not float:  # most values of the millions of records in a manifest
        return True
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return has_type(value, parts[0])
    if origin in (Union, UnionType):
        return any(has_type(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        number: Any = value
        fits = isinstance(value, Real) and not isinstance(value, bool)
        return fits and bool(
            abs(number) <= sys.float_info.max or abs(number) == math.inf
        )  # no NaN, no huge whole number
    if origin is list:
        return isinstance(value, list) and all(has_type(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            has_type(k, parts[0]) and has_type(v, parts[1]) for k, v in value.items()
        )
    if origin is not tuple:
        return hint is Any or isinstance(value, origin or hint)
    if not isinstance(value, tuple):
        return False
    each = parts[:1] * len(value) if parts[-1] is ... else parts
    return len(value) == len(each) and all(map(has_type, value, each))


def _describe(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) is tuple:
        return f"a list of {_describe(unwrap(parts[0])[0])}" if parts[-1] is ... else f"{len(parts)} values"
    return {int: "a whole number", float: "a number", str: "a text"}.get(kind, getattr(kind, "__name__", str(kind)))


@cache
def type_hints(of: Callable[..., Any]) -> dict[str, Any]:
    """Returns the types of a record's fields or of a function's parameters, with their metadata."""
    return get_type_hints(of, include_extras=True)


class Settings:
    """Base of config records: raises one `InputError` for all values outside their fields' types, choices and bounds."""

    def __post_init__(self) -> None:
        record: Any = type(self)
        values = {field.name: getattr(self, field.name) for field in fields(record)}
        reasons = {name: violation(type_hints(record)[name], value) for name, value in values.items()}
        if any(reasons.values()):
            raise InputError("; ".join(f"{name} {reason}" for name, reason in reasons.items() if reason))
