"""`dive-fast prepare` from the command line: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from dive_fast.data.prepared import open_prepared, prepared_images
from dive_fast.words import size
from tests.support.cli import Run, following, last_json
from tests.support.trees import mixed_trees


@pytest.fixture
def command(tmp_path: Path) -> str:
    """Prepares the mixed trees into tmp_path/out."""
    sysu, market = mixed_trees(tmp_path / "raw")
    return f"prepare --out {tmp_path / 'out'} --photos sysu:{sysu} --photos market:{market},prefix=1"


def test_prepare_with_latents(run: Run, command: str, tiny_base: Path, tmp_path: Path) -> None:
    from dive_fast.models import load_bundle
    from dive_fast.train.prepared import encoder_fingerprint, load_prepared

    out = tmp_path / "out"
    (tmp_path / "raw/sysu/cam1/0002/0002.jpg").write_bytes(b"")
    code, text, error = run(f"{command} --min-images 2 --model {tiny_base} --device cpu --shard-size 4 --json")
    assert code == 0
    assert "market: 1 image left out, of people with fewer than 2 images, nothing is left of 1 person (10002)" in error
    assert "1 damaged image left out: sysu/cam1/0002/0002.jpg; prepared.json says why" in text
    assert f"prepared set {out}: 12 images of 4 people in 4 shards, with latents" in text
    summary = last_json(text)
    assert (summary["images"], summary["identities"], summary["shards"], summary["damaged"]) == (12, 4, 4, 1)
    assert summary["dropped"] == [
        {"set": "market", "rule": "of people with fewer than 2 images", "images": 1, "identities": 1}
    ]
    assert summary["read"][0]["published_images"] == 22_258
    shutil.rmtree(tmp_path / "raw")
    bundle = load_bundle(tiny_base)
    loaded = load_prepared(out, bundle)
    assert [s for s, _ in prepared_images(open_prepared(out))] == list(loaded.samples)
    assert summary["latents"] == encoder_fingerprint(bundle)


def test_the_same_command_again_adds_what_is_missing(run: Run, command: str, tiny_base: Path, tmp_path: Path) -> None:
    done = f"prepared set {tmp_path / 'out'}: 14 images of 5 people in 1 shard"
    code, text, _ = run(f"{command} --no-latents")
    assert code == 0 and f"{done}, without latents" in text and "finished by" not in text
    code, text, _ = run(f"{command} --model {tiny_base} --device cpu")
    assert f"{done}, with latents" in text and "finished by" not in text
    out = str(tmp_path / "out")
    learn = ["personalize", "--prepared", out, "--model", str(tiny_base), "--out", str(tmp_path / "adapter")]
    assert following(text) == learn
    _, text, _ = run(f"{command} --model {tiny_base} --device cpu")
    assert "finished by an earlier run" in text and following(text) == learn
    code, text, error = run(f"{command} --no-latents --tall")
    assert code == 2
    assert "another prepared set" in error


def test_dry_run_writes_nothing(run: Run, command: str, tmp_path: Path) -> None:
    code, text, error = run(f"{command} --no-latents --dry-run --json")
    assert code == 0
    assert f"14 images in 1 shard need at most {size(last_json(text)['bytes'])}" in text
    assert "sysu    trainval  all     rgb            2       4               395  22,258" in error
    assert not (tmp_path / "out").exists()
    assert last_json(text)["images"] == 14


def test_dry_run_forecasts_the_time_to_encode(
    run: Run, command: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that ticks 86,400 s a call: a day for the timed photos, so two days and more for all 14."""
    (tmp_path / "raw/sysu/cam1/0002/0002.jpg").write_bytes(b"")  # a damaged one stops no forecast
    ticks = count(0, 86_400)
    monkeypatch.setattr("dive_fast.train.prepared.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr("dive_fast.train.prepared._TIMED", 7)
    code, text, _ = run(f"{command} --model {tiny_base} --device cpu --dry-run --json")
    assert code == 0
    seconds = last_json(text)["encode_seconds"]
    assert seconds in (86_400 * 14 / 7, 86_400 * 14 / 6)  # with the damaged photo among the seven, or not
    assert f"about {seconds / 86_400:.1f} days to encode" in text
    assert not (tmp_path / "out").exists()


def test_what_is_refused(run: Run, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(line: str, part: str, wanted: int = 2) -> None:
        code, _, error = run(line)
        assert code == wanted
        assert part in error

    refused("prepare --out x", "--photos")
    refused("prepare --out x --photos cuhk03:M", "sysu, regdb, llcm")
    refused(command.removesuffix(",prefix=1"), "set sysu and in set market (0002)")
    (tmp_path / "raw/sysu/cam1/0002/0002.jpg").write_bytes(b"")
    refused(f"{command} --no-latents --strict", "sysu/cam1/0002/0002.jpg is not an image")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))  # type: ignore[attr-defined]
    refused(f"{command} --no-latents --out {tmp_path / 'other'}", "the disk has 10 B free", 1)
