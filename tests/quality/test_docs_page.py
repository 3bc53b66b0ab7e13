"""The commands of docs/quality.md, in order, on a tiny dataset."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.quality import PIDS, photo, save, write_engine

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def test_the_pages_commands_run(dataset, real, tmp_path, monkeypatch, run):
    shutil.copytree(real.root, tmp_path / "SYSU-MM01")
    for pid in PIDS[:2]:
        name = f"Market-1501/bounding_box_train/{pid}_c1s1_000001_00.jpg"
        save(tmp_path / name, photo(pid, "cam1", 9))
    write_engine(tmp_path / "runs" / "engine")
    shutil.move(dataset, tmp_path / "runs" / "pairs")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```\n(dive-fast.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    commands = [line.removeprefix("dive-fast ") for line in block[1].splitlines()]
    assert [line.split()[0] for line in commands] == ["reid", "score", "filter", "compare-sets", "card", "filter"]
    for line in commands:
        small = " --steps 1 --identities 2 --per-modality 2" if line.startswith("reid") else ""
        code, _, error = run(line + (" --allow-lost" if "--min" in line else small))
        assert code == 0, error
    assert "`adapter-1`" in (tmp_path / "runs" / "pairs" / "README.md").read_text()
