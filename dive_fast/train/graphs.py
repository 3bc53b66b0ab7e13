"""A UNet's forward and backward pass on a GPU: in bfloat16 where that is safe, and as two CUDA graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class UnetCall:
    """Calls a UNet that is being trained; on the CPU as it is.

    On a GPU matrix products and convolutions run in bfloat16 (weights, gradients and all else stay float32), and both
    passes replay graphs captured at the first call, as a small network is otherwise bound by launching its kernels.
    Every later call must bring the shapes of the first. Gradients flow to the parameters that required them then, and to
    `text`.
    """

    def __init__(self, unet: Any, bfloat16: bool = True, graphs: bool = True) -> None:
        on_gpu = next(unet.parameters()).is_cuda
        self._call: Any = _Plain(unet, bfloat16 and on_gpu)
        self._captures = graphs and on_gpu
        if on_gpu:
            unet.to(memory_format=torch.channels_last)

    def __call__(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The prediction, float32 [B, C, h, w], for latents of that shape, timesteps int64 [B] and text [B, L, D]."""
        if self._captures:
            learned = text.detach().clone().requires_grad_()  # always: a later text may need its gradient
            example = (noisy.clone(), timesteps.clone(), learned)
            self._call = torch.cuda.make_graphed_callables(self._call, example, allow_unused_input=True)
            self._captures = False
        output: Tensor = self._call(noisy, timesteps, text)
        return output


class _Plain(torch.nn.Module):
    """A UNet with tensors in and out."""

    def __init__(self, unet: Any, bfloat16: bool) -> None:
        super().__init__()
        self.unet, self.bfloat16 = unet, bfloat16

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        # A graph must not keep casts of one step's weights for the next: no cache.
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
            output: Tensor = self.unet(noisy, timesteps, text, return_dict=False)[0]
        return output.float()
