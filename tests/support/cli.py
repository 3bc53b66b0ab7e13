"""The command line run in this process, and its commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import typer

from dive_fast import cli

Run = Callable[..., tuple[int, str, str]]
COMMANDS = typer.main.get_command(cli.app)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: exit code, standard output, standard error."""

    def runner(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        return int(stop.value.code or 0), *capsys.readouterr()

    return runner


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command that is no group, by the words that call it."""
    if not hasattr(command, "commands"):
        return {path: command}
    return {k: v for name, child in command.commands.items() for k, v in leaves(child, (*path, name)).items()}
