"""A Stable Diffusion 1 model in one file equals its folder; what is no such file is named."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dive_fast.models import fuse, load_bundle, save_bundle
from dive_fast.models.files import ASSETS, WEIGHTS
from dive_fast.models.interop import import_adapter
from tests.support.ldm import ldm_tensors, write_single_file
from tests.support.lora_layouts import CAMERAS, write_identity, write_lora
from tests.support.models import assert_same_tensors, run_unet, truncate
from tests.support.refusals import refused

pytestmark = pytest.mark.slow

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


@pytest.fixture
def beside(tiny_base: Path, tmp_path: Path) -> Path:
    """A folder without weights: the configurations and the vocabulary of the base model."""
    return Path(shutil.copytree(tiny_base, tmp_path / "sd", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture
def single(bundle, beside: Path) -> Path:
    return write_single_file(bundle, beside / "model.safetensors")


def test_one_file_is_the_model_of_the_folder(bundle, single, beside):
    for loaded in (load_bundle(single), load_bundle(single, beside)):
        assert loaded.fingerprint == bundle.fingerprint
        for part in WEIGHTS:
            ours = getattr(loaded, part)
            assert_same_tensors(ours.state_dict(), getattr(bundle, part).state_dict())
            assert not ours.training
            assert not any(p.requires_grad for p in ours.parameters())
        assert torch.equal(run_unet(loaded.unet), run_unet(bundle.unet))
        ids = torch.arange(64).reshape(2, 32)
        assert torch.equal(loaded.text_encoder(ids)[0], bundle.text_encoder(ids)[0])


def test_diffusers_reads_the_file_alike(single, beside, bundle):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_single_file(str(single), config=str(beside), local_files_only=True)
    for part in WEIGHTS:
        theirs = getattr(pipe, part).state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in getattr(bundle, part).state_dict().items())


def test_the_file_works_wherever_a_folder_does(bundle, single, adapter, tmp_path):
    identity = write_identity(tmp_path / "identity.safetensors", adapter)
    lora = write_lora(tmp_path / "lora.safetensors", adapter, "kohya")
    loaded = load_bundle(single)
    fused = fuse(loaded, import_adapter(loaded, [identity, lora], CAMERAS).adapter)
    save_bundle(fused, tmp_path / "fused")
    assert load_bundle(tmp_path / "fused").fingerprint == fused.fingerprint
    save_bundle(loaded, tmp_path / "folder")
    assert load_bundle(tmp_path / "folder").fingerprint == bundle.fingerprint


@pytest.mark.parametrize("model", ["tiny_base", "single"])
def test_neither_network_nor_random_numbers_are_used(model, request, monkeypatch):
    path = request.getfixturevalue(model)
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, lambda *_args, **_options: pytest.fail("the network was asked"))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    load_bundle(path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_half_precision_and_names_without_text_model_are_read(bundle, beside):
    halves = {name: tensor.half().contiguous() for name, tensor in ldm_tensors(bundle).items()}
    renamed = {name.replace("transformer.text_model.", "transformer."): half for name, half in halves.items()}
    save_file(renamed, beside / "half.safetensors")
    loaded = load_bundle(beside / "half.safetensors")
    for part in WEIGHTS:
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
    write_single_file(bundle, path, **{**ema, averaged(UNET + "out.2.bias"): None}, **more)
    refused(r"unet lacks 1 of \d+ .* conv_out.bias .*missing", load_bundle, path)


def test_the_counters_of_averaged_weights_alone_are_passed_over(bundle, beside):
    left = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32)}
    loaded = load_bundle(write_single_file(bundle, beside / "pruned.safetensors", **left))
    assert loaded.fingerprint == bundle.fingerprint


def with_tensors(path: Path, **tensors: torch.Tensor) -> None:
    save_file({**load_file(path), **tensors}, path)


def with_header(path: Path, **header: str) -> None:
    save_file(load_file(path), path, metadata=header)


DECLARED: dict[str, Callable[[Path], object]] = {
    "tensor": lambda path: save_file({**load_file(path), "v_pred": torch.zeros(0)}, path),
    "model specification": lambda path: with_header(path, **{"modelspec.prediction_type": "v"}),
    "ComfyUI": lambda path: with_header(path, **{"modelspec.predict_key": "v"}),
    "kohya": lambda path: with_header(path, ss_v_parameterization="True"),
    "yaml": lambda path: path.with_suffix(".yaml").write_text(
        'model:\n  params:\n    parameterization: "v"  # as SD 2\n'
    ),
    "yaml of a Windows shell": lambda path: path.with_suffix(".yaml").write_text("parameterization: v", "utf-16"),
    "JSON in the header": lambda path: with_header(path, config='{"prediction_type": "v_prediction"}'),
    "the only yaml": lambda path: path.with_name("v-inference.yml").write_text(
        "{model: {params: {'parameterization': v}}}"
    ),
}


@pytest.mark.parametrize("declare", DECLARED.values(), ids=DECLARED)
def test_v_prediction_is_read_wherever_it_is_declared(declare, single, beside):
    """As a folder with that scheduler; a scheduler beside it that says otherwise is not believed in silence."""
    scheduler = beside / "scheduler" / "scheduler_config.json"
    path = single.rename(single.with_name("one.safetensors"))
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**config, "prediction_type": "v_prediction"}))
    expected = load_bundle(path).fingerprint
    declare(path)
    assert load_bundle(path).fingerprint == expected
    scheduler.write_text(json.dumps(config))
    refused(f"one.safetensors declares v_prediction .*{scheduler}.*epsilon", load_bundle, path)
    shutil.rmtree(scheduler.parent)  # then Stable Diffusion 1.5's own applies, but for what the file declares
    loaded = load_bundle(path)
    assert loaded.scheduler_config["prediction_type"] == "v_prediction"
    assert loaded.scheduler_config["beta_schedule"] == "scaled_linear"


UNKNOWN: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero terminal SNR": (lambda p: save_file({**load_file(p), "ztsnr": torch.zeros(0)}, p), "rescale_betas_zero_snr"),
    "its header": (lambda p: with_header(p, ss_zero_terminal_snr="True"), "rescale_betas_zero_snr"),
    "EDM": (lambda p: save_file({**load_file(p), "edm_vpred.sigma_max": torch.ones(1)}, p), "edm_vpred"),
    "the image itself": (lambda p: with_header(p, **{"modelspec.prediction_type": "x0"}), "x0"),
    "two": (lambda p: (DECLARED["tensor"](p), p.with_suffix(".yaml").write_text("parameterization: eps")), "exclude"),
}


@pytest.mark.parametrize(("declare", "part"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_prediction_that_no_solver_here_follows_is_refused(declare, part, single, beside):
    shutil.rmtree(beside / "scheduler")
    declare(single)
    refused(part, load_bundle, single)


def signal(betas: torch.Tensor) -> torch.Tensor:
    return torch.cumprod(1 - betas.double(), 0)


SQUARED = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's betas
SIGNAL = signal(SQUARED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_noise_levels_in_the_file_may_be_rounded(dtype, single, bundle):
    with_tensors(single, alphas_cumprod=SIGNAL.to(dtype))
    assert load_bundle(single).fingerprint == bundle.fingerprint


OTHER_NOISE = {
    "linear": signal(torch.linspace(0.00085, 0.012, 1000)),
    "to pure noise": (SIGNAL.sqrt() - SIGNAL[-1].sqrt()) ** 2 * SIGNAL[0] / (SIGNAL[0].sqrt() - SIGNAL[-1].sqrt()) ** 2,
    "fewer timesteps": SIGNAL[:500],
    "broken": torch.full((1000,), torch.nan),
    "none": torch.zeros(0),
}


@pytest.mark.parametrize("levels", OTHER_NOISE.values(), ids=OTHER_NOISE)
def test_a_file_of_a_model_that_was_trained_with_other_noise_is_refused(levels, single, beside):
    with_tensors(single, alphas_cumprod=levels.float())
    refused(f"alphas_cumprod .*{beside / 'scheduler/scheduler_config.json'}", load_bundle, single)


@pytest.mark.parametrize("header", [{"modelspec.prediction_type": "epsilon"}, {"ss_zero_terminal_snr": "False"}])
def test_what_declares_the_noise_is_as_before(header, single, bundle):
    with_header(single, **header)
    assert load_bundle(single).fingerprint == bundle.fingerprint


def test_without_configurations_it_is_stable_diffusion_15(bundle, single, tmp_path):
    """Its sizes are those of the published networks, and the vocabulary may lie in the file's folder itself."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts = [
            UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(ASSETS / "sd15/unet")),
            AutoencoderKL.from_config(AutoencoderKL.load_config(ASSETS / "sd15/vae")),
            CLIPTextModel(CLIPTextConfig.from_pretrained(ASSETS / "sd15/text_encoder")),
        ]
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [859_520_964, 83_653_863, 123_060_480]
    alone = tmp_path / "alone"
    shutil.copytree(single.parent / "tokenizer", alone)
    shutil.copy(single, alone)
    refused(r"unet .* conv_in.weight \[320, 4, 3, 3\] .*\[32, 8, 3, 3\]", load_bundle, alone / single.name)


def replaced(*names: str) -> Callable[[Path], None]:
    return lambda folder: save_file({name: torch.zeros(2, 1024) for name in names}, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vocabulary": (lambda f: shutil.rmtree(f / "tokenizer"), "--tokenizer"),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "model.safetensors"),
    "bad config": (lambda f: (f / "unet/config.json").write_text("[]"), "unet/config.json"),
    "impossible config": (lambda f: (f / "unet/config.json").write_text('{"act_fn": 3}'), "unet"),
    "bad scheduler": (lambda f: (f / "scheduler/scheduler_config.json").write_text("{}"), "scheduler_config.json"),
    "SDXL": (replaced("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"), "'xl_base'"),
    "SD 2": (replaced(UNET + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"), "'v2'"),
    "SD 3.5": (replaced(UNET + "joint_blocks.37.x_block.mlp.fc1.weight"), "'sd35_large'"),
    "LoRA": (replaced("lora_unet_down_blocks_0.lora_up.weight"), "'lora_unet_down_blocks_0.lora_up.weight'"),
    "UNet of diffusers": (replaced("down_blocks.0.resnets.0.conv1.weight"), "'down_blocks.0.resnets.0.conv1.weight'"),
    "empty": (replaced(), "model.diffusion_model.… .*'none'"),
}


@pytest.mark.parametrize(("break_it", "part"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_such_file_is_named(break_it, part, single):
    break_it(single.parent)
    refused(f"^[^\n]*{part}[^\n]*$", load_bundle, single)


CHANGES: dict[str, tuple[str, torch.Tensor | None, str]] = {
    "no tensor of the unet": (UNET + "out.2.weight", None, r"unet .* conv_out.weight \[8, 32, 3, 3\] .*missing"),
    "no tensor of the vae": ("first_stage_model.quant_conv.bias", None, r"vae .* quant_conv.bias \[16\] .*missing"),
    "no tensor of the text": (TEXT + "final_layer_norm.bias", None, r"text_encoder .* \[32\] .*missing"),
    "another input": (UNET + "label_emb.0.0.bias", torch.zeros(3), "1 tensors .*label_emb"),
    "nine channels": (UNET + "input_blocks.0.0.weight", torch.zeros(32, 9, 3, 3), r"conv_in.weight .*\[32, 9, 3, 3\]"),
}


@pytest.mark.parametrize(("name", "tensor", "part"), CHANGES.values(), ids=CHANGES.keys())
def test_tensors_that_do_not_fit_are_named(name, tensor, part, bundle, beside):
    path = write_single_file(bundle, beside / "model.safetensors", **{name: tensor})
    refused(part, load_bundle, path)


def test_a_pickled_checkpoint_and_a_tokenizer_for_a_folder_are_refused(beside, tiny_base):
    (beside / "model.ckpt").write_bytes(b"x")
    refused(r"model\.ckpt .*\.safetensors", load_bundle, beside / "model.ckpt")
    refused("--tokenizer", load_bundle, tiny_base, beside)
