"""A Stable Diffusion 1 model in one file equals its folder; what is no such file is named."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.models import fuse, load_bundle, save_bundle
from dive_fast.models.interop import import_adapter
from dive_fast.models.single_file import _CONFIGS
from dive_fast.types import InputError
from tests.support.adapters import run
from tests.support.ldm import ldm_tensors, write_single_file
from tests.support.lora_layouts import CAMERAS, write_lora, write_person

UNET = "model.diffusion_model."


@pytest.fixture
def beside(base_folder: Path, tmp_path: Path) -> Path:
    """A folder without weights: the configurations and the vocabulary of the base model."""
    folder = tmp_path / "sd"
    shutil.copytree(base_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def single(bundle, beside: Path) -> Path:
    return write_single_file(bundle, beside / "model.safetensors")


@pytest.mark.slow
def test_one_file_is_the_model_of_the_folder(bundle, single, beside):
    for loaded in (load_bundle(single), load_bundle(single, beside)):
        assert loaded.fingerprint == bundle.fingerprint
        for part in ("unet", "vae", "text_encoder"):
            ours, theirs = getattr(loaded, part), getattr(bundle, part)
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
            assert not ours.training
            assert not any(p.requires_grad for p in ours.parameters())
        assert torch.equal(run(loaded.unet), run(bundle.unet))
        ids = torch.arange(64).reshape(2, 32)
        assert torch.equal(loaded.text_encoder(ids)[0], bundle.text_encoder(ids)[0])


def test_diffusers_reads_the_file_alike(single, beside, bundle):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_single_file(str(single), config=str(beside), local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(pipe, part).state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in getattr(bundle, part).state_dict().items())


def test_the_file_works_wherever_a_folder_does(bundle, single, adapter, tmp_path):
    person = write_person(tmp_path / "person.safetensors", adapter)
    lora = write_lora(tmp_path / "lora.safetensors", adapter, "kohya")
    loaded = load_bundle(single)
    fused = fuse(loaded, import_adapter(loaded, [person, lora], CAMERAS).adapter)
    save_bundle(fused, tmp_path / "fused")
    assert load_bundle(tmp_path / "fused").fingerprint == fused.fingerprint
    save_bundle(loaded, tmp_path / "folder")
    assert load_bundle(tmp_path / "folder").fingerprint == bundle.fingerprint


def test_neither_network_nor_random_numbers_are_used(single, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: pytest.fail("the network was asked"))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    load_bundle(single)
    assert torch.equal(before, torch.random.get_rng_state())


def test_half_precision_and_names_without_text_model_are_read(bundle, beside):
    tensors = {
        name.replace("transformer.text_model.", "transformer."): t.half() for name, t in ldm_tensors(bundle).items()
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside / "half.safetensors")
    loaded = load_bundle(beside / "half.safetensors")
    for part in ("unet", "vae", "text_encoder"):
        for name, tensor in getattr(loaded, part).state_dict().items():
            assert torch.equal(tensor, getattr(bundle, part).state_dict()[name].half().float())


def test_averaged_weights_are_taken_where_there_are_some(bundle, beside):
    def averaged(name: str) -> str:
        return "model_ema." + name.removeprefix("model.").replace(".", "")

    ema = {averaged(name): tensor + 1 for name, tensor in ldm_tensors(bundle).items() if name.startswith(UNET)}
    more = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    path = write_single_file(bundle, beside / "both.safetensors", **ema, **more)
    state = load_bundle(path).unet.state_dict()
    assert all(torch.equal(state[name], tensor + 1) for name, tensor in bundle.unet.state_dict().items())
    left_out = min(ema)
    write_single_file(bundle, path, **{**ema, left_out: None}, **more)
    with pytest.raises(InputError, match=f"1 averaged weights are missing, first {left_out}"):
        load_bundle(path)


@pytest.mark.slow
def test_without_configurations_it_is_stable_diffusion_15(bundle, single, tmp_path):
    """Its sizes are those of the published networks, and the vocabulary may lie in the file's folder itself."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts = [
            UNet2DConditionModel.from_config(_CONFIGS["unet"]),
            AutoencoderKL.from_config(_CONFIGS["vae"]),
            CLIPTextModel(CLIPTextConfig(**_CONFIGS["text_encoder"])),
        ]
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [859_520_964, 83_653_863, 123_060_480]
    alone = tmp_path / "alone"
    shutil.copytree(single.parent / "tokenizer", alone)
    shutil.copy(single, alone)
    with pytest.raises(InputError) as caught:
        load_bundle(alone / single.name)
    assert (
        "tensors of the unet are missing or have another shape, first conv_in.weight [320, 4, 3, 3] ([32, 8, 3, 3])"
        in str(caught.value)
    )


def move_away(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def replaced(*names: str) -> Callable[[Path], None]:
    return lambda folder: save_file({name: torch.zeros(2, 3) for name in names}, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vocabulary": (move_away, r"is a single file, which has no vocabulary, .* or name it with --tokenizer"),
    "truncated": (cut, "is not a whole safetensors file"),
    "bad config": (lambda f: (f / "unet/config.json").write_text("[]"), "is no configuration of diffusers"),
    "impossible config": (lambda f: (f / "unet/config.json").write_text('{"act_fn": 3}'), "no unet can be made"),
    "bad scheduler": (lambda f: (f / "scheduler/scheduler_config.json").write_text("{}"), "is no configuration"),
    "SDXL": (
        replaced("conditioner.embedders.0.x", UNET + "x"),
        "is Stable Diffusion XL; only a whole Stable Diffusion 1",
    ),
    "SD 2": (
        replaced("cond_stage_model.model.ln_final.bias", UNET + "x"),
        r"is Stable Diffusion 2 \(its text encoder is",
    ),
    "SD 3": (replaced(UNET + "joint_blocks.0.x"), "is Stable Diffusion 3"),
    "Flux": (replaced("double_blocks.0.img_attn.norm.key_norm.scale"), "is Flux"),
    "LoRA": (replaced("lora_unet_down_blocks_0.lora_up.weight"), "is a LoRA"),
    "UNet of diffusers": (replaced("down_blocks.0.resnets.0.conv1.weight"), "is one network in diffusers' names"),
    "junk": (replaced("a", "b"), r"has no tensors under model.diffusion_model.… \(first 'a'\)"),
    "empty": (replaced(), r"has no tensors under model.diffusion_model.… \(first 'none'\)"),
}


@pytest.mark.parametrize(("break_it", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_such_file_is_named(break_it, words, single):
    break_it(single.parent)
    with pytest.raises(InputError, match=words) as caught:
        load_bundle(single)
    assert "\n" not in str(caught.value)


TENSORS = {
    "of the unet": (
        UNET + "out.2.weight",
        r"1 of \d+ tensors of the unet .* first conv_out.weight \[8, 32, 3, 3\] \(missing\)",
    ),
    "of the vae": (
        "first_stage_model.quant_conv.bias",
        r"tensors of the vae .* first quant_conv.bias \[16\] \(missing\)",
    ),
    "of the text": (
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        r"tensors of the text_encoder .* \[32\] \(missing\)",
    ),
}


@pytest.mark.parametrize(("name", "words"), TENSORS.values(), ids=TENSORS.keys())
def test_a_missing_tensor_is_named(name, words, bundle, beside):
    path = write_single_file(bundle, beside / "model.safetensors", **{name: None})
    with pytest.raises(InputError, match=words):
        load_bundle(path)


def test_inputs_beyond_stable_diffusion_1_are_named(bundle, beside):
    path = write_single_file(bundle, beside / "model.safetensors", **{UNET + "label_emb.0.0.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="the UNet has 1 tensors too many for its configuration, first .*label_emb"):
        load_bundle(path)
    nine = torch.zeros(32, 9, 3, 3)
    path = write_single_file(bundle, path, **{UNET + "input_blocks.0.0.weight": nine})
    with pytest.raises(InputError, match=r"first conv_in.weight \[32, 8, 3, 3\] \(\[32, 9, 3, 3\]\)"):
        load_bundle(path)


def test_a_pickled_checkpoint_and_a_tokenizer_for_a_folder_are_refused(beside, base_folder):
    (beside / "model.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"is no .safetensors file \(a .ckpt may run code\); convert it"):
        load_bundle(beside / "model.ckpt")
    with pytest.raises(InputError, match="a folder has its own tokenizer; leave --tokenizer out"):
        load_bundle(base_folder, beside)
