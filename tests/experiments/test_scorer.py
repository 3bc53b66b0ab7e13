"""Picture quality at toy size: the scorer, true images as the best that can be reached, the autoencoder, the command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.data.images import open_image
from dive_fast.experiments import scorer as room
from dive_fast.io import read_json
from dive_fast.models import load_bundle
from dive_fast.types import Sample
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world
from tests.support.dataset import write_dataset
from tests.support.refusals import refused

SHOTS = 2
SPEC = WorldSpec(paired_ids=1, test_ids=4, external_ids=5, images_per_camera=2, market_images=4)
SMALL = replace(room.SCORER, steps=40, identities=4, per_modality=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scorer") / "world"
    build_world(out, SPEC)
    return out


@pytest.fixture(scope="module")
def scorer(world, tmp_path_factory) -> Path:
    return room.train_scorer(world, tmp_path_factory.mktemp("scorer") / "net", SMALL, progress=False)


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_bundle(tiny_base)


@pytest.mark.slow
def test_the_scorer_knows_the_test_people_and_is_trained_once(world, scorer):
    record = read_json(scorer / "reid.json", "")
    assert record["pids"] == ["0301", "0302", "0303", "0304"]
    assert (record["images"], record["infrared"], record["synthetic"]) == (4 * 6 * 2, 4 * 2 * 2, 0)
    before = (scorer / "model.safetensors").stat().st_mtime_ns
    assert room.train_scorer(world, scorer, SMALL, progress=False) == scorer
    assert (scorer / "model.safetensors").stat().st_mtime_ns == before
    refused("another config", room.train_scorer, world, scorer, replace(SMALL, seed=1), progress=False)


def test_true_shots_are_split(world):
    gallery, others = room.true_infrared(world, SHOTS)
    assert len(gallery) == len(others) == 5 * 2 * 2 and not {*gallery} & {*others}
    assert {sample.path.stem for sample in gallery} == {"0001", "0002"}
    refused("smaller --shots", room.true_infrared, world, 4)


@pytest.mark.slow
def test_true_images_as_generated_ones_are_as_good_as_the_truth(world, scorer, base):
    _, others = room.true_infrared(world, SHOTS)
    found = room.picture_quality(world, others[::-1], base, scorer, shots=SHOTS, progress=False)
    assert found.generated == found.true
    assert [row.camera for row in found.generated] == ["all", "cam3", "cam6"]
    assert [row.kept.images for row in found.generated] == [20, 10, 10]
    assert [(row.distance.made, row.distance.real) for row in found.decoded] == [(20, 20), (10, 10), (10, 10)]
    for true, decoded in zip(found.true, found.decoded, strict=True):  # by an untrained autoencoder
        assert true.kept.by_image.value > decoded.kept.by_image.value
        assert true.distance.kid < decoded.distance.kid
        assert min(level for level in true.brightness.values() if level is not None) > 0.8
    ratio = found.ratios()["cam3"]
    assert ratio["fid"] == found.true[1].distance.fid / found.decoded[1].distance.fid < 1
    assert ratio["fid_above_true"] == ratio["kid_above_true"] == 0
    lines = room.table(found).splitlines()
    assert len(lines) == 1 + 3 * 3 + 3 and f"{found.decoded[0].distance.fid:.2f}" in lines[4]


@pytest.mark.slow
def test_another_identitys_images_are_not_kept(world, scorer, base):
    _, others = room.true_infrared(world, SHOTS)
    pids = sorted({sample.pid for sample in others})
    following = dict(zip(pids, [*pids[1:], pids[0]], strict=True))
    wrong = [replace(sample, pid=following[sample.pid]) for sample in others if sample.camera == "cam6"]
    found = room.picture_quality(world, wrong, base, scorer, shots=SHOTS, progress=False)
    assert [row.camera for row in found.generated] == ["all"]
    assert found.generated[0].kept.by_image.value < found.true[0].kept.by_image.value
    assert found.true[0].kept.images == len(wrong)
    assert found.generated[0].distance.fid == pytest.approx(found.true[0].distance.fid)  # sets have no names
    assert found.generated[0].brightness["torso"] < found.true[0].brightness["torso"]


def test_correlations_by_hand():
    true = np.array([[1.0, 5], [2, 5], [3, 5]])
    assert room.correlations(np.array([[3.0, 1], [5, 2], [4, 3]]), true) == {"torso": pytest.approx(0.5), "legs": None}


def test_ratios_by_hand():
    def rows(kid: float, fid: float):
        return (SimpleNamespace(camera="cam3", distance=SimpleNamespace(kid=kid, fid=fid)),)

    found = room.PictureQuality(rows(0.5, 9), rows(-0.1, 3), rows(-0.4, 1)).ratios()
    assert found == {
        "cam3": {"kid": None, "fid": 3, "kid_above_true": pytest.approx(3), "fid_above_true": 4},
    }
    assert room.PictureQuality(rows(0.5, 9), rows(0, 1), rows(0, 1)).ratios()["cam3"]["fid_above_true"] is None


class Unchanged(torch.nn.Module):
    """An autoencoder that returns its images."""

    config = SimpleNamespace(block_out_channels=(1,), latent_channels=3)
    device = torch.device("cpu")

    def encode(self, signal):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=signal))

    def decode(self, latents):
        return SimpleNamespace(sample=latents)


def test_decoded_photos_are_files_as_synthesis_writes_them(world, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_DECODED", 3)
    bundle = SimpleNamespace(vae=Unchanged(), unet=SimpleNamespace(config=SimpleNamespace(sample_size=(128, 64))))
    photos = room.true_infrared(world, SHOTS)[1][:8]
    made = room.decode_photos(bundle, photos, tmp_path, progress=False)
    for one, photo in zip(made, photos, strict=True):
        assert (one.pid, one.camera, one.source, one.modality) == (photo.pid, photo.camera, "synthetic", "ir")
        assert Image.open(one.path).mode == "L"
        np.testing.assert_array_equal(open_image(one.path), open_image(photo.path))


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused(world, scorer, base):
    gallery, others = room.true_infrared(world, SHOTS)
    stranger = [*others, Sample(gallery[0].path.with_name("0009.jpg"), "0001", "cam3", "synthetic", "ir")]
    for words, made in (
        ("1 of 6 identities", stranger),
        ("no query image", []),
        ("got cam3 2", [s for s in others if s.camera == "cam3"][:2]),
        ("got cam9 0", [replace(sample, camera="cam9") for sample in others]),
    ):
        refused(words, room.picture_quality, world, made, base, scorer, shots=SHOTS, progress=False)


@pytest.mark.slow
def test_the_command_measures_a_dataset(world, scorer, tiny_base, tmp_path, step, monkeypatch):
    def draw(side: str, name: str) -> Image.Image:
        camera, pid, file = name.split("/")
        shot = f"{3 + int(Path(file).stem) % 2:04d}.jpg"
        return Image.open(world / "oracle" / ("cam3" if side == "rgb" else camera) / pid / shot)

    pids = [f"{pid:04d}" for pid in SPEC.external_pids]
    pairs = write_dataset(tmp_path / "pairs", draw, pids=pids, pairs_per_identity=2, height=128, width=64)
    line = f"world quality --world {world} --pairs {pairs} --model {tiny_base} --shots {SHOTS} --device cpu --scorer"
    found = step(f"{line} {scorer}")
    assert [row["camera"] for row in found["generated"]] == ["all", "cam3", "cam6"]
    assert found["generated"][0]["kept"]["identities"] == 5 and "each" not in found["generated"][0]["kept"]
    assert {"kid", "fid_above_true"} < set(found["ratios"]["all"])
    monkeypatch.setattr(room, "train_scorer", lambda world, out, device: shutil.copytree(scorer, out))
    assert step(f"{line} {tmp_path / 'new'}") == found
