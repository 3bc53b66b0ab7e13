"""What a setting may be: bounds, text forms and parts that types carry, and the base that config records check them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from dive_fast.types import InputError


@dataclass(frozen=True)
class AtLeast:
    """The least value of a setting, as in `Annotated[int, AtLeast(1)]`."""

    low: float

    def __str__(self) -> str:
        return f"at least {self.low}"

    def __contains__(self, value: Any) -> bool:
        return bool(value >= self.low)


@dataclass(frozen=True)
class Within:
    """The least and the greatest value of a setting."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"within {self.low}..{self.high}"

    def __contains__(self, value: Any) -> bool:
        return bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class OneOf:
    """The values of a setting where they are known at runtime only; `Literal` holds those that the source lists."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.values)}"

    def __contains__(self, value: Any) -> bool:
        return value in self.values


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
Fraction = Annotated[float, Within(0, 1)]


@dataclass(frozen=True)
class Reads:
    """How the command line reads a setting: `read` converts its text, which has the form `form`, or raises `InputError`."""

    read: Callable[[str], Any]
    form: str


@dataclass(frozen=True)
class Part:
    """How the command line shows a record within a record: option names start with `prefix`; `only` selects fields."""

    prefix: str = ""
    only: tuple[str, ...] = ()


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
    """Returns the choice or bound of `hint` that `value` violates, as a text to follow the setting's name; or None."""
    if value is None:
        return None
    kind, metadata = unwrap(hint)
    if get_origin(kind) is Literal and value not in get_args(kind):
        return f"must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}"
    bounds = (note for note in metadata if isinstance(note, (AtLeast, Within, OneOf)))
    return next((f"must be {bound}, got {value!r}" for bound in bounds if value not in bound), None)


@cache
def type_hints(of: Callable[..., Any]) -> dict[str, Any]:
    """Returns the types of a record's fields or of a function's parameters, with their metadata."""
    return get_type_hints(of, include_extras=True)


class Settings:
    """Base of config records: raises one `InputError` for all values that violate their types' choices or bounds."""

    def __post_init__(self) -> None:
        record: Any = type(self)
        values = {field.name: getattr(self, field.name) for field in fields(record)}
        reasons = {name: violation(type_hints(record)[name], value) for name, value in values.items()}
        if any(reasons.values()):
            raise InputError("; ".join(f"{name} {reason}" for name, reason in reasons.items() if reason))
