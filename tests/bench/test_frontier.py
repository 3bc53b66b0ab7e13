"""The frontier study's own arithmetic, on images and scores that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import frontier
from dive_fast.io import write_json
from dive_fast.types import Sample


def image(path: Path, torso: int, legs: int) -> Path:
    """20 x 8: rows 4 to 9 are the torso, 10 to 16 the legs; what is outside the middle must not count."""
    pixels = np.full((20, 8), 255, np.uint8)
    pixels[4:10, 2:6], pixels[10:17, 2:6] = torso, legs
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_brightness_is_a_stripe_s_own(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png", 40, 90)
    assert [frontier.brightness(path, stripe) for stripe in frontier.STRIPES.values()] == [40, 90]


def test_likeness_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three identities; torsos of the second setting follow the truth backwards, and its images are off by known amounts."""
    levels = {"true": (10, 20, 40), frontier.FIRST: (20, 40, 80), "other": (80, 41, 20)}
    made = {
        name: [
            Sample(image(tmp_path / name / f"{pid}.png", torso, 5 * pid), str(pid), "cam3", "synthetic", "ir")
            for pid, torso in enumerate(values)
        ]
        for name, values in levels.items()
    }
    truth = made.pop("true")
    monkeypatch.setattr(frontier, "oracle_infrared", lambda world, per_camera: truth)
    found = frontier.likeness(tmp_path, made)
    assert found[frontier.FIRST] == {"torso correlation": pytest.approx(1), "legs correlation": pytest.approx(1)}
    torso = np.corrcoef(levels["true"], levels["other"])[0, 1]
    assert found["other"]["torso correlation"] == pytest.approx(torso)
    share = 24 / 160  # of the pixels are torso
    off = [20 * np.log10(255 / (level * np.sqrt(share))) for level in (60, 1, 60)]
    assert found["other"]["dB to 50 steps"] == pytest.approx(np.mean(off))


def write_scores(out: Path, by_arm: dict[str, tuple[int, int]]) -> None:
    arms = {arm: {"mAP": list(map(float, by_seed))} for arm, by_seed in by_arm.items()}
    write_json(out / "usefulness.json", {"baseline": "baseline", "arms": arms})


def test_summary_by_hand(tmp_path: Path) -> None:
    write_scores(tmp_path, {"baseline": (40, 42), "oracle": (50, 52), frontier.FIRST: (46, 50), "15-steps": (45, 47)})
    # no net was trained on 7 steps
    rates = {
        name: {"images/s": rate, "times 50-steps": rate / 2}
        for name, rate in {"7-steps": 9.0, "15-steps": 6.0, frontier.FIRST: 2.0}.items()
    }
    write_json(tmp_path / "speed.json", {"rates": rates})
    alike = {name: {"torso correlation": 0.7, "legs correlation": 0.9, "dB to 50 steps": 30.0} for name in rates}
    del alike[frontier.FIRST]["dB to 50 steps"]
    alike["7-steps-fp8"] = alike["7-steps"]
    write_json(tmp_path / "likeness.json", {"settings": alike, "guidance": 2.0})
    first, other, untrained, eight = rows = frontier.summarise(tmp_path)
    assert [row["setting"] for row in rows] == [frontier.FIRST, "15-steps", "7-steps", "7-steps-fp8"]
    assert eight["sampling"] == "7 steps, guidance 2, FP8" and "images/s" not in eight
    assert first["gap closed"] == pytest.approx(0.7) and other["gap closed"] == pytest.approx(0.5)  # of a gap of 10
    assert other["gap lost"] == pytest.approx(0.2)  # 0.1 and 0.3
    half = 12.706 * (0.02**0.5) / 2**0.5  # Student's t with one degree of freedom
    assert other["gap lost, 95 %"] == [pytest.approx(0.2 - half, rel=1e-3), pytest.approx(0.2 + half, rel=1e-3)]
    assert other["standard error"] == pytest.approx(0.1)
    assert "gap closed" not in untrained
    lines = frontier.table(rows).splitlines()
    assert lines[3].startswith(
        "| 15 steps, guidance 2 | 6.00 | 3.00 | 46.0 | 0.50 ± 0.10 | +0.20 (-1.07 to +1.47) | 30.0 |"
    )
    assert lines[4].startswith("| 7 steps, guidance 2 | 9.00 | 4.50 | not trained |")
    assert len({line.count("|") for line in lines}) == 1
    frontier.picture(rows, tmp_path / "frontier.png")
    assert Image.open(tmp_path / "frontier.png").width > 500


def test_effects_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the steps bring 1 and 2 of mAP in the two seeds; an interval costs 0 and 2, FP8 4 and 0."""
    settings = ("50-steps", "25-steps", "25-steps-wide", "25-steps-fp8")
    monkeypatch.setattr(frontier, "TRAINED", settings)
    by_setting = dict(zip(settings, ((50, 54), (49, 52), (49, 50), (45, 52)), strict=True))
    write_scores(tmp_path, {**by_setting, "baseline": (40, 40), "oracle": (59, 61)})
    found = {name: effect["by seed"] for name, effect in frontier.effects(tmp_path).items()}
    gap = 20
    assert found == {
        "halving the steps": [pytest.approx(1 / gap), pytest.approx(2 / gap)],
        "wide": [pytest.approx(0), pytest.approx(2 / gap)],
        "fp8": [pytest.approx(4 / gap), pytest.approx(0)],
    }
    assert frontier.between([1.0, 3.0]) == [pytest.approx(2 - 12.706, rel=1e-3), pytest.approx(2 + 12.706, rel=1e-3)]
