"""The build farm's script on tiny models: what a nightly job relies on."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dive_fast.models import load_bundle, save_adapter
from tests.support.tiny import tiny_adapter

SCRIPT = Path(__file__).parents[2] / "examples" / "build_farm.py"


def farm(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_one_bad_adapter_stops_no_other_and_a_rerun_continues(tiny_base: Path, tmp_path: Path) -> None:
    adapters, out = tmp_path / "adapters", tmp_path / "engines"
    for name in ("good", "bad"):
        save_adapter(tiny_adapter(load_bundle(tiny_base)), adapters / name)
    (adapters / "bad/lora.safetensors").write_bytes(b"?")
    arguments = ("--base", tiny_base, "--adapters", adapters, "--out", out, "--export", "--rows-max 4 --no-check")
    first = farm(*arguments)
    assert first.returncode == 1 and "1 of 2 adapters are built; failed: bad" in first.stdout
    assert "bad: fuse failed with exit code 2" in first.stderr and "lora.safetensors" in first.stderr
    records = [json.loads(line) for line in (out / "farm.jsonl").read_text().splitlines()]
    ran = [(record["adapter"], record["stage"], record["exit"]) for record in records]
    assert ran == [("bad", "fuse", 2), ("good", "fuse", 0), ("good", "export", 0)]
    assert (out / "good/onnx/engine.json").is_file() and not (out / "bad/onnx").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / "good/onnx").rglob("*")}
    again = farm(*arguments)
    assert again.returncode == 1 and "1 of 2" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (out / "good/onnx").rglob("*")} == before
    assert "is there already" in (out / "good/build.log").read_text()
    assert not list(out.rglob(".fused-*"))


def test_a_folder_without_adapters_and_a_second_farm_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    arguments = ("--base", "pocket", "--adapters", tmp_path / "adapters", "--out", tmp_path / "out")
    empty = farm(*arguments)
    assert empty.returncode == 2 and "holds no adapter folder" in empty.stderr
    (tmp_path / "adapters/one").mkdir()
    (tmp_path / "adapters/one/adapter.json").touch()
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/.lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second = farm(*arguments)
    assert second.returncode == 2 and "another farm builds into" in second.stderr
    assert not (tmp_path / "out/farm.jsonl").exists()
