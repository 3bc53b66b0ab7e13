"""A few kills of every command that writes; `make crash` does hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from dive_fast import cli, io
from tests.crash.cases import CASES, make_inputs, named
from tests.crash.harness import Case, difference, outcomes

FAST = [case.name for case in CASES if case.name not in ("report", "reid show", "reid compare")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash") / "inputs"
    make_inputs(folder)
    return folder


def untidy(words: list[str]) -> None:
    """The commands when nothing counts as a temporary of a dead process."""
    io.is_temporary = lambda name: False
    cli.main(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_a_killed_command_loses_and_leaves_nothing(inputs: Path, tmp_path: Path, name: str) -> None:
    found = list(outcomes(named(name), inputs, tmp_path / "work", kills=3, first=2))
    assert found and all(outcome.wrong == "" for outcome in found), found


@pytest.mark.slow
def test_a_command_that_leaves_something_is_caught(inputs: Path, tmp_path: Path) -> None:
    case = Case("plan", named("plan").line, command=untidy)
    assert any("left behind" in outcome.wrong for outcome in outcomes(case, inputs, tmp_path / "work", kills=5))


def test_differences_are_named() -> None:
    assert difference({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert difference({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == "left behind: c; lost: a; other: b"
