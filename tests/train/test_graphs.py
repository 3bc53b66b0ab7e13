import pytest
import torch

from dive_fast.train.graphs import UnetCall
from dive_fast.world.base_model import BaseShape, new_unet

GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_a_call_has_the_networks_own_values_and_gradients(device, bfloat16, monkeypatch):
    """Two calls, so that on a GPU the second replays; the text of the first needs no gradient, that of the second does."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    unet = new_unet(BaseShape(latent_channels=4, unet_channels=(32, 64), text_width=32)).to(device)
    frozen = next(iter(unet.parameters())).requires_grad_(False)
    config = unet.config
    call = UnetCall(unet, bfloat16=bfloat16)
    rounding = 0.05 if bfloat16 and device == "cuda" else 1e-4  # of the largest value; bfloat16 keeps 8 bits
    for needs_text in (False, True):
        noisy = torch.randn(2, config.in_channels, 16, 8, device=device)
        timesteps = torch.tensor([3, 700], device=device)
        text = torch.randn(2, 5, config.cross_attention_dim, device=device, requires_grad=needs_text)
        results = []
        for forward in (call, lambda *inputs: unet(*inputs).sample):
            unet.zero_grad(set_to_none=True)
            text.grad = None
            output = forward(noisy, timesteps, text)
            output.square().sum().backward()
            assert frozen.grad is None
            wanted = [p.grad.clone() for p in unet.parameters() if p.grad is not None]
            results.append([output.detach().clone(), *wanted, *([text.grad.clone()] if needs_text else [])])
        for ours, theirs in zip(*results, strict=True):
            error = (ours - theirs).square().mean().sqrt()
            assert error <= rounding * max(theirs.square().mean().sqrt(), 1e-3)
