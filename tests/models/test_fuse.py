import copy
from dataclasses import replace

import pytest
import torch

from dive_fast.models import (
    PromptEncoder,
    PromptTable,
    add_identity_tokens,
    add_lora,
    fuse,
    has_lora,
    load_bundle,
    save_bundle,
    set_lora_state,
)
from dive_fast.types import DiveError, Identity
from tests.support.models import assert_same_tensors, run_unet
from tests.support.refusals import refused
from tests.support.tiny import LATENT_SHAPE, TEXT_WIDTH, tiny_adapter, tiny_bundle_folder


def with_active_adapter(unet, adapter, scale: float = 1.0):
    """PEFT's own forward, the oracle."""
    unet = copy.deepcopy(unet)
    add_lora(unet, adapter.rank, adapter.alpha)
    set_lora_state(unet, adapter.lora)
    unet.set_adapters(["default"], [scale])
    return unet


@pytest.mark.parametrize(("alpha", "scale"), [(4.0, 1.0), (10.0, 1.0), (4.0, 0.5), (4.0, 0.0), (4.0, -1.0)])
def test_fused_equals_the_active_adapter(alpha, scale, bundle, adapter):
    adapter = replace(adapter, alpha=alpha)
    fused = fuse(bundle, adapter, scale).unet
    active = with_active_adapter(bundle.unet, adapter, scale)
    truth = run_unet(active.double())
    # the weights are rounded to float32 once, so the float64 copies agree to that rounding only
    plain = (run_unet(active.float()).double() - truth).abs().max()
    assert (run_unet(fused).double() - truth).abs().max() <= 2 * plain
    assert (scale == 0) == torch.equal(run_unet(fused), run_unet(bundle.unet))


def test_in_float64_fused_and_active_agree_to_rounding(bundle, adapter):
    bundle.unet.double()
    adapter = replace(adapter, alpha=10.0)
    fused, active = fuse(bundle, adapter, 0.7).unet, with_active_adapter(bundle.unet, adapter, 0.7)
    assert next(fused.parameters()).dtype == torch.float64
    torch.testing.assert_close(run_unet(fused), run_unet(active), rtol=1e-10, atol=1e-10)


def test_one_weight_by_hand(bundle, adapter):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    a, b = adapter.lora[f"{name}.lora_A.weight"], adapter.lora[f"{name}.lora_B.weight"]
    adapter = replace(adapter, alpha=8.0)
    weight = bundle.unet.get_submodule(name).weight
    expected = (weight.double() + 0.5 * 8.0 / 4 * b.double() @ a.double()).float()
    fused = fuse(bundle, adapter, 0.5).unet.get_submodule(name)
    assert torch.equal(fused.weight, expected)
    assert torch.equal(fused.bias, bundle.unet.get_submodule(name).bias)


def test_the_given_bundle_is_untouched_and_no_peft_is_left(bundle, adapter):
    parts = ("unet", "vae", "text_encoder")
    before = {part: copy.deepcopy(getattr(bundle, part).state_dict()) for part in parts}
    vocabulary, fingerprint = bundle.tokenizer.get_vocab(), bundle.fingerprint
    fused = fuse(bundle, adapter)
    for part in parts:
        assert_same_tensors(getattr(bundle, part).state_dict(), before[part])
    assert bundle.tokenizer.get_vocab() == vocabulary
    assert bundle.prompts is None
    del bundle.fingerprint
    assert bundle.fingerprint == fingerprint
    assert fused.unet.state_dict().keys() == before["unet"].keys()
    assert not any("peft" in type(module).__module__ for module in fused.unet.modules())
    assert not has_lora(fused.unet)
    for part in parts:
        assert not getattr(fused, part).training
        assert not any(p.requires_grad for p in getattr(fused, part).parameters())
    assert_same_tensors(fused.vae.state_dict(), before["vae"])


def test_identities_get_their_rows_and_old_rows_stay(bundle, adapter):
    fused = fuse(bundle, adapter)
    old, new = (b.text_encoder.get_input_embeddings().weight for b in (bundle, fused))
    assert torch.equal(new[: len(old)], old)
    ids = [fused.tokenizer.convert_tokens_to_ids(identity.placeholder) for identity in adapter.identities]
    assert ids == [len(old), len(old) + 1, len(old) + 2]
    assert torch.equal(new[ids], adapter.embeddings)
    assert len(fused.tokenizer) == len(new) == fused.text_encoder.config.vocab_size


@pytest.mark.slow
def test_fused_bundle_knows_its_origin(bundle, adapter):
    fused = fuse(bundle, adapter)
    assert fused.prompts == PromptTable(
        adapter.identities, adapter.cameras, adapter.template, bundle.fingerprint, adapter.fingerprint
    )
    prints = {bundle.fingerprint, fused.fingerprint, fuse(bundle, adapter, 0.5).fingerprint}
    prints.add(fuse(bundle, tiny_adapter(bundle, seed=5)).fingerprint)
    prints.add(fuse(bundle, replace(adapter, cameras=adapter.cameras[:1])).fingerprint)  # same weights, other prompts
    assert len(prints) == 5
    assert fuse(bundle, adapter).fingerprint == fused.fingerprint


def test_fused_folder_opens_here_and_in_plain_diffusers(bundle, adapter, tmp_path):
    from diffusers import StableDiffusionPipeline

    fused = fuse(bundle, adapter)
    save_bundle(fused, tmp_path / "fused")
    again = load_bundle(tmp_path / "fused")
    assert again.prompts == fused.prompts
    assert again.fingerprint == fused.fingerprint

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "fused", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    encoder = PromptEncoder(again.tokenizer, again.prompts)
    embeddings, _ = encoder.encode(lambda ids: again.text_encoder(ids)[0], [("0002", "cam3"), None])
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 3, "latents": latents, "output_type": "latent"}
    by_text = pipe(encoder.table.prompt("0002", "cam3"), **options).images
    by_embedding = pipe(prompt_embeds=embeddings[:1], negative_prompt_embeds=embeddings[1:], **options).images
    assert torch.equal(by_text, by_embedding)
    assert not torch.allclose(pipe(encoder.table.prompt("0001", "cam3"), **options).images, by_text)


def test_another_base_is_refused(bundle, adapter, tmp_path):
    other = load_bundle(tiny_bundle_folder(tmp_path / "other", seed=9))
    refused(f"{bundle.fingerprint[:12]}.*{other.fingerprint[:12]}", fuse, other, adapter)


def test_adapters_and_models_that_cannot_be_fused_are_refused(bundle, adapter):
    refused("62 of 64 .* 2 are missing", fuse, bundle, replace(adapter, lora=dict(list(adapter.lora.items())[2:])))
    refused("5 wide.* 32", fuse, bundle, replace(adapter, embeddings=torch.ones(3, 5)))
    for scale in (float("nan"), float("inf")):
        refused(f"scale.* {scale}", fuse, bundle, adapter, scale)
    add_lora(bundle.unet, rank=2, alpha=2)
    refused("LoRA layers", fuse, bundle, adapter, error=DiveError)


def test_tokens_that_clash_change_nothing(bundle):
    add_identity_tokens(bundle, [Identity("0001", "<class_0>")], torch.ones(1, TEXT_WIDTH))
    size, table = len(bundle.tokenizer), bundle.text_encoder.get_input_embeddings().weight
    new, clashing = Identity("0002", "<class_1>"), Identity("0003", "<class_0>")
    for identities, part in [
        ([new, clashing], "1 of 2 .*'<class_0>'"),
        ([new, new], "'0002'"),
        ([new], r"1 words.* \[2, 32\]"),
    ]:
        refused(part, add_identity_tokens, bundle, identities, torch.ones(2, TEXT_WIDTH))
    assert len(bundle.tokenizer) == size
    assert bundle.text_encoder.get_input_embeddings().weight is table


def test_tokens_and_rows_out_of_step_are_refused(bundle):
    bundle.tokenizer.add_tokens(["<stray>"])
    one = [Identity("0001", "<class_0>")]
    refused("525 tokens.* 524 rows", add_identity_tokens, bundle, one, torch.ones(1, TEXT_WIDTH))


def test_added_rows_can_be_trained(bundle):
    """What personalising does: the table is one parameter whose new rows get gradients."""
    ids = add_identity_tokens(bundle, [Identity("0001", "<class_0>")], torch.ones(1, TEXT_WIDTH))
    table = bundle.text_encoder.get_input_embeddings().weight
    table.requires_grad_(True)
    tokens = bundle.tokenizer("a <class_0> person", return_tensors="pt").input_ids
    bundle.text_encoder(tokens)[0].square().sum().backward()
    assert bool(table.grad[ids].any())
