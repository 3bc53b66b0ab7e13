"""Command-line options from the signature of a command.

Each parameter is an option; a config record among them gives one option per documented field. The help text of a
parameter is the string in its `Annotated`, that of a field the string below the field; a field without one is no option.
A positional-only parameter is a positional argument. The type decides the rest: bool gives --x and --no-x, `Sequence`
an option that may be repeated, tuple values between commas. `dive_fast.settings` has bounds, converters and prefixes.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args, get_origin

from dive_fast.settings import Bound, Part, Reads, type_hints, unwrap, violation
from dive_fast.types import InputError, shown

C = TypeVar("C")
Route = tuple[str, ...]  # the parameter, then the fields that lead to a value


@dataclass(frozen=True)
class Changes(Generic[C]):
    """The fields of a record that the command line set, for a command that applies them to a preset or a recipe."""

    given: Mapping[Route, Any]

    def apply_to(self, base: C) -> C:
        """Returns `base` with these fields replaced."""
        changed: C = _fill(type(base), base, self.given)
        return changed


@dataclass(frozen=True)
class Option:
    """A parameter of a command or a field of a record: its type, default (MISSING: required) and help text."""

    name: str
    hint: Any
    default: Any
    text: str
    positional: bool = False
    prefix: str = ""
    route: Route = ()

    @property
    def flag(self) -> str:
        name = "_".join(filter(None, [self.prefix, self.name.strip("_")]))
        return name.upper() if self.positional else f"--{name.replace('_', '-')}"

    @property
    def record(self) -> Any:
        """The record type whose fields are the options in place of this one; None for a single option."""
        kind, metadata = unwrap(self.hint)
        kind = get_args(kind)[0] if get_origin(kind) is Changes else kind
        return kind if is_dataclass(kind) and _note(metadata, Reads) is None else None

    @property
    def repeats(self) -> bool:
        return get_origin(unwrap(self.hint)[0]) is Sequence

    def read(self, text: str) -> Any:
        """Converts the text of a value; raises `InputError`, which names the option."""
        return _convert(text, get_args(unwrap(self.hint)[0])[0] if self.repeats else self.hint, self.flag)

    def help(self) -> str:
        """Returns the help text with bounds and default appended."""
        kind, metadata = unwrap(self.hint)
        notes = [note.text for note in metadata if isinstance(note, Bound) and not (note.names or note.hidden)]
        if self.default is MISSING:
            notes += [] if self.positional else ["required"]
        elif kind is bool:
            notes += [f"default on; --no-{self.flag[2:]} turns it off"] if self.default else []
        elif self.default not in (None, "", ()):
            values = self.default if isinstance(self.default, tuple) else (self.default,)
            notes.append(f"default {','.join(map(str, values))}")
        notes += ["may be repeated"] if self.repeats else []
        return " ".join([*self.text.split(), f"[{'; '.join(notes)}]" if notes else ""]).strip()


# The command line acts on it before it calls a command.
QUIET = Option(
    "quiet", bool, False, "Print no progress and no notes; warnings, errors and the result stay.", route=("quiet",)
)


def options(command: Callable[..., Any]) -> list[Option]:
    """Returns all options of a command, in the order of its parameters and their fields, and that of all commands."""
    return [*_leaves(_parameters(command), (), Part()), QUIET]


def call(command: Callable[..., Any], words: list[str], name: str) -> Any:
    """Runs a command with the arguments in `words`; raises `InputError` for those that it does not take."""
    positional, named = parse(command, words, name)
    return command(*positional, **named)


def parse(command: Callable[..., Any], words: list[str], name: str) -> tuple[list[Any], dict[str, Any]]:
    """Returns the positional and the keyword arguments of `command` in `words`."""
    known = {".".join(option.route): option for option in options(command)}
    found, rest = _parser(command, known, name).parse_known_args(words)
    if rest:
        near = get_close_matches(rest[0].partition("=")[0], [option.flag for option in known.values()], 1)
        remedy = f"Do you mean {near[0]}?" if near else f"See {name} --help."
        raise InputError(f"{name} does not take {shown(rest[0])}. {remedy}")
    given = {known[key].route: value for key, value in vars(found).items()}
    missing = [option.flag for option in known.values() if option.default is MISSING and option.route not in given]
    if missing:
        raise InputError(f"{name}: missing {', '.join(missing)}. See {name} --help.")
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for option in _parameters(command):
        inside = {route[1:]: value for route, value in given.items() if route[0] == option.name}
        value = inside.get((), option.default)
        if option.record is not None:
            changes = get_origin(unwrap(option.hint)[0]) is Changes
            value = Changes(inside) if changes else _fill(option.record, option.default, inside)
        if option.positional:
            positional.append(value)
        else:
            named[option.name] = value
    return positional, named


def _parameters(command: Callable[..., Any]) -> Iterator[Option]:
    for name, parameter in inspect.signature(command).parameters.items():
        hint = type_hints(command)[name]
        default = MISSING if parameter.default is parameter.empty else parameter.default
        text = _note(unwrap(hint)[1], str) or ""
        yield Option(name, hint, default, text, parameter.kind is parameter.POSITIONAL_ONLY)


def _fields(record: Any, base: Any) -> Iterator[Option]:
    """Yields the fields of a record, inherited ones last, with the values of `base` as defaults unless it is none."""
    names = [name for cls in record.__mro__ for name in vars(cls).get("__annotations__", ())]
    for field in sorted(fields(record), key=lambda field: names.index(field.name)):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = default if base in (MISSING, None) else getattr(base, field.name)
        yield Option(field.name, type_hints(record)[field.name], default, field_docs(record).get(field.name, ""))


def _leaves(found: Iterator[Option], route: Route, part: Part) -> Iterator[Option]:
    for option in found:
        inner = _note(unwrap(option.hint)[1], Part)
        shown = option.name in part.only if part.only else option.text or inner
        if route and (not shown or option.name in part.skip):
            continue
        here = (*route, option.name)
        if option.record is not None:
            fields_below = _fields(option.record, option.default)
            yield from _leaves(fields_below, here, inner or Part(part.prefix))
        else:
            text = part.texts.get(option.name, option.text)
            yield replace(option, route=here, prefix=part.prefix, text=text)


@cache
def field_docs(record: type) -> dict[str, str]:
    """Returns the string below each field of a record and of its bases."""
    texts: dict[str, str] = {}
    for cls in reversed([one for one in record.__mro__ if is_dataclass(one)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for node, below in pairwise(body):
            match node, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = text
    return texts


def _fill(record: Any, base: Any, given: Mapping[Route, Any]) -> Any:
    """Returns `base`, or a new `record` where it is MISSING, with the given fields replaced, nested ones too."""
    values: dict[str, Any] = {}
    for option in _fields(record, base):
        inside = {route[1:]: value for route, value in given.items() if route[0] == option.name}
        if inside:
            values[option.name] = inside[()] if () in inside else _fill(option.record, option.default, inside)
    return record(**values) if base in (MISSING, None) else replace(base, **values)


def _note(metadata: tuple[Any, ...], kind: type[C]) -> C | None:
    return next((note for note in metadata if isinstance(note, kind)), None)


def _convert(text: str, hint: Any, flag: str) -> Any:
    kind, metadata = unwrap(hint)
    parts = get_args(kind)
    value: Any
    if (reads := _note(metadata, Reads)) is not None:
        try:
            value = reads.read(text)
        except InputError as error:
            raise InputError(f"{flag}: {error}") from error
    elif get_origin(kind) is tuple:
        texts = [one.strip() for one in text.split(",")] if text else []
        if not all(texts) or (parts[-1] is not ... and len(texts) != len(parts)):
            raise InputError(f"{flag} must be {_form(hint)}, without empty parts, got {shown(text)}")
        each = [parts[0]] * len(texts) if parts[-1] is ... else parts
        value = tuple(_convert(one, of, flag) for one, of in zip(texts, each, strict=True))
    elif get_origin(kind) is Literal:
        value = next((one for one in parts if str(one) == text), text)
    else:
        try:
            value = kind(text)
        except ValueError as error:
            needed = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
            raise InputError(f"{flag} must be {needed}, got {shown(text)}") from error
    if reason := violation(hint, value):
        raise InputError(f"{flag} {reason}")
    return value


def _form(hint: Any) -> str:
    """Returns the form of a value for the help, like N or PATH."""
    kind, metadata = unwrap(hint)
    parts = get_args(kind)
    if (reads := _note(metadata, Reads)) is not None:
        return reads.form
    if get_origin(kind) is Sequence:
        return _form(parts[0])
    if get_origin(kind) is tuple:
        return f"{_form(parts[0])},..." if parts[-1] is ... else ",".join(map(_form, parts))
    if get_origin(kind) is Literal:
        return "|".join(map(str, parts))
    if (bound := _note(metadata, Bound)) is not None and bound.names:
        return "|".join(bound.names)
    return {int: "N", float: "X", str: "TEXT", Path: "PATH"}.get(kind, kind.__name__.upper())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See {self.prog} --help.")


def _parser(command: Callable[..., Any], known: Mapping[str, Option], name: str) -> argparse.ArgumentParser:
    """Returns a parser whose namespace holds only the options that were given, under the names of `known`."""
    parser = _Parser(
        name,
        usage=" ".join([name, *(one.flag for one in known.values() if one.positional), "[OPTIONS]"]),
        description=inspect.getdoc(command),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=100),
    )
    for key, option in known.items():
        text = option.help().replace("%", "%%")
        if unwrap(option.hint)[0] is bool:
            parser.add_argument(option.flag, dest=key, action="store_true", help=text)
            parser.add_argument(f"--no-{option.flag[2:]}", dest=key, action="store_false", help=argparse.SUPPRESS)
        elif option.positional:
            nargs = "*" if option.repeats else "?"
            parser.add_argument(key, type=option.read, nargs=nargs, metavar=option.flag, help=text)
        else:
            action, form = "append" if option.repeats else "store", _form(option.hint)
            parser.add_argument(option.flag, dest=key, type=option.read, action=action, metavar=form, help=text)
    return parser
