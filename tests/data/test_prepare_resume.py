"""Preparing that is stopped: by a kill, a damaged image, a disk that refuses; and who may write into a folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dive_fast.data.prepare import PreparePlan, check_space, claimed, finished_shards, space_needed
from dive_fast.types import DiveError, InputError
from tests.support.preparing import break_file, contents_of, plan_of, prepare
from tests.support.refusals import refused
from tests.support.trees import contents, photo


def test_strict_stops_and_a_repair_is_taken_up(trees: Path, tmp_path: Path) -> None:
    whole = (trees / "sysu/cam3/0002/0001.jpg").read_bytes()
    cut = break_file(trees / "sysu/cam3/0002/0001.jpg")
    plan, strict = plan_of(trees), plan_of(trees, strict=True)
    refused(r"image sysu/cam3/0002/0001\.jpg is damaged", prepare, strict, tmp_path / "out")
    assert finished_shards(tmp_path / "out", plan) == {0}
    assert prepare(plan, tmp_path / "out")["images"] == 13
    refused(r"0001\.jpg is damaged", prepare, strict, tmp_path / "out")
    cut.write_bytes(whole)
    assert prepare(strict, tmp_path / "out")["images"] == 14
    assert contents(tmp_path / "out") == contents_of(plan, tmp_path / "undisturbed")


def test_a_rerun_does_nothing(trees: Path, tmp_path: Path) -> None:
    plan, packed = plan_of(trees), []
    prepare(plan, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/shards").iterdir()}
    prepare(plan, tmp_path / "out", progress=packed.append)
    assert not packed
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/shards").iterdir()} == before


@pytest.mark.slow
def test_killed_anywhere_a_rerun_ends_the_same(trees: Path, tmp_path: Path) -> None:
    """A child process is killed at some Python call or other, 14 times; each time a rerun completes its folder."""
    plan = plan_of(trees)
    expected = contents_of(plan, tmp_path / "undisturbed")
    calls = _calls_until_killed(plan, tmp_path / "whole", None)
    states = set()
    for i in range(14):
        out = tmp_path / f"killed{i}"
        _calls_until_killed(plan, out, calls * i // 14)
        states.add(tuple(contents(out)) if out.exists() else ())
        prepare(plan, out)
        assert contents(out) == expected
    assert len(states) >= 5  # it was killed in as many different states


def _calls_until_killed(plan: PreparePlan, out: Path, limit: int | None) -> int:
    """Prepares in a child process that kills itself at its call number `limit`; gives the calls of one that may end."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def counting(*_: Any) -> None:
            nonlocal count
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(counting)
            prepare(plan, out)
            sys.setprofile(None)
            os.write(write, str(count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) if limit else status == 0
    return int(text or 0)


@pytest.mark.parametrize("lost", ["shards/00001.tar", "shards/00001.json", "prepared.json"])
def test_what_is_lost_is_made_again(trees: Path, tmp_path: Path, lost: str) -> None:
    plan = plan_of(trees)
    expected = contents_of(plan, tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    assert contents_of(plan, tmp_path / "out") == expected


def test_a_folder_is_for_one_set(trees: Path, tmp_path: Path) -> None:
    prepare(plan_of(trees), tmp_path / "out")
    refused("another prepared set.*--out", prepare, plan_of(trees, shard_size=4), tmp_path / "out")
    photo(trees / "sysu/cam1/0001/0003.jpg")
    refused("another prepared set", prepare, plan_of(trees), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    refused("mine holds other files", prepare, plan_of(trees), tmp_path / "mine")
    refused("is a file.*--out", prepare, plan_of(trees), tmp_path / "mine/thesis.tex")
    refused("lies in .*sysu", prepare, plan_of(trees), trees / "sysu/prepared")


def test_two_runs_do_not_share_a_folder(trees: Path, tmp_path: Path) -> None:
    plan = plan_of(trees)
    with claimed(tmp_path / "out", plan), pytest.raises(InputError, match="another run .*out"):
        prepare(plan, tmp_path / "out")


def test_space_is_looked_at_before(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(trees)
    needed = space_needed(plan, set())
    assert space_needed(plan, {0, 1, 2}) == 0
    prepare(plan, tmp_path / "out")
    written = sum(p.stat().st_size for p in (tmp_path / "out/shards").iterdir())
    assert written < needed < 2 * written
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10_000_000))  # type: ignore[attr-defined]
    check_space(tmp_path / "new/out", 10_000_000)
    refused(r"new/out needs 20 MB.* 10 MB", check_space, tmp_path / "new/out", 20_000_000, error=DiveError)


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "the disk is full; free space"), (errno.EROFS, "file system is read-only")]
)
def test_a_disk_that_refuses(
    number: int, sentence: str, trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(trees)
    original, calls = tarfile.TarFile.addfile, []

    def refuse(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 13:  # in the second shard
            raise OSError(number, os.strerror(number))
        original(*arguments)

    monkeypatch.setattr(tarfile.TarFile, "addfile", refuse)
    refused(sentence, prepare, plan, tmp_path / "out", error=DiveError)
    monkeypatch.undo()
    assert finished_shards(tmp_path / "out", plan) == {0}
    assert sorted(contents(tmp_path / "out")) == ["plan.json", "shards/00000.json", "shards/00000.tar"]
    assert contents_of(plan, tmp_path / "out") == contents_of(plan, tmp_path / "undisturbed")
