"""The frontier on a toy study: from pairs to its table, what a rerun repeats, and its arithmetic on known numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import frontier
from dive_fast.experiments.config import StudyConfig
from dive_fast.json_files import read_json
from dive_fast.reid.comparison import runs
from dive_fast.sampling import Sampling
from dive_fast.types import Sample
from tests.support.refusals import refused
from tests.support.walk import SMALL

FEW = {frontier.FIRST: Sampling(4), "3-steps": Sampling(3), "7-steps-fp8": Sampling(2)}


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
    first, other, eight = (summary["settings"][name] for name in FEW)
    assert first["kept"]["images"] == 4 * 2 and "each" not in first["kept"]
    assert (first["psnr"], first["kept_lost"]) == (None, None)
    assert eight["speed"] is None and eight["reid"] is None and eight["psnr"] > 10
    lost = other["kept_lost"]["by_image"]
    assert lost["value"] == pytest.approx(first["kept"]["by_image"]["value"] - other["kept"]["by_image"]["value"])
    assert len(other["reid"]["map"]) == 2 and other["speed"]["times"] > 0
    lines = (out / "frontier" / "frontier.md").read_text().splitlines()
    assert len(lines) == 2 + 3 and len({line.count("|") for line in lines}) == 1
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.suffix in (".png", ".safetensors")}
    monkeypatch.setattr(frontier, "kept_of_samples", None)
    frontier.frontier(out, config, only=("pairs", "kept", "reid", "summary"), reid=("3-steps",))
    assert len(trained) == 8 and len(before) > 50
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"compare.png", "differences.png"}
    assert read_json(out / "frontier" / "frontier.json", "")["settings"] == summary["settings"]
    refused("other settings", frontier.frontier, out, replace(config, reid=replace(config.reid, steps=3)))


def test_one_seed_has_no_interval(config, tmp_path):
    refused("at least two --seeds", frontier.train, replace(config, seeds=(0,)), tmp_path, (frontier.FIRST,))


def test_settings_cover_steps_guidance_interval_and_precision():
    found = [(s.steps, s.guidance, s.guidance_interval is not None) for s in frontier.SETTINGS.values()]
    assert {(steps, Sampling.guidance, False) for steps in (50, 25, 15, 10, 7, 5, 4, 3)} < {*found}
    assert {(15, scale, False) for scale in (1, 2, 3, 4, 6)} < {*found}
    assert found.count((7, Sampling.guidance, False)) == 2 and sum(interval for *_, interval in found) == 1


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
