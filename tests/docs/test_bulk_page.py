"""The commands of docs/bulk.md, README.md: options that exist, of the types that they take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.cli import parse

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/bulk.md", "README.md"])
def test_commands_exist(page: str) -> None:
    lines = re.findall(r"^dive-fast ([^`\n]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        parse(shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "0"), comments=True))
