"""Latents of a prepared set: equal to encoding the raw photos, kept, made again when they must be, refused when foreign."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.data.prepare import PreparePlan, claimed, finish, finished_shards, pack
from dive_fast.io import sha256_file
from dive_fast.models import ModelBundle, load_bundle
from dive_fast.train.photos import encode_photos, latent_shape, teaching
from dive_fast.train.prepared import encode_shards, encoder_fingerprint, latent_space, load_prepared, missing_latents
from dive_fast.types import InputError
from tests.support.preparing import contents, plan_of
from tests.support.refusals import refused
from tests.support.trees import mixed_trees


@pytest.fixture(scope="module")
def bundle(tiny_base: Path) -> ModelBundle:
    return load_bundle(tiny_base)


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    mixed_trees(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def plan(trees: Path) -> PreparePlan:
    return plan_of(trees)


@pytest.fixture
def out(plan: PreparePlan, tmp_path: Path, bundle: ModelBundle) -> Path:
    """A prepared set with its latents."""
    assert prepare(plan, tmp_path / "out", bundle) == {0, 1, 2}
    return tmp_path / "out"


def prepare(plan: PreparePlan, out: Path, bundle: ModelBundle | None) -> set[int]:
    """Gives the shards that were encoded."""
    encoded = set()
    with claimed(out, plan):
        pack(plan, out, finished_shards(out, plan), lambda _: None)
        if bundle is not None:
            encoded = missing_latents(plan, out, {0, 1, 2}, encoder_fingerprint(bundle))
            encode_shards(plan, out, encoded, bundle, lambda _: None)
        finish(plan, out)
    return encoded


def test_loading_equals_encoding_the_raw_photos(trees, plan, out, bundle):
    raw = encode_photos(bundle, [image.sample for image in plan.images], progress=False)
    shutil.rmtree(trees)
    loaded = load_prepared(out, bundle)
    assert loaded.latents.shape == (14, 2, *latent_shape(bundle)) == (14, 2, 8, 8, 4)
    assert loaded.latents.dtype == torch.float32
    assert torch.allclose(loaded.latents, raw.latents, atol=1e-5)  # batches of 5 here, of 14 there
    named = [[(s.pid, s.camera, s.modality, s.path.name) for s in side.samples] for side in (loaded, raw)]
    assert named[0] == named[1]
    assert list(loaded.teaching) == list(teaching(raw.samples))


def test_damaged_photos_have_no_latents(trees, tmp_path, bundle):
    for number in (1, 2):  # all of the second shard's infrared of person 0002, and one more
        (trees / f"sysu/cam3/0002/{number:04d}.jpg").write_bytes(b"")
    plan = plan_of(trees)
    prepare(plan, tmp_path / "out", bundle)
    good = [image.sample for image in plan.images if image.number not in (6, 7)]
    loaded = load_prepared(tmp_path / "out", bundle)
    assert torch.allclose(loaded.latents, encode_photos(bundle, good, progress=False).latents, atol=1e-5)


def test_a_shard_without_any_good_photo(plan, tmp_path, bundle):
    for image in plan.shard(0):
        image.sample.path.write_bytes(b"")
    prepare(plan, tmp_path / "out", bundle)
    assert len(load_prepared(tmp_path / "out", bundle).samples) == 9


def test_what_is_there_is_kept_and_what_is_lost_made_again(plan, out, bundle):
    expected = contents(out)
    assert prepare(plan, out, bundle) == set()
    for lost, again in (("latents/00001.safetensors", {1}), ("latents/00002.json", {2}), ("shards/00000.tar", set())):
        (out / lost).unlink()
        assert prepare(plan, out, bundle) == again
        assert contents(out) == expected


def test_latents_can_be_added_later_and_stay(plan, tmp_path, bundle):
    out = tmp_path / "out"
    prepare(plan, out, None)
    refused("prepare with --model", load_prepared, out, bundle)
    prepare(plan, out, bundle)
    prepare(plan, out, None)
    assert len(load_prepared(out, bundle).samples) == 14


def test_a_repaired_photo_is_encoded_with_its_shard(plan, tmp_path, bundle):
    out = tmp_path / "out"
    path = plan.images[7].sample.path
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    prepare(plan, out, bundle)
    path.write_bytes(whole)
    assert prepare(plan, out, bundle) == {1}
    prepare(plan, tmp_path / "uninterrupted", bundle)
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_latents_of_another_encoder_are_refused(plan, out, tiny_base):
    other = load_bundle(tiny_base)
    other.vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    refused(r"its latents are by encoder \w{12}, this model's is \w{12} \(another VAE", load_prepared, out, other)
    refused(r"--out.*/latents", prepare, plan, out, other)


def test_what_names_an_encoder(bundle, tiny_base):
    """Decoder, UNet and text encoder say nothing about latents; scaling and image size do."""
    mine = encoder_fingerprint(bundle)
    other = load_bundle(tiny_base)
    for part in (other.vae.decoder, other.unet, other.text_encoder):
        next(part.parameters()).data += 1
    assert encoder_fingerprint(other) == mine
    other.vae.register_to_config(scaling_factor=0.5)
    assert encoder_fingerprint(other) != mine
    other = load_bundle(tiny_base)
    other.unet.register_to_config(sample_size=(16, 8))
    assert encoder_fingerprint(other) != mine


def test_damaged_or_missing_latents_are_refused(out, bundle):
    path = out / "latents/00001.safetensors"
    cut = path.read_bytes()[:-3]
    for damaged in (cut + b"\0\0\1", cut):
        path.write_bytes(damaged)
        refused(r"00001\.safetensors is damaged", load_prepared, out, bundle)
    recorded = json.loads((out / "latents/00001.json").read_text())["sha256"]
    save_file({"latents": torch.zeros(1, 2, 3)}, path)
    for file in (out / "latents/00001.json", out / "prepared.json"):
        file.write_text(file.read_text().replace(recorded, sha256_file(path)))
    refused(r"00001\.safetensors .*latents", load_prepared, out, bundle)
    path.unlink()
    refused(r"00001\.safetensors is missing", load_prepared, out, bundle)


def test_space_for_latents(plan, out, bundle):
    photo = 2 * 8 * 8 * 4 * 4
    assert 9 * photo < latent_space(plan, {1, 2}, bundle) < 10 * photo + 2 * 2_048
    size = sum(path.stat().st_size for path in (out / "latents").iterdir())
    assert size <= latent_space(plan, {0, 1, 2}, bundle)


def test_latents_that_are_not_finite_are_never_written(plan: PreparePlan, tmp_path: Path, bundle: ModelBundle) -> None:
    """Finite weights whose sums are not."""
    with torch.no_grad():
        huge = copy.deepcopy(bundle)
        for parameter in huge.vae.quant_conv.parameters():
            parameter.fill_(3e38)
    with pytest.raises(InputError, match="VAE makes NaN or infinity of"):
        prepare(plan, tmp_path / "huge", huge)
    assert not list((tmp_path / "huge").rglob("*.safetensors"))
