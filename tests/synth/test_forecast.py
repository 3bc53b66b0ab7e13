"""What a plan is forecast to take, beside files of noise written by Pillow and a dataset that was made."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive_fast.synth.forecast import forecast
from dive_fast.types import PairMode
from tests.support.fake_engine import make, photo_plan, plan_of


@pytest.mark.parametrize("mode", ["real-rgb", "synthetic", "photo-guided"])
@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_a_dataset_stays_below_its_forecast(mode: PairMode, image_format: str, tmp_path: Path) -> None:
    if mode == "synthetic":
        plan = plan_of(image_format=image_format)
    else:
        plan = photo_plan(tmp_path / "photos", {"0001": 2, "0003": 1}, mode, image_format=image_format)
    summary = make(plan, tmp_path / "out")
    found = forecast(plan)
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file() and f.suffix in (".png", ".jpg", ".jsonl")]
    assert found.images == summary.images == len(plan.pairs) * (2 if mode == "synthetic" else 1)
    assert sum(file.stat().st_size for file in files) <= found.bytes
    assert found.seconds is None and "at" not in found.describe().split("most about")[1]


def test_the_bound_is_that_of_noise() -> None:
    plan = plan_of(mode="synthetic", height=512, width=256, image_format="png")
    noise = np.random.default_rng(1).integers(0, 256, (512, 256, 3), np.uint8)
    rgb, ir = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(rgb, "PNG")
    Image.fromarray(noise[..., 0]).save(ir, "PNG")
    least = len(plan.pairs) * (len(rgb.getvalue()) + len(ir.getvalue()))
    assert least <= forecast(plan).bytes <= 1.05 * least  # records and tags are 2 kB a pair, below half a percent


def test_a_rate_gives_the_time_in_days_where_it_is_days() -> None:
    plan = plan_of(mode="synthetic", pairs_per_identity=500)
    found = forecast(plan, 0.01)
    assert found.seconds == found.images / 0.01 and found.seconds > 2 * 86400
    assert found.describe().endswith(f"about {found.seconds / 86400:,.1f} days at 0.01 images/s")
