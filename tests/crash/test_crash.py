"""A few kills of every command that writes; `make crash` does hundreds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from tests.crash.cases import CASES, make_inputs, named
from tests.crash.harness import Case, difference, outcomes

FAST = [case.name for case in CASES if case.name not in ("report", "reid show", "reid compare")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before, tqdm.monitor_interval = tqdm.monitor_interval, 0
    folder = tmp_path_factory.mktemp("crash") / "inputs"
    make_inputs(folder)
    yield folder
    tqdm.monitor_interval = before


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_a_killed_command_loses_and_leaves_nothing(inputs: Path, tmp_path: Path, name: str) -> None:
    found = list(outcomes(named(name), inputs, tmp_path / "work", kills=3, first=2))
    assert found and all(outcome.wrong == "" for outcome in found), found


@pytest.mark.slow
def test_a_command_that_leaves_something_is_caught(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dive_fast.io.is_temporary", lambda name: False)
    case = Case("plan", named("plan").line)
    assert any("left behind" in outcome.wrong for outcome in outcomes(case, inputs, tmp_path / "work", kills=5))


def test_differences_are_named() -> None:
    assert difference({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert difference({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == "left behind: c; lost: a; other: b"
