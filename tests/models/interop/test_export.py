"""Our adapters in the hands of diffusers itself: its images against those of our fused model; and back again."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dive_fast.models import PromptBank, fuse, load_bundle, merge_identities, subset
from dive_fast.models.interop import export_adapter, import_adapter
from dive_fast.types import Identity, InputError
from tests.support.adapters import assert_same
from tests.support.tiny import LATENT_SHAPE, TEXT_WIDTH, tiny_adapter, tiny_bundle_folder


@pytest.fixture
def people(adapter):
    """Three people of one word, and one whose phrase has two; alpha is not the rank."""
    rows = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    several = [Identity("0900", "<red.0> coat , <red.1> hair")]
    return merge_identities(replace(adapter, alpha=0.1 * 3), several, rows)


def pipeline(bundle):
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=bundle.vae, text_encoder=bundle.text_encoder, tokenizer=bundle.tokenizer, unet=bundle.unet,
        scheduler=PNDMScheduler.from_config(bundle.scheduler_config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(pipe, prompt: str) -> torch.Tensor:
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1)).to(pipe.unet.dtype)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "latents": latents, "output_type": "pt"}
    return pipe(prompt, height=64, width=32, **options).images.double()


def as_documented(bundle, folder: Path):
    """The lines of docs/published-weights.md."""
    pipe = pipeline(copy.deepcopy(bundle))
    pipe.load_lora_weights(folder)
    words = load_file(folder / "learned_embeds.safetensors")
    pipe.load_textual_inversion([{word: row} for word, row in words.items()])
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize("pid", ["0002", "0900"])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_draws_what_our_fused_model_draws(layout, pid, bundle, people, tmp_path):
    export_adapter(people, tmp_path / "out", layout)
    fused = fuse(bundle, people)
    prompt = PromptBank(fused.tokenizer, fused.prompts).prompt(pid, "cam3")
    theirs = as_documented(bundle, tmp_path / "out")
    ours, plain = image(pipeline(fused), prompt), image(theirs, prompt)
    truth = image(theirs.to(torch.float64), prompt)
    budget = 2 * (plain - truth).abs().max()  # twice the float32 error of diffusers' own
    assert 0 < budget < 1e-3
    assert (ours - truth).abs().max() <= budget
    assert (image(pipeline(bundle), prompt) - truth).abs().max() > 100 * budget


@pytest.mark.slow
def test_one_person_is_loaded_by_the_folder_alone(bundle, adapter, tmp_path):
    export_adapter(subset(adapter, ["0002"]), tmp_path / "out")
    pipe = pipeline(copy.deepcopy(bundle))
    pipe.load_textual_inversion(str(tmp_path / "out"))
    row = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("<class_1>")]
    assert torch.equal(row, adapter.embeddings[1])


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_out_and_in_again_is_exact(layout, bundle, people, tmp_path):
    people = replace(people, template="{cam} of {token}", phrase="{red|blue} coat , {long|short} hair", facts={})
    export_adapter(people, tmp_path / "out", layout)
    imported = import_adapter(bundle, [tmp_path / "out"])
    assert imported.adapter.fingerprint == people.fingerprint
    assert_same(replace(imported.adapter, facts={}), people)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "learned_embeds.safetensors", "people.json", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip


def test_an_export_replaces_an_export_and_nothing_else(adapter, tmp_path):
    export_adapter(adapter, tmp_path / "out")
    export_adapter(subset(adapter, ["0001"]), tmp_path / "out")
    assert list(load_file(tmp_path / "out" / "learned_embeds.safetensors")) == ["<class_0>"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="was not written by dive-fast"):
        export_adapter(adapter, tmp_path / "other")
    with pytest.raises(InputError, match="layout must be one of diffusers, kohya, got 'a1111'"):
        export_adapter(adapter, tmp_path / "new", "a1111")


def test_people_of_another_base_or_other_embeddings_are_refused(bundle, adapter, tmp_path):
    export_adapter(adapter, tmp_path / "out")
    other = load_bundle(tiny_bundle_folder(tmp_path / "base", seed=4))
    with pytest.raises(
        InputError, match=f"belongs to base {bundle.fingerprint[:12]}…, this base is {other.fingerprint[:12]}"
    ):
        import_adapter(other, [tmp_path / "out"])
    export_adapter(tiny_adapter(bundle, pids=["0001", "0002"]), tmp_path / "less")
    (tmp_path / "less" / "people.json").write_bytes((tmp_path / "out" / "people.json").read_bytes())
    with pytest.raises(InputError, match="disagree on 1 words, first '<class_2>'"):
        import_adapter(bundle, [tmp_path / "less"])
    (tmp_path / "out" / "people.json").write_text('{"format": "dive-fast people 1", "template": 1}')
    with pytest.raises(InputError, match="base_fingerprint must be text, got None"):
        import_adapter(bundle, [tmp_path / "out"])
    (tmp_path / "out" / "people.json").write_text("[]")
    with pytest.raises(InputError, match="is not of the format 'dive-fast people 1'"):
        import_adapter(bundle, [tmp_path / "out"])
