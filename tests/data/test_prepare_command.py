"""`dive-fast prepare` from the command line: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dive_fast.data.prepared import open_prepared, prepared_images
from tests.support.cli import Run
from tests.support.trees import mixed_trees


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    sysu, market = mixed_trees(tmp_path / "raw")
    return ["--photos", f"sysu:{sysu}", "--photos", f"market:{market},prefix=1"]


def last_line(out: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def test_prepare_with_latents(run: Run, sets: list[str], tiny_base: Path, tmp_path: Path) -> None:
    from dive_fast.models import load_bundle
    from dive_fast.train.prepared import load_prepared

    out = tmp_path / "out"
    (tmp_path / "raw/sysu/cam1/0002/0002.jpg").write_bytes(b"")
    options = f"--min-images 2 --model {tiny_base} --device cpu --shard-size 4 --json".split()
    code, text, error = run("prepare", "--out", out, *sets, *options)
    assert code == 0
    assert "market: 1 images left out, of people with fewer than 2 images, nothing is left of 1 people (10002)" in error
    assert "1 damaged images are left out: sysu/cam1/0002/0002.jpg; prepared.json says why" in text
    assert f"prepared set {out}: 12 images of 4 people in 4 shards, with latents" in text
    summary = last_line(text)
    assert (summary["images"], summary["identities"], summary["shards"], summary["damaged"]) == (12, 4, 4, 1)
    assert summary["dropped"] == [
        {"set": "market", "rule": "of people with fewer than 2 images", "images": 1, "identities": 1}
    ]
    assert summary["read"][0]["published_images"] == 22_258
    shutil.rmtree(tmp_path / "raw")
    bundle = load_bundle(tiny_base)
    loaded = load_prepared(out, bundle)
    assert [s for s, _ in prepared_images(open_prepared(out))] == list(loaded.samples)
    from dive_fast.train.prepared import encoder_fingerprint

    assert summary["latents"] == encoder_fingerprint(bundle)


def test_the_same_command_again_adds_what_is_missing(
    run: Run, sets: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, _ = run("prepare", "--out", out, *sets, "--no-latents")
    assert code == 0
    assert text.splitlines()[-1] == f"prepared set {out}: 14 images of 5 people in 1 shards, without latents"
    code, text, _ = run("prepare", "--out", out, *sets, "--model", tiny_base, "--device", "cpu")
    assert text.splitlines()[-1] == f"prepared set {out}: 14 images of 5 people in 1 shards, with latents"
    code, text, error = run("prepare", "--out", out, *sets, "--no-latents", "--tall")
    assert code == 2
    assert "another prepared set" in error


def test_dry_run_writes_nothing(run: Run, sets: list[str], tmp_path: Path) -> None:
    code, text, error = run("prepare", "--out", tmp_path / "out", *sets, "--no-latents", "--dry-run", "--json")
    assert code == 0
    assert "14 images in 1 shards need at most 1 MB" in text
    assert "sysu    trainval  all     rgb            2       4               395  22,258" in error
    assert not (tmp_path / "out").exists()
    assert last_line(text)["images"] == 14


def test_what_is_refused(run: Run, sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", tmp_path / "out"]
    code, _, error = run("prepare", *out)
    assert code == 2
    assert "--photos" in error
    code, _, error = run("prepare", *out, "--photos", "cuhk03:M")
    assert code == 2
    assert "sysu, regdb, llcm" in error
    code, _, error = run("prepare", *out, *sets[:3], sets[3].removesuffix(",prefix=1"))
    assert code == 2
    assert "set sysu and in set market (0002)" in error
    (tmp_path / "raw/sysu/cam1/0002/0002.jpg").write_bytes(b"")
    code, _, error = run("prepare", *out, *sets, "--no-latents", "--strict")
    assert code == 2
    assert "sysu/cam1/0002/0002.jpg is not an image" in error
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))  # type: ignore[attr-defined]
    code, _, error = run("prepare", "--out", tmp_path / "other", *sets, "--no-latents")
    assert code == 1
    assert "other needs 1 MB, the disk has 1 MB free" in error
