"""The command line run in this process, and its commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from dive_fast import cli, options

NEXT = "next: "
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: exit code, standard output, standard error.

    The first argument may hold several words, as in a shell; further arguments are one word each.
    """

    def runner(line: str = "", *words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*shlex.split(line), *map(str, words)])
        out, error = capsys.readouterr()
        following(out)  # raises for one that the command line does not take
        return int(stop.value.code or 0), out, error

    return runner


@pytest.fixture
def step(run: Run) -> Callable[..., dict[str, Any]]:
    """Runs a command line as `run`, which must succeed, and returns its line of JSON."""

    def stepper(line: str, *words: object) -> dict[str, Any]:
        code, out, error = run(line, *words, "--json")
        assert code == 0, error
        return last_json(out)

    return stepper


def following(out: str) -> list[str]:
    """Returns the words of the command that a command's output names as the next, which must parse; [] if it names none."""
    named = [line.removeprefix(NEXT) for line in out.splitlines() if line.startswith(NEXT)]
    assert len(named) <= 1
    if not named or named[0].startswith("the same command"):
        return []
    words = shlex.split(named[0])[1:]
    parse(words)
    return words


def last_json(out: str) -> dict[str, Any]:
    """Returns the JSON in the last line of a command's output."""
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def function_of(command: str) -> Callable[..., Any]:
    """Returns the function of a command, like "world make"."""
    module, function = cli.locate(command)
    found: Callable[..., Any] = getattr(import_module(f"dive_fast.commands.{module}"), function)
    return found


def parse(words: list[str]) -> dict[str, Any]:
    """Returns the keyword arguments of a command line, like ["world", "make", "--out", "w"], without running it."""
    command = words[0] if words[0] in cli.COMMANDS else " ".join(words[:2])
    return options.parse(function_of(command), words[len(command.split()) :], command)[1]
