"""`dive-fast plan` on photos that cannot all be read, and on names in any spelling."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dive_fast.commands import synth
from dive_fast.models.prompts import DEFAULT_TEMPLATE, PromptTable
from dive_fast.models.sampling_file import write_sampling
from dive_fast.sampling import Sampling
from dive_fast.synth import load_plan
from dive_fast.synth.choose import PlannedModel
from dive_fast.types import Camera, Identity
from tests.support.cli import Run
from tests.support.trees import photo

PEOPLE = ("p1", "p2", "p3", "小明", "anna b", "José", "Anna", "anna")


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that knows `PEOPLE`, without its weights."""
    identities = tuple(Identity(pid, f"<class_{number}>") for number, pid in enumerate(PEOPLE))
    table = PromptTable(identities, (Camera("cam3", "ir", "c"),), DEFAULT_TEMPLATE, "base", "adapter")
    (tmp_path / "pocket").mkdir()
    write_sampling(Sampling(20, 2.0), tmp_path / "pocket")
    monkeypatch.setattr(synth, "_model", lambda name: PlannedModel(table, "model-1", (32, 16), tmp_path / name))


def plan(tmp_path: Path, step: Callable[..., dict[str, Any]], *words: object) -> tuple[dict[str, Any], dict[str, int]]:
    """The summary, and the planned photos by identity."""
    words = ("--photos", f"folder:{tmp_path / 'photos'}", "--pairs", 2, "--out", tmp_path / "plan.json", *words)
    summary = step("plan --model model", *words)
    return summary, {one.pid: len(one.rgb) for one in load_plan(tmp_path / "plan.json").identities}


def test_photos_that_cannot_be_read_are_left_out_by_name(tmp_path: Path, step: Callable[..., dict[str, Any]]) -> None:
    for number, pid in enumerate(("p1", "p2", "p3")):
        for name in "ab":
            photo(tmp_path / f"photos/{pid}/{name}.jpg", number)
    (tmp_path / "photos/p2/b.jpg").write_bytes(b"")
    for name in "ab":
        whole = (tmp_path / f"photos/p3/{name}.jpg").read_bytes()
        (tmp_path / f"photos/p3/{name}.jpg").write_bytes(whole[:-200])
    summary, people = plan(tmp_path, step)
    assert people == {"p1": 2, "p2": 1}
    assert [Path(part).name for text in summary["unreadable"] for part in text.split() if ".jpg" in part] == [
        "b.jpg",
        "a.jpg",
        "b.jpg",
    ]
    os.unlink(tmp_path / "plan.json")
    _, people = plan(tmp_path, step, "--pids", "p2")
    assert people == {"p2": 1}


def test_a_forgotten_prefix_is_guessed(tmp_path: Path, run: Run) -> None:
    for pid in ("nna", "nna b"):
        photo(tmp_path / f"photos/{pid}/1.jpg")
    code, _, error = run(f"plan --model model --photos folder:{tmp_path / 'photos'} --out {tmp_path / 'plan.json'}")
    assert code == 2 and "prefix=a?" in error


def test_a_wanted_person_without_a_good_photo_is_refused(tmp_path: Path, run: Run) -> None:
    photo(tmp_path / "photos/p1/1.jpg").write_bytes(b"")
    photo(tmp_path / "photos/p2/1.jpg")
    out = ("--out", tmp_path / "plan.json", "--photos", f"folder:{tmp_path / 'photos'}")
    code, _, error = run("plan --model model --pids p1,p2", *out)
    assert code == 2 and "1 of 2 identities have no real RGB photo (p1)" in error


def test_names_in_any_spelling(tmp_path: Path, step: Callable[..., dict[str, Any]]) -> None:
    for number, name in enumerate(("小明", "anna b", "Jose\u0301", "Anna", "anna")):
        photo(tmp_path / f"photos/{name}/1.jpg", number)
    _, people = plan(tmp_path, step)
    assert people == {"小明": 1, "anna b": 1, "José": 1, "Anna": 1, "anna": 1}
    os.unlink(tmp_path / "plan.json")
    _, people = plan(tmp_path, step, "--pids", "Jose\u0301")
    assert people == {"José": 1}


@pytest.mark.parametrize(
    ("folder", "options", "sampling"),
    [
        ("sd15", "", Sampling(50, 7.5)),
        ("pocket", "", Sampling(20, 2.0)),
        ("sd15", "--preset fast", Sampling(15, 7.5)),
        ("pocket", "--preset fast", Sampling(15, 2.0)),
        ("sd15", "--guidance 3", Sampling(50, 3.0)),
        ("pocket", "--preset fast --steps 9 --guidance 7.5", Sampling(9, 7.5)),
    ],
)
def test_steps_and_guidance_are_the_model_s_unless_given(
    folder: str, options: str, sampling: Sampling, tmp_path: Path, run: Run
) -> None:
    photo(tmp_path / "photos/p1/1.jpg")
    line = f"plan --model {folder} --photos folder:{tmp_path}/photos --out {tmp_path}/plan.json {options}"
    code, text, error = run(line)
    assert code == 0, error
    assert load_plan(tmp_path / "plan.json").sampling == sampling
    assert sampling.describe() in text
    assert ("Stable Diffusion 1.5" in text) == (folder == "sd15")
