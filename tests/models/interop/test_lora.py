"""LoRA of other tools: the same adapter from every layout, exact scaling, and layers that fit nowhere are named."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import fuse
from dive_fast.models.interop import import_adapter
from dive_fast.models.lora import lora_pairs
from tests.support.lora_layouts import CAMERAS, NAMES, kohya, write_identity, write_lora
from tests.support.models import assert_same_tensors, diffusers_pipeline, run_unet
from tests.support.refusals import refused

pytestmark = pytest.mark.slow

A_LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def identity(adapter, tmp_path) -> Path:
    return write_identity(tmp_path / "identity.safetensors", adapter)


def take(bundle, *paths: Path, drop_unsupported: bool = False):
    return import_adapter(bundle, paths, CAMERAS, drop_unsupported=drop_unsupported)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("layout", NAMES)
def test_every_layout_gives_the_same_adapter(layout, suffix, bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / f"lora{suffix}", adapter, layout)
    imported = take(bundle, path, identity)
    made = imported.adapter
    assert (made.rank, made.alpha, made.base_fingerprint) == (adapter.rank, adapter.alpha, bundle.fingerprint)
    assert_same_tensors(made.lora, adapter.lora)
    assert (imported.landed, imported.linears, imported.dropped) == (32, 32, ())
    assert {file["name"] for file in made.metadata["imported"]["files"]} >= {path.name, "identity.safetensors"}


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
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_mixed_ranks_and_alphas_become_one_to_rounding(dtype, bundle, adapter, identity, tmp_path):
    pairs = mixed(adapter)
    made = take(bundle, write_mixed(tmp_path / "lora.safetensors", pairs, dtype), identity).adapter
    assert (made.rank, made.alpha) == (4, 4.0)
    for linear, (a, b) in lora_pairs(made.lora).items():
        down, up, alpha = pairs[linear]
        factor = alpha / len(down)
        exact = factor * (up.double() @ down.double())
        bound = 2.0**-24 * factor * (up.double().abs() @ down.double().abs())  # B is rounded once
        assert bool(((b.double() @ a.double() - exact).abs() <= bound).all())


def assert_acts_as_in_diffusers(bundle, path: Path, identity: Path) -> None:
    ours = run_unet(fuse(bundle, take(bundle, path, identity).adapter).unet)
    pipe = diffusers_pipeline(bundle)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    plain, truth = run_unet(pipe.unet), run_unet(pipe.unet.double())
    assert (ours.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max()


def test_mixed_ranks_act_as_in_diffusers(bundle, adapter, identity, tmp_path):
    """One alpha: of several in kohya's layout diffusers 0.42 keeps the most frequent one for all attention."""
    pairs = {linear: (a, b, 3.0) for linear, (a, b, _) in mixed(adapter).items()}
    assert_acts_as_in_diffusers(bundle, write_mixed(tmp_path / "lora.safetensors", pairs), identity)


def test_the_header_that_diffusers_writes_counts(bundle, adapter, identity, tmp_path):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig

    pairs = mixed(adapter)
    state = {f"{linear}.lora_{part}.weight": pair["AB".index(part)] for linear, pair in pairs.items() for part in "AB"}
    ranks = {linear: len(a) for linear, (a, *_) in pairs.items()}
    alphas = {"attn2.to_k": 1.0, A_LINEAR: 7.0}
    config = LoraConfig(r=4, lora_alpha=10.0, target_modules=list(pairs), alpha_pattern=alphas, rank_pattern=ranks)
    header = {**config.to_dict(), "target_modules": sorted(config.target_modules)}
    StableDiffusionPipeline.save_lora_weights(tmp_path, state, unet_lora_adapter_metadata=header)
    assert_acts_as_in_diffusers(bundle, tmp_path / "pytorch_lora_weights.safetensors", identity)


def test_the_header_of_a_unet_that_diffusers_saved_alone_counts(bundle, identity, tmp_path):
    """`save_lora_adapter` of a network writes names and header without the prefix of a pipeline."""
    from peft import LoraConfig

    unet = copy.deepcopy(bundle.unet)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    unet.save_lora_adapter(tmp_path)
    ours = run_unet(fuse(bundle, take(bundle, tmp_path / "pytorch_lora_weights.safetensors", identity).adapter).unet)
    plain, truth = run_unet(unet), run_unet(unet.double())
    assert (ours.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max()


@pytest.mark.parametrize("header", [{"ss_v_parameterization": "True"}, {"modelspec.prediction_type": "v"}])
def test_a_lora_of_a_model_with_another_prediction_is_refused(header, bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "lora.safetensors", adapter, "kohya")
    save_file(load_file(path), path, metadata=header)
    refused("lora.safetensors.* v_prediction .* epsilon", take, bundle, path, identity)
    scheduler = {**bundle.scheduler_config, "prediction_type": "v_prediction"}
    of_its_kind = replace(bundle, scheduler_config=scheduler)
    assert_same_tensors(take(of_its_kind, path, identity).adapter.lora, adapter.lora)
    save_file(
        load_file(path), path, metadata={"ss_v_parameterization": "False", "modelspec.prediction_type": "epsilon"}
    )
    assert_same_tensors(take(bundle, path, identity).adapter.lora, adapter.lora)


def test_with_one_factor_ranks_may_differ_exactly_and_alpha_0_removes_a_linear(bundle, adapter, identity, tmp_path):
    """Zeros pad the smaller ranks and no number changes."""
    pairs = {linear: (a, b, 1.5 * len(a)) for linear, (a, b, _) in mixed(adapter).items()}
    made = take(bundle, write_mixed(tmp_path / "lora.safetensors", pairs), identity).adapter
    assert (made.rank, made.alpha) == (4, 6.0)
    for linear, (a, b) in lora_pairs(made.lora).items():
        down, up, _ = pairs[linear]
        assert torch.equal(a[: len(down)], down)
        assert torch.equal(b[:, : len(down)], up)
        assert not a[len(down) :].any()
        assert not b[:, len(down) :].any()
    pairs[A_LINEAR] = (*pairs[A_LINEAR][:2], 0.0)
    made = take(bundle, write_mixed(tmp_path / "lora.safetensors", pairs), identity).adapter
    assert not made.lora[f"{A_LINEAR}.lora_B.weight"].any()


def test_linears_without_lora_stay_as_they_are(bundle, adapter, identity, tmp_path):
    few = {key: tensor for key, tensor in adapter.lora.items() if ".attn2." in key}
    path = tmp_path / "lora.safetensors"
    save_file({"unet." + key: tensor for key, tensor in few.items()}, path)
    imported = take(bundle, path, identity)
    assert (imported.landed, imported.linears) == (16, 32)
    fused, before = fuse(bundle, imported.adapter).unet.state_dict(), bundle.unet.state_dict()
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], fused[name])}
    assert changed == {key.split(".lora_")[0] for key in few}


@pytest.mark.parametrize("rooted", [False, True])
def test_pefts_configuration_counts(rooted, bundle, adapter, identity, tmp_path):
    adapter = replace(adapter, alpha=10.0)
    path = write_lora(tmp_path / "adapter_model.safetensors", adapter, "peft")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 10.0, "alpha_pattern": {"attn2.to_k": 1.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": rooted}))
    made = take(bundle, path, identity).adapter
    for linear, (a, b) in lora_pairs(made.lora).items():
        alpha = 1.0 if linear.endswith("attn2.to_k") else 10.0
        down, up = lora_pairs(adapter.lora)[linear]
        assert torch.equal(a, down)
        torch.testing.assert_close(made.alpha / made.rank * b, alpha / (2 if rooted else 4) * up)


LAYERS = {  # with the shape of a convolution's kernel
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj": (),
    "lora_unet_down_blocks_0_resnets_0_conv1": (3, 3),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (1, 1),
}
FURTHER = {f"{name}.lora_down.weight": torch.zeros(4, 32, *kernel) for name, kernel in LAYERS.items()}
FURTHER |= {f"{name}.lora_up.weight": torch.zeros(32, 4, *kernel) for name, kernel in LAYERS.items()}
FURTHER |= {"bundle_emb.face.string_to_param.*": torch.zeros(1, 32)}


def test_layers_that_no_adapter_holds_are_named_and_dropped_only_on_request(bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "lora.safetensors", adapter, "kohya", **FURTHER)
    groups = [f"1 of {group}" for group in ("text encoder", "feed-forward layers", "projections around attention")]
    refused(["32 of its 36 ", "--drop-unsupported", *groups], take, bundle, path, identity)
    imported = take(bundle, path, identity, drop_unsupported=True)
    assert sorted(imported.dropped) == sorted([*LAYERS, list(FURTHER)[-1]])
    assert imported.adapter.metadata["imported"]["dropped"] == list(imported.dropped)
    assert_same_tensors(imported.adapter.lora, adapter.lora)
    save_file(FURTHER, path)
    refused("none of its 4", take, bundle, path, identity, drop_unsupported=True)


PARTS = ["dora_scale", "lora_mid.weight", "scalar", "lora_magnitude_vector", "lora_C.weight", "base_layer.weight"]


@pytest.mark.parametrize("part", PARTS)
def test_a_linear_with_parts_of_another_form_does_not_land_in_half(part, bundle, adapter, identity, tmp_path):
    name = kohya(f"{A_LINEAR}.lora_A.weight").split(".")[0]
    path = write_lora(tmp_path / "lora.safetensors", adapter, "kohya", **{f"{name}.{part}": torch.ones(1)})
    refused(f"31 of its 32 .*'{A_LINEAR} as {part}'", take, bundle, path, identity)
    imported = take(bundle, path, identity, drop_unsupported=True)
    assert imported.dropped == (f"{A_LINEAR} as {part}",)
    assert not imported.adapter.lora[f"{A_LINEAR}.lora_B.weight"].any()


@pytest.mark.parametrize(
    "magnitude", ["{}.lora_magnitude_vector", "unet._orig_mod.{}.m", "{}.lora_magnitude.default.weight"]
)
def test_magnitudes_under_other_names_than_their_linears_have_are_no_lora(
    magnitude, bundle, adapter, identity, tmp_path
):
    """kohya's names of A and B, and DoRA's magnitudes under names with dots, as diffusers' converter leaves them."""
    linears = lora_pairs(adapter.lora)
    dotted = [kohya(f"{name}.lora_A.weight").split(".")[0].replace("_to_", ".to_") for name in linears]
    names = dotted if magnitude.startswith("{}.lora_magnitude_v") else list(linears)
    further = {magnitude.format(name): torch.ones(32) for name in names}
    path = write_lora(tmp_path / "dora.safetensors", adapter, "kohya", **further)
    refused("none of its 32", take, bundle, path, identity, drop_unsupported=True)


@pytest.mark.parametrize("name", ["dora_magnitudes.0", "all.scale", "alpha", "multiplier"])
def test_a_magnitude_of_no_layer_stops_the_import(name, bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "dora.safetensors", adapter, "kohya", **{name: torch.ones(32)})
    refused(name, take, bundle, path, identity, drop_unsupported=True)


def test_names_of_another_layout_are_told_from_another_model(bundle, adapter, identity, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({f"my.{key}": tensor for key, tensor in adapter.lora.items()}, path)
    refused("names of another layout", take, bundle, path, identity)


def test_what_pefts_own_configuration_says_of_training_changes_nothing(bundle, adapter, identity, tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], lora_dropout=0.1, init_lora_weights="gaussian")
    path = write_lora(tmp_path / "adapter_model.safetensors", adapter, "peft")
    config.save_pretrained(tmp_path)
    assert_same_tensors(take(bundle, path, identity).adapter.lora, adapter.lora)


def test_loha_and_a_lora_of_stable_diffusion_xl_are_recognised(bundle, identity, tmp_path):
    path, name = tmp_path / "other.safetensors", kohya(f"{A_LINEAR}.lora_A.weight").split(".")[0]
    save_file({f"{name}.hada_w{i}_{x}": torch.zeros(4, 4) for i in (1, 2) for x in "ab"}, path)
    refused(r"'.*attn2.to_k as hada_w1_a'", take, bundle, path, identity)
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.lora_down.weight": torch.zeros(4, 2048), f"{name}.lora_up.weight": torch.zeros(640, 4)}, path)
    refused("2048 wide, as Stable Diffusion XL", take, bundle, path, identity)


A_KEY, B_KEY = (f"unet.{A_LINEAR}.lora_{part}.weight" for part in "AB")
BROKEN = {
    "half a pair": ({B_KEY: None}, f"{A_LINEAR} has no B"),
    "twice": ({A_KEY.replace("lora_A", "lora.down"): torch.zeros(4, 32)}, "name the same tensor"),
    "whole numbers": ({A_KEY: torch.zeros(4, 32, dtype=torch.int64)}, r"torch.int64 \[4, 32\]"),
    "flat": ({A_KEY: torch.zeros(128)}, r"torch.float32 \[128\]"),
    "no number": ({A_KEY: torch.full((4, 32), torch.nan)}, "NaN"),
    "other width": ({A_KEY: torch.zeros(4, 1024)}, r"\[4, 1024\].* \[4, 32\].*1024 wide, as Stable Diffusion 2"),
    "bad alpha": ({f"unet.{A_LINEAR}.alpha": torch.tensor(float("nan"))}, "alpha.* nan"),
    "alphas": ({f"unet.{A_LINEAR}.alpha": torch.ones(2)}, "alpha.* tensor"),
}


@pytest.mark.parametrize(("changes", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_lora_is_named(changes, part, bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "lora.safetensors", adapter, "diffusers")
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    refused(f"^[^\n]*{part}[^\n]*$", take, bundle, path, identity)


CONFIGURATIONS = {
    "none": (None, "adapter_config.json"),
    "not JSON": ("{", "adapter_config.json"),
    "a list": ("[]", "adapter_config.json.* list"),
    "LoHa": ('{"peft_type": "LOHA"}', "LOHA"),
    "DoRA": ('{"r": 4, "lora_alpha": 4, "use_dora": true}', "use_dora true"),
    "PiSSA": ('{"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}', "init_lora_weights .*pissa_niter_4"),
    "OLoRA": ('{"r": 4, "lora_alpha": 4, "init_lora_weights": "olora"}', "olora"),
    "CorDA": ('{"r": 4, "lora_alpha": 4, "init_lora_weights": "corda", "corda_config": {}}', "corda"),
    "LoftQ": ('{"r": 4, "lora_alpha": 4, "init_lora_weights": "loftq", "loftq_config": {"a": 1}}', "loftq"),
    "trained biases": ('{"r": 4, "lora_alpha": 4, "bias": "lora_only"}', "bias .*lora_only"),
    "of a newer PEFT": ('{"r": 4, "lora_alpha": 4, "use_next_lora": {"gain": 2}}', "use_next_lora .*gain"),
    "a pattern without end": ('{"r": 4, "lora_alpha": 4, "rank_pattern": {"(.*)*x": 1}}', "too complex"),
    "no alpha": ('{"r": 4}', "lora_alpha.* None"),
    "other rank": ('{"r": 8, "lora_alpha": 4}', "rank 8.* rank 4"),
    "bad pattern": ('{"r": 4, "lora_alpha": 4, "alpha_pattern": {"(": 1}}', r"'\('"),
    "pattern of text": ('{"r": 4, "lora_alpha": 4, "alpha_pattern": {"a": "b"}}', "alpha_pattern"),
}


@pytest.mark.parametrize(("text", "part"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_a_bad_configuration_is_named(text, part, bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "peft" / "adapter_model.safetensors", adapter, "peft")
    path.with_name("adapter_config.json").unlink()
    if text is not None:
        path.with_name("adapter_config.json").write_text(text)
    refused(part, take, bundle, path, identity)


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod."])
def test_the_alpha_of_a_pipeline_that_peft_saved_is_never_guessed(before, bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "adapter_model.safetensors", adapter, "peft of a pipeline")
    save_file({before + name: tensor for name, tensor in load_file(path).items()}, path)
    path.with_name("adapter_config.json").unlink()
    refused("adapter_config.json", take, bundle, path, identity)


def test_a_configuration_is_read_from_wherever_it_is_named(bundle, adapter, identity, tmp_path):
    path = write_lora(tmp_path / "peft" / "adapter_model.safetensors", replace(adapter, alpha=6.0), "peft")
    (tmp_path / "elsewhere").mkdir()
    config = path.with_name("adapter_config.json").rename(tmp_path / "elsewhere" / "adapter_config.json")
    assert take(bundle, path, identity, config).adapter.alpha == 6.0
