"""The commands of docs/quality.md, in order, on a tiny dataset."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from dive_fast import cli
from dive_fast.io import write_json
from tests.support.quality import PIDS, SIZE, photo

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"


def test_the_pages_commands_run(dataset, real, tmp_path, monkeypatch, capsys):
    shutil.copytree(real.root, tmp_path / "SYSU-MM01")
    market = tmp_path / "Market-1501" / "bounding_box_train"
    market.mkdir(parents=True)
    for pid in PIDS[:2]:
        photo(pid, "cam1", 9).resize(SIZE).save(market / f"{pid}_c1s1_000001_00.jpg")
    engine = tmp_path / "runs" / "engine"
    write_json(engine / "engine.json", {"model_fingerprint": "model-1"})
    write_json(engine / "prompts.json", {"base_fingerprint": "base-1", "adapter_fingerprint": "adapter-1"})
    shutil.move(dataset, tmp_path / "runs" / "pairs")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```\n(dive-fast.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    commands = [shlex.split(line)[1:] for line in block[1].splitlines()]
    assert [words[0] for words in commands] == ["reid", "score", "filter", "compare-sets", "card", "filter"]
    small = ["--steps", "1", "--identities", "2", "--per-modality", "2"]
    for words in commands:
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, *(small if words[0] == "reid" else ["--allow-lost"] if "--min" in words else [])])
        assert not stop.value.code, capsys.readouterr().err
    assert "`adapter-1`" in (tmp_path / "runs" / "pairs" / "README.md").read_text()
