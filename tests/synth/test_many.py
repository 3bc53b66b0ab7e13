"""Many processes at one plan: parts, double starts, Ray, a remote place; and kills at random moments, many times."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dive_fast.sampling import Sampling
from dive_fast.synth import save_plan
from dive_fast.synth.folder import open_store, store_plan
from dive_fast.synth.local import part_of
from dive_fast.synth.manifest import read_manifest
from dive_fast.synth.verify import verify_dataset
from dive_fast.types import DiveError
from tests.support.fake_engine import ROOT, contents, make, plan_of, start_run, tiny_plan, wait_for_shards
from tests.support.refusals import refused
from tests.support.tiny import HEIGHT, WIDTH


def test_parts_add_up_and_the_last_one_finishes(plan, out, undisturbed):
    first = make(plan, out, shards=part_of(plan, 0, 2))
    assert (first.finished, first.images) == (False, 18)
    assert not (out / "exp").exists()
    second = make(plan, out, shards=part_of(plan, 1, 2))
    assert (second.finished, second.images, second.resumed_shards) == (True, 18, 3)
    assert contents(out) == undisturbed


@pytest.mark.parametrize(("number", "of"), [(2, 2), (-1, 2), (0, 0)])
def test_parts_that_are_none(number, of):
    refused(f"shards {number}/{of}: the part must be", part_of, plan_of(), number, of)


@pytest.mark.slow
def test_a_second_start_shares_the_work(plan, out, undisturbed):
    """Three processes at the same plan and folder: every shard is made once, and each waits for the others' shards."""
    processes = [start_run(plan, out, delay=0.02) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert contents(out) == undisturbed


@pytest.mark.slow
def test_a_shard_in_the_hands_of_a_dead_process_is_taken_over(plan, out, undisturbed):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    waiting = start_run(plan, out, delay=0.0)
    wait_for_shards(out, waiting, plan.shards - 1)
    time.sleep(0.2)
    assert waiting.poll() is None  # it waits for the shard
    holder.kill()
    _, errors = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, errors
    assert contents(out) == undisturbed


HOLDER = """
import sys
from pathlib import Path
from dive_fast.synth.store import LocalStore
claim = LocalStore(Path(sys.argv[1])).claim(4)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_killed_at_random_moments_many_times(plan, out, undisturbed):
    """kill -9 after a random time, again and again, sometimes two processes at once; what a kill leaves of files torn."""
    moments = random.Random(7)
    kills = 0
    for _ in range(14):
        running = [start_run(plan, out, delay=0.03) for _ in range(moments.choice([1, 1, 2]))]
        deadline = time.monotonic() + 300
        started = len(list(out.rglob("*.png")))
        while all(p.poll() is None for p in running) and len(list(out.rglob("*.png"))) == started:
            assert time.monotonic() < deadline  # importing takes its time: kills are to fall into the work
            time.sleep(0.01)
        time.sleep(moments.random() * 0.25)
        for process in running:
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.communicate()
        torn = sorted(out.rglob("*.png"))[-1:] if moments.random() < 0.3 else []
        for path in torn:  # as a crashed file system may: the name is there, the bytes are zeros
            if not recorded(out, path):
                path.write_bytes(b"\0" * 100)
        if verify_dataset(out).whole:
            break
    make(plan, out, rows=4)
    assert kills >= 5
    assert contents(out) == undisturbed
    assert verify_dataset(out).whole


def recorded(out: Path, path: Path) -> bool:
    name = path.relative_to(out).as_posix()
    return any(name in record.files.values() for record in read_manifest(out))


def test_a_remote_place(plan, undisturbed):
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra: remote)")
    import fsspec

    url = "memory://many/pairs"
    assert not make(plan, url, rows=4, shards=part_of(plan, 0, 2)).finished
    assert make(plan, url, rows=4).images == 18
    files = fsspec.filesystem("memory")
    got = {name.removeprefix("/many/pairs/"): files.cat_file(name) for name in files.find("/many/pairs")}
    assert got == undisturbed
    files.rm_file("/many/pairs/cam3/0002/0002.png")
    assert verify_dataset(url).problems == ["cam3/0002/0002.png is missing; run synth again with --check"]
    assert make(plan, url, rows=4, check=True).images == 1
    refused("memory://many/pairs holds plan", make, plan_of(seed=12), url)
    refused("memory://nothing", store_plan, open_store("memory://nothing"))
    refused("nosuch://x", open_store, "nosuch://x", error=DiveError)


@pytest.mark.slow
def test_ray_survives_the_loss_of_a_worker(tmp_path, tiny_fused):
    """A real engine in two workers, one of which is killed at work; then a plan that does not fit the engine."""
    ray = pytest.importorskip("ray", reason="ray is not installed (extra: ray)")
    from dive_fast.engines import load_engine
    from dive_fast.synth.cluster import Cluster, synthesize_on

    settings = {"path": str(tiny_fused), "device": "cpu", "size": (HEIGHT, WIDTH)}
    engine = load_engine(**settings)
    plan = tiny_plan(engine, pairs_per_identity=12, sampling=Sampling(3, 1.0), shard_size=1)
    save_plan(plan, tmp_path / "plan.json")
    killer = subprocess.Popen([sys.executable, "-c", KILLER, str(tmp_path / "out")], text=True, stdout=subprocess.PIPE)
    try:
        summary = synthesize_on(Cluster(workers=2), plan, settings, tmp_path / "out", rows=4, progress=False)
        assert killer.communicate(timeout=60)[0] == "killed\n"
        assert summary.finished
        assert verify_dataset(tmp_path / "out").whole
        specs = [record.spec for record in read_manifest(tmp_path / "out")]
        assert specs == list(plan.pairs)
        again = synthesize_on(Cluster(workers=2), plan, settings, tmp_path / "out", rows=4, progress=False)
        assert (again.images, again.resumed_shards) == (0, 24)
        other = (Cluster(workers=1), plan_of(), settings, tmp_path / "other")
        refused("cameras are unknown to the engine", synthesize_on, *other, progress=False)
        assert not (tmp_path / "other").exists()
    finally:
        killer.kill()
        ray.shutdown()


# Kills one of Ray's workers once the first shard is recorded.
KILLER = """
import os, signal, subprocess, sys, time
from pathlib import Path
while not list(Path(sys.argv[1]).glob("shards/*.jsonl")):
    time.sleep(0.005)
for folder in Path("/proc").glob("[0-9]*"):
    try:
        command = (folder / "cmdline").read_bytes()
    except OSError:
        continue
    if command.startswith(b"ray::Worker"):
        os.kill(int(folder.name), signal.SIGKILL)
        print("killed")
        break
"""
