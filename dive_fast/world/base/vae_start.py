"""The pocket autoencoder's encoder: the principal components of 8 x 8 patches.

From random weights, encoder and decoder need thousands of steps to agree on a code, and learn hue last (docs/log.md).
Principal components are a good code at step 0, and only the decoder trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

_CONSTANT = 30.0  # of the channels that fix the last norm's variance, in units of the components' std
_POSTERIOR_STD = 0.05  # noise on the latents in training, which makes the decoder robust to small errors


def start_from_components(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Sets `vae` in place from `images` uint8 [N, H, W, 3]: residual branches output zero, the encoder is linear.

    Each down-sampling convolution projects 2 x 2 blocks on their principal components; the last norm and SiLU pass values
    through, as silu(x) - silu(-x) = x. Components are scaled to the square root of their std, half-way to whitening, as a
    balance of detail and layout for diffusion.
    """
    import torch

    with torch.no_grad():
        for module in vae.modules():
            if type(module).__name__ == "ResnetBlock2D":
                module.conv2.weight.zero_()
                module.conv2.bias.zero_()
        encoder: Any = vae.encoder
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        width = x.shape[1]
        _keep(encoder.conv_in, width)
        for level, block in enumerate(encoder.down_blocks):
            if level > 0 and block.resnets[0].conv_shortcut is not None:
                _keep(block.resnets[0].conv_shortcut, width)
            if block.downsamplers is None:
                break
            conv = block.downsamplers[0].conv
            blocks = _space_to_depth(x)
            basis, _ = _components(blocks, min(conv.out_channels, blocks.shape[1]))
            _project(conv, basis, width)
            x, width = torch.einsum("oi,nihw->nohw", basis, blocks), basis.shape[0]
        basis, std = _components(x, vae.config.latent_channels)
        _last_projection(encoder, basis / std[:, None], width)
        _read_out(encoder, vae.quant_conv, std)
        # Diffusion starts from zero-mean noise: centre the latents.
        mean = vae.encode(torch.from_numpy(images[:256]).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
        vae.quant_conv.bias[: len(std)] -= mean.mean(dim=(0, 2, 3))


def _space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] to [N, 4 C, H / 2, W / 2], taps in the order (0,0), (0,1), (1,0), (1,1)."""
    import torch

    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)


def _components(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the principal directions [count, C] of the channels of `x` about zero, and their stds [count]."""
    import torch

    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    order = values.argsort(descending=True)[:count]
    return vectors[:, order].T.float(), values[order].clamp(min=1e-12).sqrt().float()


def _keep(conv: Any, channels: int) -> None:
    """Makes the first `channels` an identity; further outputs start small."""
    conv.weight.mul_(0.1)
    conv.weight[:channels] = 0
    conv.bias.zero_()
    centre = conv.kernel_size[0] // 2
    for i in range(channels):
        conv.weight[i, i, centre, centre] = 1


def _project(conv: Any, basis: torch.Tensor, channels: int) -> None:
    """Makes a stride-2 convolution (padded right and below) apply `basis` [K, 4 channels] to 2 x 2 blocks."""
    conv.weight.mul_(0.1)
    conv.bias.zero_()
    conv.weight[: len(basis)] = 0
    taps = basis.view(len(basis), 4, channels)
    for tap, (i, j) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        conv.weight[: len(basis), :channels, i, j] = taps[:, tap]


def _last_projection(encoder: Any, basis: torch.Tensor, channels: int) -> None:
    """Outputs components of unit std as pairs +x and -x, distributed over the groups of the last norm.

    The other channels of each group are large constants of both signs: the group's mean is zero and its variance nearly
    constant, so the norm divides by a constant.
    """
    conv, norm = encoder.down_blocks[-1].resnets[0].conv_shortcut, encoder.conv_norm_out
    conv.weight.zero_()
    conv.bias.zero_()
    layout = _layout(encoder, len(basis))
    for _, component, at in layout:
        conv.weight[at, :channels, 0, 0] = basis[component]
        conv.weight[at + 1, :channels, 0, 0] = -basis[component]
    size = norm.num_channels // norm.num_groups
    for group in range(norm.num_groups):
        used = 2 * sum(g == group for g, _, _ in layout)
        for k in range(used, size):
            conv.bias[group * size + k] = _CONSTANT if (k - used) % 2 == 0 else -_CONSTANT


def _layout(encoder: Any, components: int) -> list[tuple[int, int, int]]:
    """(group, component, first channel) of every component's pair."""
    norm = encoder.conv_norm_out
    size = norm.num_channels // norm.num_groups
    per_group = -(-components // norm.num_groups)
    if 2 * per_group + 2 > size:
        raise ValueError(f"{components} latent channels need groups of {2 * per_group + 2} channels, got {size}")
    return [(c // per_group, c, (c // per_group) * size + 2 * (c % per_group)) for c in range(components)]


def _read_out(encoder: Any, quant_conv: Any, std: torch.Tensor) -> None:
    """Undoes the norm's division and scales each component to the square root of its relative std."""
    import torch

    norm, conv = encoder.conv_norm_out, encoder.conv_out
    count = len(std)
    scales = (std / std.mean()).sqrt()
    size = norm.num_channels // norm.num_groups
    conv.weight.zero_()
    conv.bias.zero_()
    layout = _layout(encoder, count)
    for group, component, at in layout:
        used = 2 * sum(g == group for g, _, _ in layout)
        # variance of a group: the constants' plus one per used channel (components have unit std)
        group_std = (((size - used) * _CONSTANT**2 + used) / size) ** 0.5
        conv.weight[component, at, 1, 1] = scales[component] * group_std
        conv.weight[component, at + 1, 1, 1] = -scales[component] * group_std
    conv.bias[count:] = 2 * float(np.log(_POSTERIOR_STD))
    quant_conv.weight.copy_(torch.eye(2 * count).view(2 * count, 2 * count, 1, 1))
    quant_conv.bias.zero_()
