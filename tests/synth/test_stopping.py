"""Runs that are stopped: killed, interrupted, on a full or read-only disk, by bad numbers or a bad photo."""

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings

import pytest
import torch

from dive_fast import io
from dive_fast.synth import save_plan
from dive_fast.synth.manifest import read_manifest, read_pairs
from dive_fast.synth.verify import verify_dataset
from dive_fast.types import DiveError
from tests.support.fake_engine import FakeEngine, contents, make, photo_plan, plan_of, start_run, wait_for_shards
from tests.support.refusals import refused


@pytest.mark.slow
def test_killed_then_rerun_equals_an_undisturbed_run(plan, out, undisturbed):
    process = start_run(plan, out, delay=0.05)
    wait_for_shards(out, process, 2)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = sorted((out / "shards").glob("*.jsonl"))
    assert 2 <= len(done) < plan.shards
    stamps = {path: path.stat().st_mtime_ns for path in done}
    for number in range(len(done), plan.shards):  # what a kill inside a write leaves
        (out / f".work/{number:05d}-0123abcd.tmp").write_bytes(b"half an ima")
    with pytest.warns(UserWarning, match=f"holds {3 * len(done)} of its plan's 18 pairs; run synth again"):
        read_pairs(out)
    assert any("planned pairs are not made yet" in problem for problem in verify_dataset(out).problems)

    engine = FakeEngine()
    summary = make(plan, out, engine, rows=4)
    assert contents(out) == undisturbed
    assert verify_dataset(out).problems == []
    assert summary.resumed_shards == len(done)
    assert 0 < summary.images <= 6 * (plan.shards - len(done))  # whole images of unfinished shards are kept
    assert {path: path.stat().st_mtime_ns for path in done} == stamps

    again = FakeEngine()
    summary = make(plan, out, again)
    assert (summary.images, summary.images_per_second, again.eps_rows) == (0, 0.0, [])
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_ctrl_c(plan, out, undisturbed):
    process = start_run(plan, out, delay=0.05)
    wait_for_shards(out, process, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    done = len(list((out / "shards").glob("*.jsonl")))
    last = errors.strip().splitlines()[-1]
    assert f"{done} of 6 shards are done in {out}" in last
    assert not list(out.rglob("*.tmp"))
    make(plan, out)
    assert contents(out) == undisturbed


def test_a_shard_that_lost_a_file_is_made_again(plan, out, undisturbed):
    make(plan, out)
    (out / "cam3/0002/0002.png").unlink()
    (out / "shards/00000.jsonl").unlink()
    summary = make(plan, out, check=True)
    assert (summary.resumed_shards, summary.images) == (4, 1)
    assert contents(out) == undisturbed


@pytest.mark.parametrize("mode", ["real-rgb", "photo-guided"])
def test_resume_with_photos(tmp_path, out, mode):
    plan = photo_plan(tmp_path / "photos", {"0001": 2, "0002": 1, "0003": 9}, mode, shard_size=5)
    make(plan, out)
    whole = contents(out)
    for lost in ("shards/00001.jsonl", "cam7/0002/0001.jpg", "cam6/0003/0001.png"):
        (out / lost).unlink()
    assert make(plan, out, check=True).images == 1
    assert contents(out) == whole
    (tmp_path / "photos" / plan.pairs[0].photo).write_bytes((tmp_path / "photos/0003/8.jpg").read_bytes())
    (out / "shards/00000.jsonl").unlink()
    refused(r"cam7/0001/0001\.jpg in .* is not the photo .* that belongs there", make, plan, out)


def test_photo_that_many_shards_bring_at_once(tmp_path, out):
    """One photo, a shard a pair, copies from several threads: one file, and no complaint that it exists."""
    make(photo_plan(tmp_path / "photos", {"0001": 1}, pairs_per_identity=20, shard_size=1), out)
    assert [path.name for path in (out / "cam7/0001").iterdir()] == ["0001.jpg"]
    assert verify_dataset(out).problems == []


class FailingReplace:
    """`os.replace` of a disk that refuses after some files."""

    def __init__(self, good: int, code: int) -> None:
        self.good, self.code, self.lock, self.real = good, code, threading.Lock(), os.replace

    def __call__(self, source, target):
        with self.lock:
            self.good -= 1
            if self.good < 0:
                raise OSError(self.code, os.strerror(self.code))
        self.real(source, target)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full; free space .* finished work is kept"),
        (errno.EROFS, "the file system is read-only; choose another --out"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "the disk reports an error"),
        (errno.ENAMETOOLONG, "the name is too long"),
        (errno.EISDIR, "it is a folder"),
    ],
)
@pytest.mark.parametrize("good", [0, 1, 17])
def test_disk_that_refuses(plan, out, monkeypatch, undisturbed, code, message, good):
    with monkeypatch.context() as patch:
        patch.setattr(io.os, "replace", FailingReplace(good, code))
        with pytest.raises(DiveError, match=rf"cannot write {out}/.*: {message}") as caught:
            make(plan, out, rows=4)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert not list(out.rglob("*.tmp"))
    finished = len(list((out / "shards").glob("*.jsonl")))
    assert finished in {0: {0}, 1: {0}, 17: {1, 2}}[good]  # plan.json, then seven files a shard, by several threads
    assert make(plan, out).resumed_shards == finished
    assert contents(out) == undisturbed


def test_full_disk_for_real(plan, out, undisturbed):
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(out)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        refused("the disk is full", make, plan, out, error=DiveError)
        assert not list(out.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        assert make(plan, out).resumed_shards > 0
        assert contents(out) == undisturbed
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        refused(f"cannot write {out}.*: the file system is read-only", make, plan, out, error=DiveError)
        assert (out / "shards/00000.jsonl").exists()
    finally:
        subprocess.run(["umount", str(out)], check=True)


class BadEngine(FakeEngine):
    """Spoils one seed's image, in the latents (not finite) or in the pixels (blank)."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.calls = what, 0

    def eps(self, latents, timestep, conditioning, prompt_index):
        self.calls += 1
        eps = super().eps(latents, timestep, conditioning, prompt_index)
        if self.what == "nan" and self.calls == 15:  # shard 1 (4 images, 2 a batch, 4 steps), first batch
            eps = eps.clone()
            eps[[1, 3]] = float("nan")  # both halves of the second image
        return eps

    def decode(self, latents):
        images = super().decode(latents)
        if self.what == "black" and self.calls == 16:
            images[1] = 0
        if self.what == "grey once converted" and self.calls == 16:
            images[1] = torch.tensor([120, 123, 122])  # 0.299 R + 0.587 G + 0.114 B = 122
            images[1, :8] = torch.tensor([100, 130, 140])  # 122, too
        return images


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "are not finite after step"),
        ("black", "nothing of this shard is recorded"),
        ("grey once converted", "nothing of this shard is recorded"),
    ],
)
def test_bad_numbers_stop_the_run_and_name_the_pair(out, what, message):
    plan = plan_of(shard_size=2)
    with pytest.raises(DiveError, match=rf"^pair {plan.pairs[3].pair_id}: .*{message}") as caught:
        make(plan, out, BadEngine(what), rows=4)
    assert caught.value.exit_code == 1
    recorded = {path.name for path in (out / "shards").iterdir()}  # a later shard may be written before the stop
    assert "00000.jsonl" in recorded and "00001.jsonl" not in recorded


def test_engine_errors_pass_through(out):
    class Refusing(FakeEngine):
        def eps(self, latents, timestep, conditioning, prompt_index) -> torch.Tensor:
            raise DiveError("UNet: block 3 is not finite; use precision fp32")

    refused("^UNet: block 3 is not finite", make, plan_of(), out, Refusing(), error=DiveError)


@pytest.mark.parametrize("spoil", ["cut", "empty", "removed", "a pipe"])
@pytest.mark.parametrize("mode", ["real-rgb", "photo-guided"])
def test_a_lost_photo_costs_its_own_pairs(tmp_path, out, mode, spoil):
    """And once it is back, only these pairs are made: the dataset equals an undisturbed one."""
    plan = photo_plan(tmp_path / "photos", {"0001": 3, "0002": 3, "0003": 3}, mode, shard_size=6)
    make(plan, tmp_path / "undisturbed", rows=2)
    bad = tmp_path / "photos" / plan.pairs[8].photo
    whole = bad.read_bytes()
    bad.unlink()
    if spoil == "a pipe":
        os.mkfifo(bad)
    elif spoil != "removed":
        bad.write_bytes(whole[: len(whole) // 2 if spoil == "cut" else 0])
    own = {pair.pair_id for pair in plan.pairs if pair.photo == plan.pairs[8].photo}
    assert len(own) == 2  # one in each infrared camera
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*photos are missing")
        summary = make(plan, out, rows=4)
        assert (summary.finished, summary.rejected, len(summary.lost)) == (True, 2, 1)
        assert str(bad) in summary.lost[0]
        assert {record.spec.pair_id for record in read_manifest(out) if record.status == "rejected"} == own
        assert {s.path.parent.name for s in read_pairs(out)} == {"0001", "0002", "0003"}
        health = verify_dataset(out)
        assert (health.problems, health.rejected, health.recorded) == ([], 2, 18)
        assert health.incomplete == {bad.parent.name: {"rgb": (4, 6), "ir": (4, 6)}}
        again = make(plan, out, check=True)
        assert (again.rejected, again.images) == (2, 0)
    bad.unlink(missing_ok=True)
    bad.write_bytes(whole)
    assert make(plan, out).images == 0  # finished: nothing changes without --check
    assert make(plan, out, check=True).images == (0 if mode == "real-rgb" else 2)
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_photo_folder_that_goes_away_stops_the_run(tmp_path, out, left):
    """As a disk that is unmounted: no pair is rejected for it."""
    plan = photo_plan(tmp_path / "photos", {"0001": 3, "0002": 3, "0003": 3}, shard_size=2)

    class Unmounting(FakeEngine):
        def decode(self, latents):
            if (tmp_path / "photos").exists() and list((tmp_path / "photos").iterdir()):
                (tmp_path / "photos").rename(tmp_path / "elsewhere")
                if left != "nothing":
                    (tmp_path / "photos").mkdir()
            return super().decode(latents)

    refused("photo folder .* is gone or empty", make, plan, out, Unmounting(), rows=2, error=DiveError)
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / "photos")
    assert make(plan, out).rejected == 0
    assert verify_dataset(out).whole


def test_a_folder_in_a_records_place_does_not_wait_for_ever(plan, out):
    (out / "shards/00002.jsonl/x").mkdir(parents=True)
    (out / "shards/00002.jsonl/x").rmdir()
    save_plan(plan, out / "plan.json")
    refused(r"shards/00002\.jsonl", make, plan, out)
