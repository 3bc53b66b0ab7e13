"""`dive-fast report` as a user types it: a folder or a page, what verify finds on request, and a stop in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import last_json
from tests.support.dataset import make_dataset, raw_records

ROOT = Path(__file__).parents[2]


def test_a_folder_and_a_page(tmp_path, run):
    dataset = make_dataset(tmp_path / "set", shards=2)
    (dataset / raw_records(dataset)[0]["files"]["rgb"]).unlink()
    code, out, error = run(f"report {dataset} --out {tmp_path / 'out'} --workers 1 --json --verify")
    assert code == 0
    summary = last_json(out)
    assert (summary["pairs"], summary["planned"], summary["missing"]) == (16, 24, 1)
    assert summary["report"] == str(tmp_path / "out/index.html")
    assert "note: unfinished: 16 of 24 planned pairs are made" in error
    index = (tmp_path / "out/data/index.js").read_text()
    assert "cam1/0001/0001.png is missing" in index
    assert "8 planned pairs are not made yet" in index
    assert run(f"report {dataset} --out {tmp_path / 'page.html'}")[0] == 0
    assert "16 pairs of 2 identities" in (tmp_path / "page.html").read_text()
    code, _, error = run(f"report {tmp_path} --out {tmp_path / 'none'}")
    assert code == 2
    assert "no plan.json" in error


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(tmp_path, step):
    dataset, out = make_dataset(tmp_path / "set", people=80, pairs=40), tmp_path / "out"
    command = [sys.executable, "-m", "dive_fast.cli", "report", str(dataset), "--out", str(out), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(out.glob("thumbs/0/*.jpg")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "Traceback" not in said
    done = len(list(out.glob("thumbs/0/*.jpg")))
    assert not (out / "index.html").exists()
    summary = step(f"report {dataset} --out {out} --workers 1")
    assert summary["packs"] == 400
    assert summary["packs_made"] == 400 - done
