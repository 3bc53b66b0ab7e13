"""Images are decoded as they are, bad lists are refused, augmentation does only what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.reid.dataset import DEVIATION, LUMA, MEAN, AugmentConfig, augment, load_images, normalise
from dive_fast.types import InputError

OFF = AugmentConfig(flip=0, crop=0, erase=0, exchange=0, brightness=0)


def images(count=40, height=32, width=16):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def pixels(normalised):
    return (normalised * DEVIATION + MEAN) * 255


def changed(config, infrared=None, seed=0):
    x = images()
    infrared = torch.zeros(len(x), dtype=torch.bool) if infrared is None else infrared
    return x.float(), pixels(augment(x, infrared, config, torch.Generator().manual_seed(seed)))


def test_rows_follow_the_samples(city):
    samples = city["train"][::-1]
    loaded = load_images(samples, 64, 32)
    assert loaded.images.shape == (len(samples), 3, 64, 32) and loaded.images.dtype == torch.uint8
    assert loaded.pids == tuple(sorted({s.pid for s in samples}))
    assert [loaded.pids[i] for i in loaded.labels] == [s.pid for s in samples]
    assert loaded.infrared.tolist() == [s.modality == "ir" for s in samples]
    assert not loaded.synthetic.any()
    expected = np.asarray(Image.open(samples[5].path)).transpose(2, 0, 1)
    np.testing.assert_array_equal(loaded.images[5].numpy(), expected)
    smaller = load_images(samples[:2], 32, 16).images
    np.testing.assert_array_equal(
        smaller[1].numpy(),
        np.asarray(Image.open(samples[1].path).resize((16, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1),
    )


def test_bad_lists(city, tmp_path):
    sample = city["train"][0]
    with pytest.raises(InputError, match="no samples"):
        load_images([], 64, 32)
    with pytest.raises(InputError, match="more than once"):
        load_images([sample, sample], 64, 32)
    with pytest.raises(InputError, match="thermal"):
        load_images([replace(sample, modality="thermal")], 64, 32)


def test_a_truncated_image_is_named(city, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(city["train"][0].path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"broken\.png"):
        load_images([*city["train"], replace(city["train"][0], path=broken)], 64, 32)


def test_everything_off_is_normalisation():
    before, after = changed(OFF)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    torch.testing.assert_close(normalise(images()), (images() / 255 - MEAN) / DEVIATION, atol=1e-5, rtol=0)


def test_flip():
    before, after = changed(replace(OFF, flip=0.5))
    same = (after - before).abs().amax((1, 2, 3)) < 0.01
    mirrored = (after - before.flip(3)).abs().amax((1, 2, 3)) < 0.01
    assert (same ^ mirrored).all() and 8 < mirrored.sum() < 32


def test_shift_repeats_the_border():
    before, after = changed(replace(OFF, crop=3))
    padded = torch.nn.functional.pad(before, (3, 3, 3, 3), mode="replicate")
    found = set()
    for old, new in zip(padded, after, strict=True):
        places = [
            (y, x) for y in range(7) for x in range(7) if (old[:, y : y + 32, x : x + 16] - new).abs().max() < 0.01
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 15


def test_channel_exchange_leaves_infrared_alone():
    infrared = torch.arange(40) % 2 == 0
    before, after = changed(replace(OFF, exchange=1.0), infrared)
    torch.testing.assert_close(after[infrared], before[infrared], atol=1e-3, rtol=0)
    kinds = set()
    for old, new in zip(before[~infrared], after[~infrared], strict=True):
        options = [*old, torch.einsum("chw,c->hw", old, LUMA)]
        kinds.add(next(i for i, option in enumerate(options) if (new - option).abs().max() < 0.01))
    assert kinds == {0, 1, 2, 3}


def test_brightness_is_one_factor_per_image():
    before, after = changed(replace(OFF, brightness=0.2))
    dark = (before > 1) & (before < 200)
    factors = [(new[d] / old[d]) for old, new, d in zip(before, after, dark, strict=True)]
    assert all(f.std() < 1e-4 and 0.8 <= f.mean() <= 1.2 for f in factors)
    assert np.std([float(f.mean()) for f in factors]) > 0.05


def test_erasing_is_one_grey_box():
    before, after = changed(replace(OFF, erase=1.0))
    gone = ((after - MEAN * 255).abs().amax(1) < 0.01) & ((before - after).abs().amax(1) > 1e-3)
    for mask in gone:
        y, x = mask.nonzero(as_tuple=True)
        area = (y.max() - y.min() + 1) * (x.max() - x.min() + 1)
        assert 1 <= area <= 0.36 * 32 * 16 and mask.sum() == area
    assert torch.equal(after[~gone[:, None].expand_as(after)].round(), before[~gone[:, None].expand_as(after)])


def test_equal_generators_give_equal_batches():
    assert torch.equal(changed(AugmentConfig(), seed=3)[1], changed(AugmentConfig(), seed=3)[1])
    assert not torch.equal(changed(AugmentConfig(), seed=3)[1], changed(AugmentConfig(), seed=4)[1])


@pytest.mark.parametrize("change", [{"flip": 1.5}, {"erase": -0.1}, {"crop": -1}])
def test_bad_config(change):
    with pytest.raises(InputError, match=next(iter(change))):
        AugmentConfig(**change)
