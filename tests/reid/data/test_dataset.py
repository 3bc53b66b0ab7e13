"""Images are decoded as they are, bad lists are refused, augmentation does only what it says."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.reid.data import dataset
from dive_fast.reid.data.augment import CHANNEL_FILL, LUMA, MEAN, STD, coloured, draw, moved, normalise
from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.data.dataset import load_images
from tests.support.refusals import refused

OFF = AugmentConfig(flip=0, crop=0, erase=0, exchange=0, brightness=0)


def images(count=40, height=32, width=16):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(0))


def pixels(normalised):
    return (normalised * STD + MEAN) * 255


def augment(images, infrared, config, seed):
    draws = draw(len(images), *images.shape[2:], config, torch.Generator().manual_seed(seed))
    return coloured(moved(images, torch.arange(len(images)), draws, config.fill), infrared, draws, config)


def changed(config, infrared=None, seed=0):
    x = images()
    infrared = torch.zeros(len(x), dtype=torch.bool) if infrared is None else infrared
    return x.float(), pixels(augment(x, infrared, config, seed))


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
    smaller = np.asarray(Image.open(samples[1].path).resize((16, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_images(samples[:2], 32, 16).images[1].numpy(), smaller)


def test_bad_lists(city, tmp_path):
    sample = city["train"][0]
    refused("no samples", load_images, [], 64, 32)
    refused(sample.path.name, load_images, [sample, sample], 64, 32)
    elsewhere = replace(sample, path=sample.path.parent / ".." / sample.path.parent.name / sample.path.name)
    refused(sample.path.name, load_images, [sample, elsewhere], 64, 32)
    refused("thermal", load_images, [replace(sample, modality="thermal")], 64, 32)
    broken = tmp_path / "broken.png"
    broken.write_bytes(city["train"][0].path.read_bytes()[:300])
    refused(r"broken\.png", load_images, [*city["train"], replace(city["train"][0], path=broken)], 64, 32)


def test_everything_off_is_normalisation():
    before, after = changed(OFF)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    torch.testing.assert_close(normalise(images()), (images() / 255 - MEAN) / STD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pixels", [3, 20, 100])  # more than the width, and than both sides
@pytest.mark.parametrize("fill", ["edge", "black"])
def test_moves_are_those_drawn(fill, pixels):
    """Each image is mirrored, then cut out of itself padded, where numpy does the padding."""
    x = images(12)
    draws = draw(12, 32, 16, AugmentConfig(crop=pixels), torch.Generator().manual_seed(1))
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    assert draws.mirrored.any() and not draws.mirrored.all() and draws.shift.abs().max() > pixels / 2
    out = moved(x, rows, draws, fill).numpy()
    for i, row in enumerate(rows):
        source = x[row].numpy()[:, :, ::-1] if draws.mirrored[i] else x[row].numpy()
        mode = {"mode": "edge"} if fill == "edge" else {"mode": "constant"}
        padded = np.pad(source, ((0, 0), (pixels, pixels), (pixels, pixels)), **mode)
        y, x0 = (draws.shift[i] + pixels).tolist()
        np.testing.assert_array_equal(out[i], padded[:, y : y + 32, x0 : x0 + 16])


def test_a_second_view_is_one_channel_each():
    x = images()
    draws = draw(40, 32, 16, OFF, torch.Generator().manual_seed(0), exchange_all=True)
    after = pixels(coloured(x, torch.zeros(40, dtype=torch.bool), draws, OFF))
    kept = [next(c for c in range(3) if (new - old[c]).abs().max() < 0.01) for old, new in zip(x, after, strict=True)]
    assert set(kept) == {0, 1, 2}


def test_a_part_of_a_batch_gets_what_it_gets_in_the_whole():
    """Processes that share a batch draw for all of it."""
    x, config, infrared = images(), AugmentConfig(), torch.arange(40) % 3 == 0
    draws = draw(40, 32, 16, config, torch.Generator().manual_seed(5))
    whole = coloured(moved(x, torch.arange(40), draws, "edge"), infrared, draws, config)
    rows = torch.tensor([7, 3, 30])
    part = coloured(moved(x, rows, draws.take(rows), "edge"), infrared[rows], draws.take(rows), config)
    assert torch.equal(part, whole[rows])


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


def test_an_erased_box_can_have_a_colour_and_be_larger():
    config = replace(OFF, erase=1.0, erase_most=0.9, erase_fill="channels")
    x = torch.full((200, 3, 32, 16), 255, dtype=torch.uint8)
    after = augment(x, torch.zeros(200, dtype=torch.bool), config, 0)
    box = (after == CHANNEL_FILL).all(1)
    assert (after[:, 0][~box] > 2).all() and len(set(CHANNEL_FILL.flatten().tolist())) == 3
    areas = box.float().mean((1, 2))
    assert 0.5 < areas.max() <= 1 and areas.min() > 0


def test_images_in_a_cache_are_those_in_memory(city, tmp_path, monkeypatch):
    samples = city["train"][:20]
    plain, cached = load_images(samples, 32, 16), load_images(samples, 32, 16, cache=tmp_path)
    assert torch.equal(plain.images, cached.images) and torch.equal(plain.labels, cached.labels)
    (file,) = tmp_path.glob("images-*.u8")
    assert file.stat().st_size == 20 * 3 * 32 * 16
    cached.images.zero_()  # what is done to it in memory stays there
    monkeypatch.setattr(dataset, "open_image", None)  # nothing is decoded again
    assert torch.equal(plain.images, load_images(samples, 32, 16, cache=tmp_path).images)
    os.truncate(file, 100)
    refused("has 100 bytes, expected 30,720; delete it", load_images, samples, 32, 16, cache=tmp_path)


def test_a_cache_that_was_stopped_is_completed(city, tmp_path, monkeypatch):
    samples, decoded, real = city["train"][:20], [], dataset.open_image

    def counting(path):
        decoded.append(path)
        if len(decoded) == 12:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(dataset, "_DECODERS", 1)
    monkeypatch.setattr(dataset, "open_image", counting)
    with pytest.raises(KeyboardInterrupt):
        load_images(samples, 32, 16, cache=tmp_path)
    assert not list(tmp_path.glob("images-*.u8"))
    first = set(decoded[:11])
    decoded[:] = [None] * 100
    again = load_images(samples, 32, 16, cache=tmp_path)
    assert first.isdisjoint(decoded[100:]) and len(decoded) < 100 + 20
    monkeypatch.setattr(dataset, "open_image", real)
    assert torch.equal(again.images, load_images(samples, 32, 16).images)


def test_images_that_memory_cannot_hold_are_refused_in_time(city, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "memory", lambda: (10_000, 10_000))
    monkeypatch.setattr(dataset, "open_image", None)
    refused(r"2 images of 64x32 .*--cache", load_images, city["train"][:2], 64, 32)


def test_equal_generators_give_equal_batches():
    assert torch.equal(changed(AugmentConfig(), seed=3)[1], changed(AugmentConfig(), seed=3)[1])
    assert not torch.equal(changed(AugmentConfig(), seed=3)[1], changed(AugmentConfig(), seed=4)[1])
