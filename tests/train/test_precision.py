"""Mixed precision: what is stored in half precision, and that it changes no number of autocast's."""

import pytest
import torch

from dive_fast.models import load_bundle
from dive_fast.models.lora import add_lora, lora_targets
from dive_fast.train.precision import autocast, half, halve_frozen, loss_scaler

CPU = torch.device("cpu")


def _unet(base):
    torch.manual_seed(0)
    unet = load_bundle(base).unet
    for parameter in add_lora(unet, 2, 2.0):
        parameter.data.normal_(std=0.1)
    return unet


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_stored_in_half_a_frozen_weight_gives_autocasts_numbers(base, checkpointing):
    stored, cast = _unet(base), _unet(base)
    halve_frozen(stored, "bf16")
    if checkpointing:
        stored.enable_gradient_checkpointing()
    latents, text = torch.randn(2, 8, 8, 4), torch.randn(2, 32, 32)
    outputs, gradients = [], []
    for unet in (stored, cast):
        with autocast("bf16", CPU):
            output = unet(latents, torch.tensor([3, 700]), text).sample
        output.float().square().mean().backward()
        outputs.append(output)
        gradients.append([p.grad for p in unet.parameters() if p.requires_grad])
    assert outputs[0].dtype == torch.bfloat16
    assert torch.equal(*outputs)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_what_learns_and_what_norms_are_made_of_stays_float32(base):
    unet = _unet(base)
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    halve_frozen(unet, "fp16")
    kinds = {}
    for name, parameter in unet.named_parameters():
        kinds.setdefault(parameter.dtype, []).append(name)
        assert torch.equal(parameter, before[name].to(parameter.dtype))
    assert len(kinds[torch.float16]) > 100
    assert all(".lora_" in name or "norm" in name for name in kinds[torch.float32])
    assert sum(".lora_" in name for name in kinds[torch.float32]) == 2 * len(lora_targets(unet))


def test_without_mixed_precision_nothing_is_touched(base):
    unet = _unet(base)
    halve_frozen(unet, "no")
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    assert half("no") is None
    assert not any(loss_scaler(precision, CPU).is_enabled() for precision in ("no", "bf16"))
    with autocast("no", CPU):
        assert not torch.is_autocast_enabled("cpu")
