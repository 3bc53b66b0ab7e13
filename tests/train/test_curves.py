"""Loss curves: a picture that shows the log's values, and clear words when there is nothing to show."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive_fast.train.curves import Curve, plot_curves
from dive_fast.train.loop import LossLog
from tests.support.refusals import refused


def _log(path: Path, values: list[float]) -> Curve:
    log = LossLog(path, 0)
    for step, value in enumerate(values):
        log.add(step * 10, loss=value)
    return Curve(path, "loss", "a loss")


def test_the_picture_follows_the_values(tmp_path: Path):
    blue = {}
    for name, values in {"falling": [1 / (1 + i) for i in range(60)], "rising": [i / 60 for i in range(60)]}.items():
        plot_curves([_log(tmp_path / f"{name}.jsonl", values)], tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        ys, xs = np.nonzero((pixels[..., 2] - pixels[..., 0]) > 80)  # the smoothed line is blue
        left, right = ys[xs < np.median(xs)].mean(), ys[xs > np.median(xs)].mean()
        blue[name] = right - left  # rows count downwards
    assert blue["falling"] > 10
    assert blue["rising"] < -10


@pytest.mark.parametrize("line", ["3", "{}", '{"step": 1, "loss": "x"}', '{"step": [], "loss": 1}'])
def test_lines_of_another_kind_are_refused(tmp_path: Path, line: str):
    curve = _log(tmp_path / "a.jsonl", [3.0])
    curve.log.write_text(curve.log.read_text() + line + "\n")
    refused(r"a\.jsonl", plot_curves, [curve], tmp_path / "a.png")


def test_two_logs_stand_side_by_side(tmp_path: Path):
    curve = _log(tmp_path / "a.jsonl", [3.0, 2.0, 1.0])
    plot_curves([curve], tmp_path / "one.png")
    plot_curves([curve, curve], tmp_path / "two.png")
    one, two = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "two.png")
    assert two.width == 2 * one.width
    assert two.height == one.height


def test_an_empty_or_missing_log_is_said(tmp_path: Path):
    (tmp_path / "empty.jsonl").touch()
    for name in ("empty", "none"):
        refused(rf"{name}\.jsonl", plot_curves, [Curve(tmp_path / f"{name}.jsonl", "loss", "x")], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
