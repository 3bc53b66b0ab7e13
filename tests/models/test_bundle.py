import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import add_identity_tokens, add_lora, fuse, load_bundle, save_bundle
from dive_fast.models.files import WEIGHTS
from dive_fast.sampling import Sampling
from dive_fast.types import DiveError, Identity, InputError
from tests.support.models import assert_same_tensors, json_edit, tensor_edit, truncate
from tests.support.refusals import refused
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH, tiny_adapter

UNET, VAE, TEXT = (f"{part}/{name}" for part, name in WEIGHTS.items())
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
INDEX, SCHEDULER, TOKENIZER = "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"


def test_parts_are_float32_frozen_and_in_eval_mode(bundle):
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())
    assert bundle.prompts is None
    assert bundle.scheduler_config["beta_schedule"] == "scaled_linear"


def test_parts_equal_those_that_diffusers_loads(tiny_base, bundle):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, local_files_only=True)
    for part in WEIGHTS:
        assert_same_tensors(getattr(pipe, part).state_dict(), getattr(bundle, part).state_dict())
    assert pipe.tokenizer.get_vocab() == bundle.tokenizer.get_vocab()


@pytest.mark.parametrize("variant", ["", ".fp16"], ids=["plain-name", "fp16-name"])
def test_fp16_files_are_upcast(folder, variant):
    exact = {}
    for part, name in WEIGHTS.items():
        path = folder / part / name
        tensor_edit(f"{part}/{name}", lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})(folder)
        exact[part] = load_file(path)
        path.rename(path.with_name(name.replace(".safetensors", variant + ".safetensors")))
    loaded = load_bundle(folder)
    for part, tensors in exact.items():
        state = getattr(loaded, part).state_dict()
        for key, tensor in tensors.items():
            assert state[key].dtype == torch.float32 and torch.equal(state[key], tensor.float())


@pytest.mark.parametrize("infix", ["{}.fp16-{:05d}-of-00002", "{}-{:05d}-of-00002.fp16", "{}-{:05d}-of-00002"])
def test_shards_are_read_by_their_index_however_they_are_spelled(folder, infix, bundle):
    for part, name in WEIGHTS.items():
        tensors, stem = load_file(folder / part / name), name.removesuffix(".safetensors")
        (folder / part / name).unlink()
        files = [infix.format(stem, number) + ".safetensors" for number in (1, 2)]
        placed = {key: files[number % 2] for number, key in enumerate(tensors)}
        for file in files:
            save_file(
                {key: tensor.half() for key, tensor in tensors.items() if placed[key] == file}, folder / part / file
            )
        index = folder / part / (f"{name}.index.fp16.json" if "fp16" in infix else f"{name}.index.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    loaded = load_bundle(folder)
    for part in WEIGHTS:
        for key, tensor in getattr(bundle, part).state_dict().items():
            assert torch.equal(getattr(loaded, part).state_dict()[key], tensor.half().float())
    index.write_text(json.dumps({"weight_map": {key: "../" + placed[key] for key in placed}}))
    refused(f"text_encoder.*{index.name}", load_bundle, folder)


def test_files_that_are_not_loaded_do_no_harm(folder, bundle):
    """What macOS, editors and Git leave beside the weights; and byte-order marks, as Notepad writes them."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name("._" + path.name).write_bytes(b"\x00\x05\x16\x07" + bytes(60))
        if path.suffix == ".json":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(LFS_POINTER)
    assert load_bundle(folder).fingerprint == bundle.fingerprint


def test_published_names_load_and_hash_alike(folder, bundle):
    """The published SD 1.5 files: text encoder behind a prefix, VAE attention under its first names."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for key, tensor in tensors.items():
            for new, first in old.items():
                key = key.replace(f".{new}.", f".{first}.") if ".attentions." in key else key
            renamed[key] = tensor
        assert any("proj_attn" in key for key in renamed)
        return renamed

    tensor_edit(VAE, rename)(folder)
    tensor_edit(TEXT, lambda state: {"text_model." + key.removeprefix("text_model."): state[key] for key in state})(
        folder
    )
    assert load_bundle(folder).fingerprint == bundle.fingerprint


def test_fingerprint_survives_saving_by_diffusers(tiny_base, bundle, tmp_path):
    """diffusers writes every default into the configurations; that is no other model."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, local_files_only=True)
    pipe.save_pretrained(tmp_path / "resaved")
    assert load_bundle(tmp_path / "resaved").fingerprint == bundle.fingerprint


def test_fingerprint_is_pinned(folder, tmp_path):
    """The same number on every machine and with every version of the libraries: a plan or adapter names models by it."""

    def counted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights without chance: multiples of 1/512 by name and place, exact in every float format from float16 up."""
        filled = {}
        for name, tensor in tensors.items():
            start = zlib.crc32(name.removeprefix("text_model.").encode()) % 251
            places = torch.arange(tensor.numel(), dtype=torch.int64).reshape(tensor.shape)
            filled[name] = ((places * 37 + start) % 251 - 125).float() / 512
        return filled

    for part, name in WEIGHTS.items():
        tensor_edit(f"{part}/{name}", counted)(folder)
    pinned = "53ef9b31484e429356a4cfe348254b4d521697531a8dad62cc81987b7f8264cf"
    loaded = load_bundle(folder)
    assert loaded.fingerprint == pinned
    save_bundle(loaded, tmp_path / "half", dtype=torch.float16)
    assert load_bundle(tmp_path / "half").fingerprint == pinned  # the numbers count, not how they lie in the file


def test_stable_diffusion_2s_kind_is_read_from_a_folder(folder, tmp_path):
    """Linear projections, heads by block, GELU and v-prediction; and an adapter fuses into it."""
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet/config.json").read_text())
    config |= {"use_linear_projection": True, "attention_head_dim": [2, 4]}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    json_edit("text_encoder/config.json", hidden_act="gelu")(folder)
    json_edit(SCHEDULER, prediction_type="v_prediction")(folder)
    loaded = load_bundle(folder)
    fused = fuse(loaded, tiny_adapter(loaded))
    save_bundle(fused, tmp_path / "fused")
    assert load_bundle(tmp_path / "fused").fingerprint == fused.fingerprint


def test_a_field_that_diffusers_does_not_know_is_ignored_with_a_note(folder, bundle):
    json_edit("unet/config.json", of_a_newer_diffusers="x" * 1000)(folder)
    with pytest.warns(UserWarning, match="unet.* of_a_newer_diffusers") as caught:
        assert load_bundle(folder).fingerprint == bundle.fingerprint
    assert all("xxx" not in str(warning.message) for warning in caught)


def test_settings_of_another_sampler_do_not_make_another_model(folder, bundle):
    json_edit(SCHEDULER, use_karras_sigmas=True, solver_order=3)(folder)
    with pytest.warns(UserWarning, match="use_karras_sigmas"):
        assert load_bundle(folder).fingerprint == bundle.fingerprint


def nudge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    key = sorted(tensors)[0]
    tensors[key].view(-1)[0] += 1e-3
    return tensors


CHANGES: dict[str, Callable[[Path], None]] = {
    "a unet weight": tensor_edit(UNET, nudge),
    "a vae weight": tensor_edit(VAE, nudge),
    "a text weight": tensor_edit(TEXT, nudge),
    "the vae scale": json_edit("vae/config.json", scaling_factor=0.5),
    "the unet heads": json_edit("unet/config.json", attention_head_dim=8),
    "the text activation": json_edit("text_encoder/config.json", hidden_act="gelu"),
    "the noise schedule": json_edit(SCHEDULER, beta_end=0.013),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_fingerprint_sees(change, folder, bundle):
    change(folder)
    assert load_bundle(folder).fingerprint != bundle.fingerprint


def test_fingerprint_names_the_model_as_loaded(bundle, tiny_base):
    loaded = load_bundle(tiny_base)
    add_identity_tokens(loaded, [Identity("0001", "<class_0>")], torch.ones(1, TEXT_WIDTH))
    add_lora(loaded.unet, rank=2, alpha=2)
    assert loaded.fingerprint == bundle.fingerprint  # taken by add_identity_tokens before its change
    add_lora(bundle.unet, rank=2, alpha=2)
    del bundle.fingerprint
    with pytest.raises(DiveError, match="LoRA"):
        _ = bundle.fingerprint


def test_save_and_load_are_exact(bundle, tiny_base, tmp_path):
    save_bundle(bundle, tmp_path / "saved")
    loaded = load_bundle(tmp_path / "saved")
    assert loaded.fingerprint == bundle.fingerprint
    assert loaded.scheduler_config == bundle.scheduler_config
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]  # no temporary folder is left
    texts = [path.read_text() for path in (tmp_path / "saved").rglob("*.json")]
    assert len(texts) > 5 and not any(str(tiny_base.parent) in text for text in texts)


def test_saved_in_fp16_takes_half_the_room_and_loads_as_float32(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "full")
    save_bundle(bundle, tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "unet" / WEIGHTS["unet"]).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half = load_bundle(tmp_path / "half")
    for name, weight in half.unet.state_dict().items():
        assert torch.equal(weight, bundle.unet.state_dict()[name].half().float())
    assert half.fingerprint != bundle.fingerprint


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["fp32-files", "fp16-files"])
def test_plain_diffusers_draws_from_a_saved_folder(dtype, bundle, tmp_path):
    from diffusers import StableDiffusionPipeline

    bundle.text_encoder.config.dtype = torch.float16  # as loaded from a folder that says so
    save_bundle(bundle, tmp_path / "saved", dtype=dtype)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 8 * LATENT_SHAPE[1], 8 * LATENT_SHAPE[2], 3)
    assert pipe.tokenizer.model_max_length == MAX_TOKENS


def test_save_replaces_its_own_folder_and_no_other(bundle, folder, tmp_path):
    save_bundle(bundle, tmp_path / "saved")
    save_bundle(bundle, tmp_path / "saved")  # an equal one
    refused("--overwrite", save_bundle, bundle, tmp_path / "saved", torch.float16)
    save_bundle(bundle, tmp_path / "saved", torch.float16, overwrite=True)
    assert (
        load_file(tmp_path / "saved/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    )
    before = sorted(folder.rglob("*"))
    (tmp_path / "file").write_text("x")
    for other in (folder, tmp_path / "file"):
        refused(str(other), save_bundle, bundle, other)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_a_failed_save_leaves_the_old_folder(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "saved")
    bundle.scheduler_config = {"_class_name": "PNDMScheduler", "beta_end": float("nan")}
    refused("not JSON compliant", save_bundle, bundle, tmp_path / "saved", error=ValueError)
    add_lora(bundle.unet, rank=2, alpha=2)
    refused("remove_lora", save_bundle, bundle, tmp_path / "saved", error=DiveError)
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]
    load_bundle(tmp_path / "saved")


def without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors.pop(sorted(tensors)[3])
    return tensors


def with_other_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "conv_in.weight": tensors["conv_in.weight"][:, :3].contiguous()}


def vocabulary_without(token: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "tokenizer/vocab.json"
        tokens = json.loads(path.read_text())
        path.write_text(json.dumps({name.replace(token, "other"): number for name, number in tokens.items()}))

    return edit


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "not a folder"),
    "no model_index": (lambda f: (f / INDEX).unlink(), r"model_index\.json .*unet"),
    "index not JSON": (lambda f: (f / INDEX).write_text("{"), r"model_index\.json"),
    "SDXL": (json_edit(INDEX, _class_name="StableDiffusionXLPipeline"), "StableDiffusionXLPipeline"),
    "other unet class": (json_edit(INDEX, unet=["diffusers", "UNet3D"]), "unet is a UNet3D; .*UNet2DConditionModel"),
    "no unet folder": (lambda f: shutil.rmtree(f / "unet"), "no unet"),
    "no unet config": (lambda f: (f / "unet/config.json").unlink(), "unet"),
    "null vae": (json_edit(INDEX, vae=[None, None]), "no vae"),
    "pickled unet": (lambda f: (f / UNET).rename(f / "unet/model.bin"), "no .*safetensors .*model.bin"),
    "truncated unet": (lambda f: truncate(f / UNET), "unet/.*safetensors"),
    "truncated text": (lambda f: truncate(f / TEXT), r"model\.safetensors"),
    "unet lacks a tensor": (tensor_edit(UNET, without_one), "unet lacks 1 of "),
    "vae lacks a tensor": (tensor_edit(VAE, without_one), "vae lacks 1 of "),
    "text lacks a tensor": (tensor_edit(TEXT, without_one), "text_encoder lacks 1 of "),
    "unet of another shape": (tensor_edit(UNET, with_other_shape), r"unet .*conv_in\.weight"),
    "text of another width": (json_edit("text_encoder/config.json", intermediate_size=48), "text_encoder"),
    "no vocabulary": (lambda f: (f / "tokenizer/vocab.json").unlink(), "tokenizer.json nor vocab.json"),
    "broken vocabulary": (lambda f: (f / "tokenizer/vocab.json").write_text("{"), "tokenizer"),
    "no token of a merge": (vocabulary_without("person</w>"), "tokenizer .*person"),
    "a token far away": (json_edit("tokenizer/vocab.json", x=4 * 10**9), "token ids far beyond"),
    "no token limit": (lambda f: (f / TOKENIZER).write_text('{"tokenizer_class": "CLIP"}'), "model_max_length"),
    "too many tokens": (json_edit(TOKENIZER, model_max_length=77), "77 tokens.* 32"),
    "no scheduler config": (lambda f: (f / SCHEDULER).unlink(), "scheduler_config.json"),
    "scheduler without class": (lambda f: (f / SCHEDULER).write_text("{}"), "scheduler_config.json"),
    "sample prediction": (json_edit(SCHEDULER, prediction_type="sample"), "'sample'.*'epsilon'"),
    "wrong type": (json_edit("unet/config.json", norm_num_groups={}), "unet.*config.json"),
    "no image size": (json_edit("unet/config.json", sample_size="big"), "sample_size is 'big'"),
    "no scale": (json_edit("vae/config.json", scaling_factor=[]), r"scaling_factor is \[\]"),
    "shifted latents": (json_edit("vae/config.json", shift_factor=0.1), "shift_factor"),
    "too many blocks": (json_edit("vae/config.json", down_block_types=["DownEncoderBlock2D"] * 5), "vae"),
    "impossible heads": (json_edit("text_encoder/config.json", num_attention_heads=2**40), "text_encoder.*larger"),
    "endless layers": (json_edit("text_encoder/config.json", num_hidden_layers=10**8), "text_encoder.*larger"),
    "endless blocks": (json_edit("unet/config.json", transformer_layers_per_block=[[10**6, 2]]), "unet.*larger"),
    "a number of 31 digits": (json_edit("unet/config.json", layers_per_block=10**30), "31 digits"),
    "infinity": (json_edit("unet/config.json", downsample_padding=float("-inf")), "not finite"),
    "weights that are no numbers": (
        tensor_edit(UNET, lambda t: {**t, "conv_in.bias": t["conv_in.bias"] * math.nan}),
        "NaN",
    ),
    "a pointer of Git LFS": (lambda f: (f / UNET).write_bytes(LFS_POINTER), "Git LFS pointer"),
    "a pipe": (
        lambda f: ((f / "tokenizer/merges.txt").unlink(), os.mkfifo(f / "tokenizer/merges.txt")),
        "merges.txt .*pipe",
    ),
    "no token limit, as transformers writes it": (json_edit(TOKENIZER, model_max_length=int(1e30)), "model_max_length"),
    "token limit of another type": (json_edit(TOKENIZER, model_max_length="\x00"), "model_max_length"),
    "a list as scheduler": (lambda f: (f / SCHEDULER).write_text("[]"), "scheduler_config.json"),
    "broken prompts": (lambda f: (f / "prompts.json").write_text("[]"), "prompts.json"),
}


@pytest.mark.parametrize(("break_it", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_named(break_it, part, folder):
    break_it(folder)
    with pytest.raises(InputError, match=f"^[^\n]*{part}[^\n]*$") as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)


def test_parts_of_different_models_are_named(folder, bundle, tmp_path):
    from diffusers import AutoencoderKL

    config = dict(bundle.vae.config, latent_channels=6)
    AutoencoderKL.from_config(config).save_pretrained(folder / "vae")
    refused("8 -> 8 channels.* 6", load_bundle, folder)


def test_a_model_s_own_sampling_goes_from_base_to_fused_model(bundle, tmp_path):
    """It changes no weight, so it is not in the fingerprint; a model without it stays without."""
    save_bundle(bundle, tmp_path / "without")
    assert load_bundle(tmp_path / "without").sampling is None and not (tmp_path / "without/sampling.json").exists()
    own = Sampling(12, 3.0, (0.5, 2.0))
    save_bundle(replace(bundle, sampling=own), tmp_path / "base")
    base = load_bundle(tmp_path / "base")
    assert (base.sampling, base.fingerprint) == (own, bundle.fingerprint)
    save_bundle(fuse(base, tiny_adapter(base)), tmp_path / "fused")
    assert load_bundle(tmp_path / "fused").sampling == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "list"),
        ('{"steps": 0, "guidance": 2}', "steps .*got 0"),
        ('{"speed": 1}', "speed"),
        ("{", "sampling.json"),
    ],
)
def test_a_damaged_sampling_is_refused(folder, text, message):
    (folder / "sampling.json").write_text(text)
    refused(message, load_bundle, folder)


def test_the_pocket_model_records_its_sampling():
    from dive_fast.models.files import ASSETS
    from dive_fast.models.sampling_file import read_sampling

    assert read_sampling(ASSETS / "pocket-base") == Sampling(20, 2.0)
