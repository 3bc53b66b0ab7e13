"""Our adapters read by diffusers itself: its images against those of our fused model; and imported again."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dive_fast.models import fuse, load_bundle, merge_identities, subset
from dive_fast.models.interop import export_adapter, import_adapter
from dive_fast.types import Identity
from tests.support.models import assert_same_adapter, diffusers_pipeline
from tests.support.refusals import refused
from tests.support.tiny import LATENT_SHAPE, TEXT_WIDTH, tiny_adapter, tiny_bundle_folder


@pytest.fixture
def several(adapter):
    """Three identities of one word, and one whose phrase has two; alpha is not the rank."""
    rows = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    return merge_identities(replace(adapter, alpha=0.1 * 3), [Identity("0900", "<red.0> coat , <red.1> hair")], rows)


def image(pipe, prompt: str) -> torch.Tensor:
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1)).to(pipe.unet.dtype)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "latents": latents, "output_type": "pt"}
    return pipe(prompt, height=64, width=32, **options).images.double()


@pytest.mark.slow
@pytest.mark.parametrize("pid", ["0002", "0900"])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_draws_what_our_fused_model_draws(layout, pid, bundle, several, tmp_path):
    export_adapter(several, tmp_path / "out", layout)
    fused = fuse(bundle, several)
    prompt = fused.prompts.prompt(pid, "cam3")
    theirs = diffusers_pipeline(copy.deepcopy(bundle))  # by the lines of docs/published-weights.md
    theirs.load_lora_weights(tmp_path / "out")
    words = load_file(tmp_path / "out" / "learned_embeds.safetensors")
    theirs.load_textual_inversion([{word: row} for word, row in words.items()])
    ours, plain = image(diffusers_pipeline(fused), prompt), image(theirs, prompt)
    truth = image(theirs.to(torch.float64), prompt)
    budget = 2 * (plain - truth).abs().max()  # twice the float32 error of diffusers' own
    assert 0 < budget < 1e-3
    assert (ours - truth).abs().max() <= budget
    assert (image(diffusers_pipeline(bundle), prompt) - truth).abs().max() > 100 * budget


@pytest.mark.slow
def test_one_identity_is_loaded_by_the_folder_alone(bundle, adapter, tmp_path):
    export_adapter(subset(adapter, ["0002"]), tmp_path / "out")
    pipe = diffusers_pipeline(copy.deepcopy(bundle))
    pipe.load_textual_inversion(str(tmp_path / "out"))
    row = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("<class_1>")]
    assert torch.equal(row, adapter.embeddings[1])


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_an_export_is_imported_exactly(layout, bundle, several, tmp_path):
    several = replace(several, template="{cam} of {token}", phrase="{red|blue} coat , {long|short} hair", metadata={})
    export_adapter(several, tmp_path / "out", layout)
    imported = import_adapter(bundle, [tmp_path / "out"]).adapter
    assert imported.fingerprint == several.fingerprint
    assert_same_adapter(replace(imported, metadata={}), several)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"learned_embeds.safetensors", "identities.json", "pytorch_lora_weights.safetensors"}


def test_an_export_replaces_an_export_if_asked_and_nothing_else(adapter, tmp_path):
    export_adapter(adapter, tmp_path / "out")
    export_adapter(adapter, tmp_path / "out")  # an equal one
    refused("--overwrite", export_adapter, subset(adapter, ["0001"]), tmp_path / "out")
    export_adapter(subset(adapter, ["0001"]), tmp_path / "out", overwrite=True)
    assert list(load_file(tmp_path / "out" / "learned_embeds.safetensors")) == ["<class_0>"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    refused("other", export_adapter, adapter, tmp_path / "other")
    refused("diffusers, kohya, got 'a1111'", export_adapter, adapter, tmp_path / "new", "a1111")


def test_identities_of_another_base_or_other_embeddings_are_refused(bundle, adapter, tmp_path):
    export_adapter(adapter, tmp_path / "out")
    described = tmp_path / "out" / "identities.json"
    other = load_bundle(tiny_bundle_folder(tmp_path / "base", seed=4))
    refused(f"{bundle.fingerprint[:12]}.*{other.fingerprint[:12]}", import_adapter, other, [tmp_path / "out"])
    export_adapter(tiny_adapter(bundle, pids=["0001", "0002"]), tmp_path / "less")
    (tmp_path / "less" / "identities.json").write_bytes(described.read_bytes())
    refused("identities.json.*1 words, first '<class_2>'", import_adapter, bundle, [tmp_path / "less"])
    for text in (json.dumps({**json.loads(described.read_text()), "template": 1}), "[]"):
        described.write_text(text)
        refused(r"identities\.json", import_adapter, bundle, [tmp_path / "out"])
