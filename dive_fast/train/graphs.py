"""A UNet's forward and backward pass as two CUDA graphs: a small network is otherwise bound by launching its kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class UnetCall:
    """Calls a UNet that is being trained; on a GPU by replaying graphs captured at the first call.

    Every later call must bring the shapes of the first. Gradients flow to the UNet's parameters that required them then,
    and to `text`.
    """

    def __init__(self, unet: Any) -> None:
        self._call: Any = _Plain(unet)
        self._captures = next(unet.parameters()).is_cuda

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The prediction [B, C, h, w] for latents of that shape, timesteps int64 [B] and text [B, L, D]."""
        if self._captures:
            learned = text.detach().clone().requires_grad_()  # always: a later text may need its gradient
            example = (noisy.clone(), timesteps.clone(), learned)
            self._call = torch.cuda.make_graphed_callables(self._call, example, allow_unused_input=True)
            self._captures = False
        output: Tensor = self._call(noisy, timesteps, text)
        return output


class _Plain(torch.nn.Module):
    """A UNet with tensors in and out."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = self.unet(noisy, timesteps, text, return_dict=False)[0]
        return output
