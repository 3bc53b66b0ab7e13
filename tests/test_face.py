"""`import dive_fast as df`: its names, and that each says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dive_fast

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
NAMES = [name for name in dive_fast.__all__ if name != "__version__"]


@pytest.mark.slow  # it imports torch
@pytest.mark.parametrize("name", NAMES)
def test_each_name_exists_and_is_described(name: str) -> None:
    found = getattr(dive_fast, name)
    assert found.__name__ == name and len(found.__doc__) > 60 and name in dir(dive_fast)
    assert not found.__doc__.startswith(f"{name}(")  # what a dataclass without a docstring has


def test_the_page_lists_the_same_names() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(NAMES)


def test_other_names_raise_as_in_any_module() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dive_fast.no_such_name
