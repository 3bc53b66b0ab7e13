"""Training of the pocket base: data, tokenizer, the encoder's start, and a whole run at toy size that resumes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.models import load_bundle
from dive_fast.train.photos import to_signal
from dive_fast.world.base import train as base_train
from dive_fast.world.base.config import BaseShape, BaseTrainConfig, FitConfig, UnetConfig, VaeConfig
from dive_fast.world.base.data import render_base_images
from dive_fast.world.base.model import build_tokenizer, new_text_encoder, new_vae
from dive_fast.world.base.text_train import binding_labels, bindings, copy_words, token_ids, train_text_encoder
from dive_fast.world.base.train import sample_captions, train_base
from dive_fast.world.base.vae_start import start_from_components
from dive_fast.world.base.vae_train import psnr
from dive_fast.world.captions import TONES, caption_words
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused
from tests.support.training import interrupted_call

SHAPE = BaseShape(latent_channels=8, vae_channels=(8, 16, 16, 32), unet_channels=(16, 32), text_width=16, heads=2)
CONFIG = BaseTrainConfig(
    shape=SHAPE,
    vae=VaeConfig(steps=4, batch=2, save_every=2),
    text=FitConfig(steps=4, batch=2, lr=1.5e-3, warmup=200, save_every=2),
    unet=UnetConfig(steps=4, batch=2, save_every=2),
    vae_images=40,
    unet_images=60,
)


@pytest.fixture(scope="module")
def images():
    return render_base_images(1, 60, monochrome_fraction=0.35, noise_fraction=0.0, workers=1, chunk=30)


def test_images_depend_on_their_index_and_not_on_the_split_of_work(images):
    again = render_base_images(1, 20, monochrome_fraction=0.35, noise_fraction=0.0, workers=1, chunk=7)
    assert np.array_equal(again.images, images.images[:20])
    assert again.captions == images.captions[:20]


def test_monochrome_images_say_so_in_their_captions_and_no_other_does(images):
    monochrome = [bool(np.ptp(image.astype(int), axis=-1).max() == 0) for image in images.images]
    assert 10 <= sum(monochrome) <= 32
    assert ["monochrome photo" in caption for caption in images.captions] == monochrome
    toned = [bool(set(caption.split()) & set(TONES)) for caption in images.captions]
    assert not any(named and not one for named, one in zip(toned, monochrome, strict=True))
    assert 0.5 < sum(toned) / sum(monochrome) < 1
    assert all(phrase.strip() for caption in images.captions for phrase in caption.split(" , "))
    colour = render_base_images(1, 20, monochrome_fraction=0.0, noise_fraction=0.5, workers=1).images
    assert all(np.ptp(image.astype(int), axis=-1).max() > 20 for image in colour)


def test_words_are_numbered_alike_each_time(tmp_path):
    first, *others = (build_tokenizer(tmp_path / str(time), BaseShape()) for time in range(4))
    assert all(other.get_vocab() == first.get_vocab() for other in others)
    files = [(tmp_path / str(time) / "tokenizer.json").read_bytes() for time in range(4)]
    assert len(set(files)) == 1


def test_every_caption_word_is_one_token_and_codes_survive(tmp_path):
    tokenizer = build_tokenizer(tmp_path, BaseShape())
    for word in caption_words():
        assert len(tokenizer.tokenize(word)) == 1, word
    pieces = tokenizer.tokenize("8miP")
    assert "".join(p.replace("</w>", "") for p in pieces) == "8mip"
    assert tokenizer.unk_token not in pieces
    assert len(tokenizer("a photo", padding="max_length")["input_ids"]) == 77


def _explained(z: torch.Tensor, blocks: torch.Tensor) -> float:
    """Share of the variance of `blocks` [M, K] that an affine map from `z` [M, D] can give."""
    x = torch.cat([z, torch.ones(len(z), 1)], dim=1).double()
    rest = blocks.double() - x @ torch.linalg.lstsq(x, blocks.double()).solution
    return 1 - float(rest.square().sum() / (blocks - blocks.mean(0)).double().square().sum())


def test_the_encoder_starts_near_the_best_linear_code(images):
    vae = new_vae(SHAPE)
    start_from_components(vae, images.images)
    x = to_signal(images.images)
    with torch.inference_mode():
        posterior = vae.encode(x).latent_dist
    z = posterior.mean.permute(0, 2, 3, 1).reshape(-1, SHAPE.latent_channels)
    blocks = torch.nn.functional.unfold(x, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    centred = (blocks - blocks.mean(0)).double()
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    best = float(values[: SHAPE.latent_channels].sum() / values.sum())
    assert best > 0.9
    assert _explained(z, blocks) > best - 0.03  # nested projections lose a little against one of 8 x 8
    assert torch.allclose(posterior.std, torch.tensor(0.05), atol=1e-3)
    assert z.mean(0).abs().max() < 0.05


def test_the_started_encoder_is_affine_to_a_few_percent(images):
    vae = new_vae(SHAPE)
    start_from_components(vae, images.images)
    a, b = to_signal(images.images[:8]), to_signal(images.images[8:16])
    with torch.inference_mode():
        za, zb, zm = (vae.encode(x).latent_dist.mean for x in (a, b, (a + b) / 2))
    assert (zm - (za + zb) / 2).abs().max() < 0.03 * zm.abs().max()


def test_too_many_components_for_the_last_norm_are_refused(images):
    vae = new_vae(BaseShape(latent_channels=16, vae_channels=(8, 16, 16, 32)))
    refused("16 latent channels .* 6 channels, got 4", start_from_components, vae, images.images, error=ValueError)


def test_psnr_of_a_known_error():
    a = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert psnr(a, a + 16) == pytest.approx(20 * np.log10(255 / 16))


@pytest.mark.slow
def test_a_whole_run_resumes_and_gives_a_model_that_samples(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(base_train, "train_unet", interrupted_call(None, 0))
        with pytest.raises(KeyboardInterrupt):
            train_base(CONFIG, tmp_path / "model", tmp_path / "work")
    assert not (tmp_path / "model").exists()
    report = train_base(CONFIG, tmp_path / "model", tmp_path / "work")
    assert set(report) == {"psnr_rgb", "psnr_monochrome", "psnr_ir"}
    assert json.loads((tmp_path / "model" / "training.json").read_text())["config"]["unet"]["steps"] == 4
    for picture in ("losses.png", "samples.png", "autoencoder.png"):
        with Image.open(tmp_path / "model" / picture) as image:
            assert image.width > 200
    bundle = load_bundle(tmp_path / "model")
    made = sample_captions(bundle, ["a photo of a tall person", "red shirt"], [1, 2], steps=2)
    alone = sample_captions(bundle, ["red shirt"], [2], steps=2)
    assert made.shape == (2, 128, 64, 3)
    assert np.abs(made[1].astype(int) - alone[0].astype(int)).max() <= 1
    other = replace(CONFIG, unet=UnetConfig(batch=3))
    refused("--work", train_base, other, tmp_path / "model2", tmp_path / "work")
    refused("--overwrite", train_base, other, tmp_path / "model", tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    train_base(CONFIG, tmp_path / "model", tmp_path / "work")  # an equal one is no other


@pytest.mark.slow
def test_a_base_learns_on_with_its_autoencoder_kept(tmp_path):
    train_base(CONFIG, tmp_path / "first", tmp_path / "work")
    onward = replace(CONFIG, init_from=str(tmp_path / "first"), unet=replace(CONFIG.unet, seed=1))
    train_base(onward, tmp_path / "second", tmp_path / "more")
    first, second = (load_bundle(tmp_path / name) for name in ("first", "second"))
    assert_same_tensors(first.vae.state_dict(), second.vae.state_dict())
    words = [bundle.text_encoder.get_input_embeddings().weight for bundle in (first, second)]
    assert not torch.equal(*words)
    assert not torch.equal(first.unet.conv_in.weight, second.unet.conv_in.weight)
    again = replace(onward, init_from=str(tmp_path / "second"), text=replace(CONFIG.text, steps=0))
    train_base(again, tmp_path / "kept", tmp_path / "most")
    seen = [  # by words: a tokenizer trained again may number them in another order
        bundle.text_encoder(token_ids(bundle.tokenizer, ["a photo of a tall person"])).last_hidden_state
        for bundle in (second, load_bundle(tmp_path / "kept"))
    ]
    assert torch.equal(*seen)
    caught = [set(np.load(tmp_path / w / "unet-images.npz")["captions"].tolist()) for w in ("work", "more", "most")]
    assert not caught[0] & caught[1] and not caught[1] & caught[2] and not caught[0] & caught[2]
    refused("--work", train_base, CONFIG, tmp_path / "third", tmp_path / "more")


def test_a_launcher_and_a_batch_that_cannot_work_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("dive_fast.train.parallel.rank_and_size", lambda: (0, 3))
    refused("batch of 2 .*3", train_base, CONFIG, tmp_path / "out", tmp_path / "work")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refused("--unet-precision bf16", train_base, CONFIG, tmp_path / "out", tmp_path / "work")
    half = replace(CONFIG, unet=replace(CONFIG.unet, precision="fp16"))
    refused("fp16", train_base, half, tmp_path / "out", tmp_path / "work", "cpu")
    refused("--text-steps 0", replace, CONFIG, text=replace(CONFIG.text, steps=0))
    assert not list(tmp_path.iterdir())


def test_bindings_tie_words_to_the_noun_of_their_phrase():
    said = dict(bindings("a photo of a tall pale person , red over blue cotton coat with white logo , dim warm indoor"))
    assert said == {
        6: {"tall", "pale", "person", "first tall"},
        12: {"red", "over", "blue", "cotton", "coat", "first red"},
        15: {"white", "logo", "first white"},
        19: {"dim", "warm", "indoor", "first dim"},
    }


def test_tones_count_for_their_colour_and_not_as_the_first_word():
    said = dict(bindings("a w5eq monochrome photo of a tall soft pale person , inky red over light blue coat"))
    code = {f"letter {k} {letter}" for k, letter in enumerate("w5eq")}
    assert said[9] == {"tall", "pale", "person", "first tall", "tone 0 soft", "monochrome", *code}
    assert said[16] == {"red", "over", "blue", "coat", "first red", "tone 0 inky", "tone 1 light"}


def test_an_encoder_that_learns_on_keeps_its_words_whatever_their_ids(tmp_path):
    old_tokenizer, tokenizer = build_tokenizer(tmp_path / "old", SHAPE), build_tokenizer(tmp_path / "new", SHAPE)
    old_tokenizer.add_tokens(["<odd>"])
    old, new = new_text_encoder(SHAPE, old_tokenizer), new_text_encoder(SHAPE, tokenizer)
    old.resize_token_embeddings(len(old_tokenizer))
    ids = [t(["red coat"], return_tensors="pt").input_ids for t in (old_tokenizer, tokenizer)]
    before = old(ids[0]).last_hidden_state
    copy_words(old_tokenizer, old, new, tokenizer)
    assert torch.allclose(new(ids[1]).last_hidden_state, before, atol=1e-6)


def test_a_camera_code_is_read_letter_by_letter_at_the_head():
    code = {"letter 0 w", "letter 1 5", "letter 2 e", "letter 3 q"}
    assert bindings("a w5eq photo of a person") == [(5, {"person", "first person"} | code)]
    assert bindings("a photo of a person") == [(4, {"person", "first person"})]


def test_labels_are_for_the_last_token_of_a_noun_and_rare_ones_are_left_out(tmp_path):
    tokenizer = build_tokenizer(tmp_path / "tokenizer", SHAPE)
    captions = ["a w5eq photo of a person , red shirt", "red shirt"] * 2 + ["blue shirt"]
    names, positions, labels = binding_labels(captions, tokenizer, least=3)
    assert names == ["first red", "red", "shirt"]
    tokens = tokenizer(captions)["input_ids"]
    rows = [[row[p] for p in at if p] for row, at in zip(tokens, positions, strict=True)]
    words = [tokenizer.convert_ids_to_tokens(row) for row in rows]
    assert words == [["person</w>", "shirt</w>"], ["shirt</w>"]] * 2 + [["shirt</w>"]]
    nobody, red, blue = [False] * 3, [True] * 3, [False, False, True]
    assert labels.tolist() == [[nobody, red], [red, nobody]] * 2 + [[blue, nobody]]


def test_too_few_captions_are_refused(tmp_path):
    tokenizer = build_tokenizer(tmp_path / "tokenizer", SHAPE)
    refused("2 captions", train_text_encoder, ["red shirt", "blue shirt"], tokenizer, SHAPE, CONFIG.text, tmp_path)
