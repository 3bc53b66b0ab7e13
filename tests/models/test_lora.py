import copy

import pytest
import torch

from dive_fast.models import add_lora, has_lora, lora_shapes, lora_state, lora_targets, remove_lora, set_lora_state
from dive_fast.models.lora import every_layer, fold_lora
from dive_fast.types import DiveError
from tests.support.models import assert_same_tensors, run_unet
from tests.support.refusals import refused
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH


def test_targets_are_the_four_linears_of_every_attention_that_diffusers_counts(bundle):
    attentions = {name.removesuffix(".processor") for name in bundle.unet.attn_processors}
    expected = {f"{name}.{linear}" for name in attentions for linear in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(lora_targets(bundle.unet)) == expected
    assert len(expected) == 32


def test_sd15_has_128_targets():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # its defaults are otherwise SD 1.5's
    assert len(lora_targets(unet)) == 128
    shapes = lora_shapes(unet, 128)
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"] == (128, 768)
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight"] == (1280, 128)


def test_new_lora_changes_nothing_and_alone_is_trainable(bundle):
    before = run_unet(bundle.unet)
    parameters = add_lora(bundle.unet, rank=3, alpha=6.0)
    assert torch.equal(run_unet(bundle.unet), before)
    trainable = [p for p in bundle.unet.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in parameters}
    assert len(parameters) == 64
    assert {key: tuple(t.shape) for key, t in lora_state(bundle.unet).items()} == lora_shapes(bundle.unet, 3)


def test_lora_on_every_layer_folds_into_the_same_unet(bundle):
    names = every_layer(bundle.unet)
    kinds = {type(bundle.unet.get_submodule(name)) for name in names}
    assert kinds == {torch.nn.Linear, torch.nn.Conv2d} and "conv_in" in names
    shapes = lora_shapes(bundle.unet, 2, names)
    parameters = add_lora(bundle.unet, rank=2, alpha=4.0, targets=names)
    assert len(parameters) == 2 * len(names)
    generator = torch.Generator().manual_seed(3)
    set_lora_state(bundle.unet, {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()})
    active, state = run_unet(bundle.unet), lora_state(bundle.unet)
    remove_lora(bundle.unet)
    plain = run_unet(bundle.unet)
    fold_lora(bundle.unet, state, 4.0 / 2)
    folded = run_unet(bundle.unet)
    torch.testing.assert_close(folded, active, rtol=1e-4, atol=1e-4)
    assert (folded - plain).abs().max() > 0.01


def test_gradients_reach_every_b(bundle):
    parameters = add_lora(bundle.unet, rank=2, alpha=2)
    text = torch.randn(1, MAX_TOKENS, TEXT_WIDTH)
    bundle.unet(torch.randn(1, *LATENT_SHAPE), 10, encoder_hidden_states=text).sample.square().mean().backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in parameters) == 32


def test_state_goes_in_and_comes_out_unchanged(bundle, adapter):
    add_lora(bundle.unet, rank=adapter.rank, alpha=adapter.alpha)
    before = run_unet(bundle.unet)
    set_lora_state(bundle.unet, adapter.lora)
    state = lora_state(bundle.unet)
    assert_same_tensors(state, adapter.lora)
    assert not torch.allclose(run_unet(bundle.unet), before)
    state[next(iter(state))].zero_()  # a copy: the layers keep theirs
    assert_same_tensors(lora_state(bundle.unet), adapter.lora)


def test_removed_lora_leaves_the_unet_as_it_was(bundle, adapter):
    before, output = copy.deepcopy(bundle.unet.state_dict()), run_unet(bundle.unet)
    add_lora(bundle.unet, rank=adapter.rank, alpha=adapter.alpha)
    set_lora_state(bundle.unet, adapter.lora)
    assert has_lora(bundle.unet)
    remove_lora(bundle.unet)
    assert not has_lora(bundle.unet)
    assert_same_tensors(bundle.unet.state_dict(), before)
    assert torch.equal(run_unet(bundle.unet), output)
    add_lora(bundle.unet, rank=2, alpha=1)  # and it can carry another


STATES = {
    "empty": (lambda s: {}, "0 of 64 .* 64 are missing"),
    "prefixed": (lambda s: {"unet." + k: t for k, t in s.items()}, r"0 of 64 .* 64 fit .*'unet\.down_blocks"),
    "one missing": (lambda s: dict(list(s.items())[1:]), "63 of 64 .* 1 are missing"),
    "one too many": (lambda s: {**s, "extra": torch.zeros(1)}, r"1 fit .*'extra'"),
    "one of another shape": (lambda s: {**s, next(iter(s)): torch.zeros(5, 5)}, "64 of 64 .* 1 .*shape"),
}


@pytest.mark.parametrize(("change", "part"), STATES.values(), ids=STATES.keys())
def test_a_state_that_does_not_land_whole_is_refused(change, part, bundle, adapter):
    add_lora(bundle.unet, rank=adapter.rank, alpha=adapter.alpha)
    before = lora_state(bundle.unet)
    refused(part, set_lora_state, bundle.unet, change(adapter.lora))
    assert_same_tensors(lora_state(bundle.unet), before)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (-2, 1.0), (1.5, 1.0), (True, 1.0), (2, 0.0), (2, float("nan"))])
def test_a_bad_rank_or_alpha_is_refused(rank, alpha, bundle):
    refused("rank|alpha", add_lora, bundle.unet, rank=rank, alpha=alpha)
    assert not has_lora(bundle.unet)


def test_a_unet_without_attention_is_refused():
    refused("no attention", add_lora, torch.nn.Sequential(torch.nn.Linear(2, 2)), rank=1, alpha=1)


@pytest.mark.slow
def test_lora_twice_or_absent_is_refused(bundle, adapter):
    for call in (lora_state, lambda unet: set_lora_state(unet, adapter.lora)):
        refused("no LoRA layers", call, bundle.unet, error=DiveError)
    add_lora(bundle.unet, rank=2, alpha=2)
    refused("remove_lora", add_lora, bundle.unet, error=DiveError, rank=2, alpha=2)
