"""Two source trees against each other: trees of known speed, and what git can and cannot give."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dive_fast.bench import child
from dive_fast.bench.compare import Difference, Task, _difference, compare_trees, lines, other_tree, regression
from dive_fast.bench.machine import commit
from dive_fast.engines import load_engine
from dive_fast.engines.torch_engine import TorchEngine
from dive_fast.sampling import Sampling, Schedule
from dive_fast.types import DiveError, to_dict
from tests.support.refusals import refused

TASK = Task("model", "torch", "cpu", (2,), Sampling(2, 2.0), repeats=2, batches=2)

ENGINES = """
import time
from unittest.mock import MagicMock


def load_engine(folder, backend, device, threads):
    assert (str(folder), backend) == ("model", "torch")
    engine = MagicMock()
    engine.device.type = "cpu"
    engine.prompts.encode.return_value = MagicMock(), MagicMock()
    engine.eps = engine.decode = lambda *_: time.sleep(DELAY)
    return engine
"""
SAMPLING = """
from unittest.mock import MagicMock

Schedule = MagicMock()
Schedule.from_config = lambda config, steps: steps
initial_noise = MagicMock()


def guided(eps, index, null, scale):
    return lambda x, t: eps(x, t, index)


def dpmpp_2m(eps, noise, steps):
    for step in range(steps):
        eps(noise, step)
"""


def tree(folder: Path, delay: float) -> Path:
    """A source tree whose dive_fast takes `delay` seconds for every network call."""
    package = folder / "dive_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "engines.py").write_text(ENGINES.replace("DELAY", str(delay)))
    (package / "sampling.py").write_text(SAMPLING)
    return folder


@pytest.mark.slow
def test_a_known_difference_is_found(tmp_path: Path) -> None:
    there, here, verdict = 0.02, 0.06, "slower"
    told: list[str] = []
    slow, fast = tree(tmp_path / "b", here), tree(tmp_path / "a", there)
    found = compare_trees(fast, TASK, tmp_path, rounds=5, here=slow, advance=told.append)
    assert [name.split(", ")[1] for name in told] == ["there", "here", "here", "there"] * 2 + ["there", "here"]
    assert [(d.what, d.rows, d.verdict) for d in found] == [("UNet call", 2, verdict), ("batch", 2, verdict)]
    for difference, calls in zip(found, (1, 3), strict=True):  # a batch: two steps and a decode
        assert 0.2 < difference.faster.median < 0.6  # a third, on a machine that may be busy
        assert 1e3 * there * calls <= difference.ms_there < difference.ms_here
        assert 1e3 * here * calls <= difference.ms_here
    assert regression(found, 0.9) is found[1]
    assert regression(found, 0.1) is None
    assert verdict in lines(found, "0123456789abcdef")[1]


def test_a_tree_that_cannot_be_measured_is_named(tmp_path: Path) -> None:
    old = tree(tmp_path / "a", 0.0)
    (old / "dive_fast" / "sampling.py").write_text("")
    refused("cannot import name", compare_trees, old, TASK, tmp_path, rounds=1, error=DiveError)


def difference(there: list[float], here: list[float]) -> Difference:
    """Of batches of 2 rows that took so many milliseconds in the rounds."""
    times = {"there": there, "here": here}
    return _difference("batch", 2, {name: [{"batch": {"2": [ms] * 3}} for ms in ms_] for name, ms_ in times.items()})


def test_rounds_that_disagree_are_noise_and_few_prove_nothing() -> None:
    found = difference([10.0] * 5, [20.0, 20.0, 20.0, 20.0, 9.0])
    assert (found.faster.low, found.faster.median, found.faster.high) == (0.5, 0.5, pytest.approx(10 / 9))
    assert (found.ms_there, found.ms_here, found.verdict) == (10, 20, "no difference beyond noise")
    few = difference([10.0] * 4, [30.0] * 4)
    assert few.verdict == "too few rounds to tell" and regression([few], 9) is None


def test_another_commit_is_unpacked_and_the_repository_untouched(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(words: str) -> str:
        command = f"git -C {repository} -c user.name=n -c user.email=e@x {words}"
        return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout.strip()

    git("init --quiet")
    (repository / "a.txt").write_text("old")
    git("add .")
    git("commit --quiet -m old")
    old = git("rev-parse HEAD")
    git("tag first")
    (repository / "a.txt").write_text("new")
    git("commit --quiet -am new")
    (repository / "a.txt").write_text("uncommitted")
    assert other_tree("first", tmp_path / "tree", repository) == old
    assert (tmp_path / "tree" / "a.txt").read_text() == "old"
    assert (repository / "a.txt").read_text() == "uncommitted"
    assert git("worktree list").count("\n") == 0
    for ref in ("nowhere", "--all", "first:a.txt"):
        refused(f"'{ref}'", other_tree, ref, tmp_path / "other", repository)
    assert commit(repository) == git("rev-parse --short=7 HEAD") + "-dirty"
    (repository / "a.txt").write_text("new")
    assert commit(repository) == git("rev-parse --short=7 HEAD")
    assert commit(tmp_path) == "not a git checkout"
    (repository / "inner").mkdir()
    for source in (tmp_path, repository / "inner"):
        refused(str(source), other_tree, "HEAD", tmp_path / "other", source)


def test_the_turn_itself_runs_on_this_version(tiny_fused: Path) -> None:
    found = child.measure({**to_dict(TASK), "model": str(tiny_fused), "work": "", "rows": (2, 6)})
    assert {what: {rows: len(ms) for rows, ms in times.items()} for what, times in found.items()} == {
        "unet": {"2": TASK.repeats, "6": TASK.repeats},
        "batch": {"2": TASK.batches, "6": TASK.batches},
    }
    assert all(ms > 0 for times in found.values() for values in times.values() for ms in values)
    assert min(found["batch"]["6"]) > min(found["unet"]["6"])  # two calls and more


@pytest.mark.slow
def test_the_turn_leaves_out_what_a_preset_does(tiny_fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance at steps 1 and 2 of four."""
    calls: list[int] = []
    real = TorchEngine._unet

    def watched(self: Any, latents: Any, timestep: int, bank: Any, index: Any) -> Any:
        calls.append(len(index))
        return real(self, latents, timestep, bank, index)

    monkeypatch.setattr(TorchEngine, "_unet", watched)
    sigmas = Schedule.from_config(load_engine(tiny_fused, "torch", "cpu").scheduler_config, 4).sigmas
    task = replace(TASK, model=str(tiny_fused), rows=(6,), sampling=Sampling(4, 2.0, (sigmas[3], sigmas[1])))
    child.measure({**to_dict(task), "work": ""})
    assert calls == [6] * (TASK.repeats + 1) + [3, 6, 6, 3] * (TASK.batches + 1)
