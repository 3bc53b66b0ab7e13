"""kill -9 at any moment: a resumed run ends with the adapter of an uninterrupted one, bit for bit.

Runs are forked from a server that has torch loaded, so that many of them can be killed in a test's time.
"""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import peft  # noqa: F401
import pytest
import torch
import transformers.models.clip.modeling_clip  # noqa: F401

from dive_fast.models import load_adapter, load_bundle
from dive_fast.train.config import PersonalizeConfig, Prior, Samples
from dive_fast.train.personalize import personalize
from tests.support.refusals import refused

CONFIG = PersonalizeConfig(
    identity_steps=6,
    steps=8,
    batch=4,
    rank=2,
    warmup=1,
    save_every=1,
    prior=Prior(0.5, "a person", 2),
    samples=Samples(sample_steps=1),
)
SLOW = 0.04  # seconds that a file takes to reach the disk, so that kills fall into saving


def learn(base, photos, out, config):
    torch.set_num_threads(1)
    real = os.fsync

    def slow(descriptor):
        time.sleep(SLOW / 2)
        real(descriptor)
        time.sleep(SLOW / 2)

    os.fsync = slow
    personalize(load_bundle(base), photos, out, config, progress=False)


@pytest.fixture(scope="module")
def start():
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])

    def started(*arguments):
        process = server.Process(target=learn, args=arguments)
        process.start()
        return process

    return started


@pytest.fixture(scope="module")
def uninterrupted(start, base, photos, tmp_path_factory):
    return _finished(start, base, photos, tmp_path_factory.mktemp("whole") / "adapter")


def _wait(process, happened):
    while not happened():
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.001)


def _kill(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _finished(start, base, photos, out):
    process = start(base, photos, out, CONFIG)
    process.join()
    assert process.exitcode == 0
    adapter = load_adapter(out)
    work = out.with_name(f"{out.name}.training")
    assert sorted(file.name for file in work.iterdir()) == ["identities-loss.jsonl", "lock", "personalize-loss.jsonl"]
    assert sorted(file.name for file in out.parent.iterdir()) == [out.name, work.name]
    return adapter


# Files that exist while a run generates class photos, saves a phase's state, opens a log, or writes the adapter.
MOMENTS = [
    "adapter.training/.class-*.dive-tmp",
    "adapter.training/.identities.state.*.dive-tmp",
    "adapter.training/.personalize.state.*.dive-tmp",
    "adapter.training/.personalize-loss.jsonl.*.dive-tmp",
    ".adapter.dive-tmp/new/lora.safetensors",
]


@pytest.mark.slow
def test_killed_while_a_file_is_written(start, base, photos, uninterrupted, tmp_path):
    out, torn = tmp_path / "adapter", 0
    for moment in MOMENTS:
        process = start(base, photos, out, CONFIG)
        _wait(process, lambda moment=moment: any(tmp_path.glob(moment)))
        _kill(process)
        torn += any(tmp_path.glob(moment))
        assert not (out / "adapter.json").exists()
    assert torn >= 3, "most kills should have left half a file"
    assert _finished(start, base, photos, out).fingerprint == uninterrupted.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(start, base, photos, uninterrupted, tmp_path, seed):
    rng, out = random.Random(seed), tmp_path / "adapter"
    kills = 0
    while kills < 6:
        process = start(base, photos, out, CONFIG)
        _wait(process, lambda: (tmp_path / "adapter.training").exists())
        process.join(rng.uniform(0, 1.0))
        if not process.is_alive():
            break
        _kill(process)
        kills += 1
    assert kills >= 2
    assert _finished(start, base, photos, out).fingerprint == uninterrupted.fingerprint


@pytest.mark.slow
def test_a_second_run_in_one_folder_is_refused_while_the_first_lives(start, base, photos, tmp_path):
    out = tmp_path / "adapter"
    process = start(base, photos, out, CONFIG)
    _wait(process, lambda: (tmp_path / "adapter.training" / "identities.state").exists())
    os.kill(process.pid, signal.SIGSTOP)  # it lives, and cannot end before the second has looked
    refused("another run", personalize, load_bundle(base), photos, out, CONFIG, progress=False)
    _kill(process)
    other = replace(CONFIG, seed=1)  # refused for this alone: the lock went with the process
    refused(r"identities\.state", personalize, load_bundle(base), photos, out, other, progress=False)
    assert Path(tmp_path / "adapter.training" / "identities.state").exists()
