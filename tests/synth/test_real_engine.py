"""A run with a real (tiny, random) model, so that the fake engine is not all that was ever tried."""

import numpy as np
import pytest
from PIL import Image

from dive_fast.synth.manifest import read_pairs
from dive_fast.synth.verify import verify_dataset
from tests.support.fake_engine import make, tiny_plan, write_photos
from tests.support.tiny import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def engine(tiny_fused):
    from dive_fast.engines import load_engine

    return load_engine(tiny_fused, device="cpu", size=(HEIGHT, WIDTH))


@pytest.mark.parametrize("mode", ["synthetic", "photo-guided"])
def test_batches_differ_by_rounding_at_most(engine, tmp_path, mode):
    photos = write_photos(tmp_path / "photos", {"0001": 2, "0003": 2})
    plan = tiny_plan(engine, mode, photos=photos, photo_root=tmp_path / "photos")
    for rows in (2, 12):
        make(plan, tmp_path / str(rows), engine, rows=rows)
        assert verify_dataset(tmp_path / str(rows)).problems == []
    for one, many in zip(read_pairs(tmp_path / "2"), read_pairs(tmp_path / "12"), strict=True):
        pixels = [np.asarray(Image.open(sample.path)).astype(int) for sample in (one, many)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
        assert np.ptp(pixels[0]) > 10
