"""LoRA of other tools: the same adapter out of every layout, exact scaling, and what has no place is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import fuse
from dive_fast.models.interop import import_adapter
from dive_fast.models.lora import lora_pairs
from dive_fast.types import InputError
from tests.support.adapters import run
from tests.support.lora_layouts import CAMERAS, NAMES, attention_processor, kohya, write_lora, write_person

A_LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def person(adapter, tmp_path) -> Path:
    return write_person(tmp_path / "person.safetensors", adapter)


def take(bundle, *paths: Path, drop_unsupported: bool = False):
    return import_adapter(bundle, paths, CAMERAS, drop_unsupported=drop_unsupported)


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("layout", NAMES)
def test_every_layout_gives_the_same_adapter(layout, suffix, bundle, adapter, person, tmp_path):
    path = write_lora(tmp_path / f"lora{suffix}", adapter, layout)
    imported = take(bundle, path, person)
    made = imported.adapter
    assert (made.rank, made.alpha, made.base_fingerprint) == (adapter.rank, adapter.alpha, bundle.fingerprint)
    assert made.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(made.lora[key], adapter.lora[key]) for key in made.lora)
    assert (imported.landed, imported.linears, imported.dropped) == (32, 32, ())
    assert {file["name"] for file in made.facts["imported"]["files"]} >= {path.name, "person.safetensors"}


def as_diffusers_reads(bundle, path: Path):
    """The UNet with the LoRA of the file active."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=bundle.vae, text_encoder=bundle.text_encoder, tokenizer=bundle.tokenizer, unet=bundle.unet,
        scheduler=PNDMScheduler.from_config(bundle.scheduler_config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    return pipe.unet


def mixed(adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """A, B and alpha of the adapter's linears, with ranks 4, 3, 2 and alphas that fit no common factor."""
    made = {}
    for number, (linear, (a, b)) in enumerate(lora_pairs(adapter.lora).items()):
        rank = (4, 3, 2)[number % 3]
        made[linear] = (a[:rank].contiguous(), b[:, :rank].contiguous(), 1.0 + number % 5)
    return made


def write_mixed(path: Path, pairs, dtype: torch.dtype = torch.float32) -> Path:
    tensors = {}
    for linear, (a, b, alpha) in pairs.items():
        name = kohya(f"{linear}.lora_A.weight").split(".")[0]
        tensors |= {
            f"{name}.lora_down.weight": a,
            f"{name}.lora_up.weight": b,
            f"{name}.alpha": torch.tensor(alpha, dtype=dtype),
        }
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_mixed_ranks_and_alphas_become_one_to_rounding(dtype, bundle, adapter, person, tmp_path):
    pairs = mixed(adapter)
    made = take(bundle, write_mixed(tmp_path / "lora.safetensors", pairs, dtype), person).adapter
    assert (made.rank, made.alpha) == (4, 4.0)
    for linear, (a, b) in lora_pairs(made.lora).items():
        down, up, alpha = pairs[linear]
        factor = alpha / len(down)
        exact = factor * (up.double() @ down.double())
        bound = 2.0**-24 * factor * (up.double().abs() @ down.double().abs())  # B is rounded once
        assert bool(((b.double() @ a.double() - exact).abs() <= bound).all())


def assert_acts_as_in_diffusers(bundle, path: Path, person: Path) -> None:
    ours = run(fuse(bundle, take(bundle, path, person).adapter).unet)
    theirs = as_diffusers_reads(bundle, path)
    plain, truth = run(theirs), run(theirs.double())
    assert (ours.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max()


def test_mixed_ranks_act_as_in_diffusers(bundle, adapter, person, tmp_path):
    """One alpha: of several in kohya's layout diffusers 0.42 keeps the most frequent one for all attention."""
    pairs = {linear: (a, b, 3.0) for linear, (a, b, _) in mixed(adapter).items()}
    assert_acts_as_in_diffusers(bundle, write_mixed(tmp_path / "lora.safetensors", pairs), person)


def save_by_diffusers(folder: Path, config, state: dict[str, torch.Tensor]) -> Path:
    from diffusers import StableDiffusionPipeline

    description = {**config.to_dict(), "target_modules": sorted(config.target_modules)}
    StableDiffusionPipeline.save_lora_weights(folder, state, unet_lora_adapter_metadata=description)
    return folder / "pytorch_lora_weights.safetensors"


def test_the_header_that_diffusers_writes_counts(bundle, adapter, person, tmp_path):
    from peft import LoraConfig

    pairs = mixed(adapter)
    state = {
        f"{linear}.lora_{part}.weight": t for linear, pair in pairs.items() for part, t in zip("AB", pair, strict=False)
    }
    config = LoraConfig(
        r=4, lora_alpha=10.0, target_modules=list(pairs), alpha_pattern={"attn2.to_k": 1.0, A_LINEAR: 7.0},
        rank_pattern={linear: len(a) for linear, (a, *_) in pairs.items()},
    )  # fmt: skip
    assert_acts_as_in_diffusers(bundle, save_by_diffusers(tmp_path, config, state), person)


def test_ranks_alone_may_differ_exactly(bundle, adapter, person, tmp_path):
    """With one factor for all, zeros fill the smaller ones up and no number is touched."""
    pairs = {linear: (a, b, 1.5 * len(a)) for linear, (a, b, _) in mixed(adapter).items()}
    made = take(bundle, write_mixed(tmp_path / "lora.safetensors", pairs), person).adapter
    assert (made.rank, made.alpha) == (4, 6.0)
    for linear, (a, b) in lora_pairs(made.lora).items():
        down, up, _ = pairs[linear]
        assert torch.equal(a[: len(down)], down)
        assert torch.equal(b[:, : len(down)], up)
        assert not a[len(down) :].any()
        assert not b[:, len(down) :].any()


@pytest.mark.slow
def test_an_alpha_of_zero_takes_its_linear_out(bundle, adapter, person, tmp_path):
    pairs = mixed(adapter)
    pairs[A_LINEAR] = (*pairs[A_LINEAR][:2], 0.0)
    made = take(bundle, write_mixed(tmp_path / "lora.safetensors", pairs), person).adapter
    assert not made.lora[f"{A_LINEAR}.lora_B.weight"].any()


def test_linears_without_lora_stay_as_they_are(bundle, adapter, person, tmp_path):
    few = {key: tensor for key, tensor in adapter.lora.items() if ".attn2." in key}
    path = tmp_path / "lora.safetensors"
    save_file({"unet." + key: tensor for key, tensor in few.items()}, path)
    imported = take(bundle, path, person)
    assert (imported.landed, imported.linears) == (16, 32)
    fused = fuse(bundle, imported.adapter).unet.state_dict()
    before = bundle.unet.state_dict()
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], fused[name])}
    assert changed == {key.split(".lora_")[0] for key in few}


@pytest.mark.parametrize("rooted", [False, True])
def test_pefts_description_counts(rooted, bundle, adapter, person, tmp_path):
    adapter = replace(adapter, alpha=10.0)
    path = write_lora(tmp_path / "adapter_model.safetensors", adapter, "peft")
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 10.0,
        "use_rslora": rooted,
        "alpha_pattern": {"attn2.to_k": 1.0},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    made = take(bundle, path, person).adapter
    for linear, (a, b) in lora_pairs(made.lora).items():
        alpha = 1.0 if linear.endswith("attn2.to_k") else 10.0
        down, up = lora_pairs(adapter.lora)[linear]
        assert torch.equal(a, down)
        torch.testing.assert_close(made.alpha / made.rank * b, alpha / (2 if rooted else 4) * up)


FURTHER = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 32),
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(64, 4),
    "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(4.0),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_down.weight": torch.zeros(4, 32),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_up.weight": torch.zeros(256, 4),
    "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.zeros(4, 32, 3, 3),
    "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.zeros(32, 4, 1, 1),
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 32, 1, 1),
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(32, 4, 1, 1),
    "bundle_emb.face.string_to_param.*": torch.zeros(1, 32),
}


def test_layers_without_a_place_are_named_and_dropped_only_on_request(bundle, adapter, person, tmp_path):
    path = write_lora(tmp_path / "lora.safetensors", adapter, "kohya", **FURTHER)
    with pytest.raises(InputError) as caught:
        take(bundle, path, person)
    said = str(caught.value)
    assert "32 of its 36 LoRA layers fit" in said
    assert all(
        f"1 of {kind}" in said for kind in ("text encoder", "feed-forward layers", "projections around attention")
    )
    assert "--drop-unsupported leaves them out" in said
    imported = take(bundle, path, person, drop_unsupported=True)
    assert sorted(imported.dropped) == sorted(
        {key.split(".")[0] for key in FURTHER if key[0] == "l"} | {list(FURTHER)[-1]}
    )
    assert imported.adapter.facts["imported"]["dropped"] == list(imported.dropped)
    assert all(torch.equal(imported.adapter.lora[key], adapter.lora[key]) for key in adapter.lora)


@pytest.mark.parametrize("part", ["dora_scale", "lora_mid.weight"])
def test_a_linear_with_a_part_unknown_to_adapters_does_not_land_in_half(part, bundle, adapter, person, tmp_path):
    name = "lora_unet_" + A_LINEAR.replace(".", "_")
    path = write_lora(tmp_path / "lora.safetensors", adapter, "kohya", **{f"{name}.{part}": torch.ones(1)})
    form = f"1 of attention in another form than LoRA, first '{A_LINEAR} as {part}'"
    with pytest.raises(InputError, match=f"31 of its 32 LoRA layers fit, and an adapter has no place for {form}"):
        take(bundle, path, person)
    imported = take(bundle, path, person, drop_unsupported=True)
    assert imported.dropped == (f"{A_LINEAR} as {part}",)
    assert not imported.adapter.lora[f"{A_LINEAR}.lora_B.weight"].any()


def test_nothing_landed_is_an_error_even_when_dropping(bundle, person, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(FURTHER, path)
    with pytest.raises(InputError, match="none of its 4 LoRA layers fits this base model: it has 1 of"):
        take(bundle, path, person, drop_unsupported=True)


def test_loha_is_no_lora(bundle, person, tmp_path):
    name = "lora_unet_" + A_LINEAR.replace(".", "_")
    path = tmp_path / "loha.safetensors"
    save_file({f"{name}.hada_w{i}_{x}": torch.zeros(4, 4) for i in (1, 2) for x in "ab"}, path)
    with pytest.raises(
        InputError, match="has 1 of attention in another form than LoRA, first '.*attn2.to_k as hada_w1_a'"
    ):
        take(bundle, path, person)


def test_a_lora_of_stable_diffusion_xl_is_recognised(bundle, person, tmp_path):
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    path = tmp_path / "xl.safetensors"
    save_file({f"{name}.lora_down.weight": torch.zeros(4, 2048), f"{name}.lora_up.weight": torch.zeros(640, 4)}, path)
    with pytest.raises(InputError, match=r"which reads text 2048 wide \(Stable Diffusion XL\).*use the base model"):
        take(bundle, path, person)


def test_a_lora_of_other_widths_is_recognised(bundle, adapter, person, tmp_path):
    path = write_lora(tmp_path / "lora.safetensors", adapter, "attention processors")
    edit(path, **{attention_processor(f"{A_LINEAR}.lora_A.weight"): torch.zeros(4, 1024)})
    with pytest.raises(InputError) as caught:
        take(bundle, path, person)
    said = str(caught.value)
    assert f"LoRA of {A_LINEAR} has A [4, 1024] and B [32, 4], this UNet needs A [4, 32] and B [32, 4]" in said
    assert "it reads text 1024 wide (Stable Diffusion 2) and this base model's is 32 wide (another model)" in said


A_KEY, B_KEY = (f"unet.{A_LINEAR}.lora_{part}.weight" for part in "AB")
BROKEN = {
    "half a pair": ({B_KEY: None}, f"LoRA of {A_LINEAR} has no B; the file is not whole"),
    "twice": ({A_KEY.replace("lora_A", "lora.down"): torch.zeros(4, 32)}, "name the same tensor; keep one of them"),
    "whole numbers": ({A_KEY: torch.zeros(4, 32, dtype=torch.int64)}, r"is torch.int64 \[4, 32\], expected floating point"),
    "flat": ({A_KEY: torch.zeros(128)}, r"is torch.float32 \[128\], expected floating point \[rows, columns\]"),
    "no number": ({A_KEY: torch.full((4, 32), torch.nan)}, "holds NaN or infinity"),
    "bad alpha": ({f"unet.{A_LINEAR}.alpha": torch.tensor(float("nan"))}, "must be one finite number, got nan"),
    "alphas": ({f"unet.{A_LINEAR}.alpha": torch.ones(2)}, "must be one finite number, got tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_lora_is_named(changes, words, bundle, adapter, person, tmp_path):
    path = write_lora(tmp_path / "lora.safetensors", adapter, "diffusers")
    edit(path, **changes)
    with pytest.raises(InputError, match=words) as caught:
        take(bundle, path, person)
    assert "\n" not in str(caught.value)


DESCRIPTIONS = {
    "none": (None, "does not give its alpha; put its adapter_config.json beside it"),
    "not JSON": ("{", "is not valid JSON"),
    "a list": ("[]", "must be a JSON object, got list"),
    "LoHa": ('{"peft_type": "LOHA"}', "describes LOHA, only plain LoRA"),
    "DoRA": ('{"r": 4, "lora_alpha": 4, "use_dora": true}', "describes DoRA, only plain LoRA"),
    "no alpha": ('{"r": 4}', "needs the numbers r and lora_alpha, got 4 and None"),
    "other rank": ('{"r": 8, "lora_alpha": 4}', "has rank 8, its tensors have rank 4"),
    "bad pattern": ('{"r": 4, "lora_alpha": 4, "alpha_pattern": {"(": 1}}', "is no regular expression"),
    "pattern of text": ('{"r": 4, "lora_alpha": 4, "alpha_pattern": {"a": "b"}}', "must map names to numbers"),
}


def test_a_description_is_read_from_wherever_it_is_named(bundle, adapter, person, tmp_path):
    path = write_lora(tmp_path / "peft" / "adapter_model.safetensors", replace(adapter, alpha=6.0), "peft")
    (tmp_path / "elsewhere").mkdir()
    config = path.with_name("adapter_config.json").rename(tmp_path / "elsewhere" / "adapter_config.json")
    assert take(bundle, path, person, config).adapter.alpha == 6.0


@pytest.mark.parametrize(("text", "words"), DESCRIPTIONS.values(), ids=DESCRIPTIONS.keys())
def test_a_bad_description_is_named(text, words, bundle, adapter, person, tmp_path):
    path = write_lora(tmp_path / "peft" / "adapter_model.safetensors", adapter, "peft")
    config = path.with_name("adapter_config.json")
    config.unlink()
    if text is not None:
        config.write_text(text)
    with pytest.raises(InputError, match=words):
        take(bundle, path, person)
