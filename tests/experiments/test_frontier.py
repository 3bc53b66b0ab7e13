"""The frontier on a toy study: from pairs to its table, what a rerun repeats, and its arithmetic on known numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import frontier
from dive_export import export_engine
from dive_fast.experiments.config import StudyConfig
from dive_fast.json_files import read_json
from dive_fast.reid.comparison import runs
from dive_fast.sampling import Sampling
from dive_fast.types import Sample
from tests.support.distilling import save_student
from tests.support.refusals import refused
from tests.support.walk import SMALL

FEW = {frontier.FIRST: Sampling(4), "3-steps": Sampling(3)}


@pytest.fixture(scope="module")
def config(tiny_base, adapter) -> StudyConfig:
    return StudyConfig(model=str(tiny_base), adapter=str(adapter), seeds=(0, 1), curve=(), workers=1, **SMALL)


@pytest.mark.slow
def test_a_toy_frontier_and_its_rerun(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frontier, "SETTINGS", FEW)
    out, trained, real = tmp_path / "study", [], runs.carry_out
    monkeypatch.setattr(runs, "carry_out", lambda run, progress: trained.append(run.arm) or real(run, progress))
    frontier.frontier(out, config, reid=("3-steps",), repeats=1)
    assert trained == ["paired-only"] * 2 + ["oracle"] * 2 + [frontier.FIRST] * 2 + ["3-steps"] * 2
    summary = read_json(out / "frontier" / "frontier.json", "")
    assert list(summary["settings"]) == sorted(FEW) and summary["seeds"] == 2
    first, other = (summary["settings"][name] for name in FEW)
    assert first["kept"]["images"] == 4 * 2 and "each" not in first["kept"]
    assert (first["psnr"], first["kept_lost"]) == (None, None)
    lost = other["kept_lost"]["by_image"]
    assert lost["value"] == pytest.approx(first["kept"]["by_image"]["value"] - other["kept"]["by_image"]["value"])
    assert len(other["reid"]["map"]) == 2 and other["speed"]["times"] > 0
    assert (first["diversity"], {*first["brightness"]}) == (None, {"torso", "legs"})  # one image a person and camera
    lines = (out / "frontier" / "frontier.md").read_text().splitlines()
    assert len(lines) == 2 + 2 and len({line.count("|") for line in lines}) == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.suffix in (".png", ".safetensors")}
    monkeypatch.setattr(frontier, "open_scorer", None)
    frontier.frontier(out, config, only=("pairs", "kept", "reid", "summary"), reid=("3-steps",))
    images = {name: [p for p in before if out / "frontier" / name in p.parents and p.suffix == ".png"] for name in FEW}
    assert len(trained) == 8 and len(before) > 20
    assert {name: len(paths) for name, paths in images.items()} == dict.fromkeys(FEW, first["kept"]["images"])
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"compare.png", "differences.png"}
    assert read_json(out / "frontier" / "frontier.json", "")["settings"] == summary["settings"]
    refused("other settings", frontier.frontier, out, replace(config, reid=replace(config.reid, steps=3)))
    refused(
        "at least two --seeds", frontier.frontier, out, replace(config, seeds=(0,)), only=("reid",), reid=("3-steps",)
    )
    refused("5-steps is no setting", frontier.frontier, out, config, reid=("5-steps",))
    monkeypatch.undo()
    monkeypatch.setattr(frontier, "SETTINGS", FEW)
    check_an_engine_of_a_student(config, out, tmp_path)


def check_an_engine_of_a_student(config: StudyConfig, out: Path, tmp_path: Path) -> None:
    """It is sampled in its own way; `small` is not trained on, so it has no gap."""
    (fused,) = out.glob("fused-*")
    student = tmp_path / "small"
    export_engine(save_student(fused, tmp_path / "own"), student, rows_max=8)
    frontier.frontier(
        out, config, settings=(), engines=(student,), only=("pairs", "kept", "speed", "summary"), repeats=1
    )
    rows = read_json(out / "frontier" / "frontier.json", "")["settings"]
    row = rows["small"]
    assert {*rows} == {frontier.FIRST, "small"}
    assert row["sampling"] == "small: 2 steps, no guidance" and row["speed"]["times"] > 0 and row["reid"] is None
    assert row["kept"]["images"] == 4 * 2 and row["psnr"] > 5
    assert read_json(out / "frontier" / "small" / "plan.json", "")["sampling"]["steps"] == 2
    refused("different names", frontier.frontier, out, config, engines=(student, tmp_path / "again" / "small"))
    refused("different names", frontier.frontier, out, config, engines=(tmp_path / "3-steps",))


def test_settings_cover_steps_guidance_and_interval():
    found = [(s.steps, s.guidance, s.guidance_interval is not None) for s in frontier.SETTINGS.values()]
    assert {(steps, Sampling.guidance, False) for steps in (50, 15, 7, 5, 3)} < {*found}
    assert {(15, scale, False) for scale in (1, 2, 3, 4)} < {*found}
    assert sum(interval for *_, interval in found) == 1


def test_spread_by_hand():
    """Rows at 0, 90 and 60 degrees of one label, two equal ones of another, and a lone one."""
    rows = np.array([[2.0, 0.0], [0.0, 3.0], [0.5, 0.75**0.5], [1.0, 1.0], [4.0, 4.0], [1.0, 0.0]])
    apart = 1 - (0 + 0.5 + 0.75**0.5) / 3
    assert frontier.spread(rows, ["a", "a", "a", "b", "b", "c"]) == pytest.approx(apart / 2, rel=1e-6)
    assert frontier.spread(rows[:2], ["a", "b"]) is None


def test_psnr_by_hand(tmp_path):
    """Two images off by 1 and by 5 of 255 everywhere."""

    def image(name: str, level: int) -> Sample:
        Image.fromarray(np.full((8, 4), level, np.uint8)).save(tmp_path / name)
        return Sample(Path(tmp_path / name), "1", "cam3", "synthetic", "ir")

    made, first = [image("a.png", 41), image("b.png", 95)], [image("c.png", 40), image("d.png", 90)]
    assert frontier.mean_psnr(made, first) == pytest.approx(10 * np.log10(255**2 / 13))


def comparison(arms: dict[str, dict]) -> SimpleNamespace:
    return SimpleNamespace(arm=lambda name: SimpleNamespace(**arms[name]), seeds=[0, 1])


def test_gap_lost_by_hand():
    """A gap of 10; 7 steps lose 1 and 3 of mAP in the two seeds."""
    people = SimpleNamespace(people=SimpleNamespace(mean=-2.0, low=-2.5, high=-1.5))
    of_record = comparison(
        {
            "oracle": {"difference_mean": 10.0},
            frontier.FIRST: {"map": [46.0, 50.0], "gap_closed_mean": 0.7},
            "7-steps": {"map": [45.0, 47.0], "gap_closed_mean": 0.5},
        }
    )
    against_first = comparison({"7-steps": {"difference": [-1.0, -3.0], "significance": people}})
    found = frontier.losses(of_record, against_first, ["7-steps"])
    half = 12.706 * 0.02**0.5 / 2**0.5  # Student's t with one degree of freedom
    lost = found["settings"]["7-steps"]
    assert found["gap"] == 10 and "lost" not in found["settings"][frontier.FIRST]
    assert lost["lost"] == {
        "value": 0.2,
        "low": pytest.approx(0.2 - half, 1e-3),
        "high": pytest.approx(0.2 + half, 1e-3),
    }
    assert lost["people"] == {"value": 0.2, "low": 0.15, "high": 0.25}
    assert lost["smallest"] > half
    no_gap = comparison({"oracle": {"difference_mean": -1.0}, frontier.FIRST: {"map": [46.0], "gap_closed_mean": None}})
    assert frontier.losses(no_gap, against_first, []) == {
        "gap": -1.0,
        "seeds": 2,
        "settings": {frontier.FIRST: {"map": [46.0], "gap_closed": None}},
    }


def test_a_loss_of_a_tenth_is_accepted_refused_or_open():
    def words(seeds, people):
        ends = ({"low": low, "high": high} for low, high in (seeds, people))
        return frontier.verdict(dict(zip(("lost", "people"), ends, strict=True)))

    assert words((-0.05, 0.09), (-0.02, 0.08)) == "accepted"
    assert words((-0.05, 0.09), (-0.02, 0.11)) == words((0.11, 0.3), (0.09, 0.2)) == "open"
    assert words((0.11, 0.3), (0.12, 0.2)) == "refused"
