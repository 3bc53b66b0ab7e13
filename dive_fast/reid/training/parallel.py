"""Training on several processes: each computes its identities of every batch, and all take one process's step.

A batch's losses compare all of its identities, and batch norms average over all of its images. So every rank computes the
loss of the whole batch from all features, its own with their gradient; norms take their statistics over the ranks; and
gradients are summed. That is one process's step, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dive_fast.distributed import rank_and_size
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import InputError


def my_rows(rows: int, identities: int) -> slice:
    """Returns this rank's slice of a batch's `rows`, which are ordered by identity.

    Raises `InputError` for identities that the ranks cannot share evenly.
    """
    rank, size = rank_and_size()
    if identities % size:
        raise InputError(f"{size} processes cannot share {identities} identities evenly; change --identities")
    return slice(rank * rows // size, (rank + 1) * rows // size)


def check_processes(config: ReidConfig) -> None:
    """Raises `InputError` for a config whose batches the ranks cannot share."""
    my_rows(0, config.identities)
    if config.missing == "visible" and rank_and_size()[1] > 1:
        raise InputError("--missing visible needs one process: others could lack infrared images; use drop")


def gathered(own: Tensor) -> Tensor:
    """Returns the rows of all ranks in order, [ranks * B, ...]: this rank's with their gradient, others' without."""
    rank, size = rank_and_size()
    if size == 1:
        return own
    parts = [torch.empty_like(own, requires_grad=False) for _ in range(size)]
    dist.all_gather(parts, own.detach().contiguous())
    parts[rank] = own
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums the gradients over the ranks in place; a missing one counts as zero."""
    if rank_and_size()[1] == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def share_norms(model: nn.Module) -> nn.Module:
    """Makes the batch norms of `model` take their statistics over all ranks; parameters and their names stay.

    On a GPU torch's `SyncBatchNorm` does this, which a CPU lacks. A single process keeps its norms.
    """
    if rank_and_size()[1] == 1:
        return model
    if next(model.parameters()).is_cuda:
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return shared
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, SharedNorm.from_norm(child))
    return model


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm of [B, C] or [B, C, H, W] with mean and variance over the rows of all ranks."""

    @classmethod
    def from_norm(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> SharedNorm:
        """Returns a norm with the parameters and buffers of another."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        shared._parameters, shared._buffers = norm._parameters, norm._buffers
        return shared

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected 2 or 4 dimensions, got {input.ndim}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce  # differentiable; some builds of torch lack it

        self._check_input_dim(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = (0,) if input.ndim == 2 else (0, 2, 3)
        shape = (1, -1) if input.ndim == 2 else (1, -1, 1, 1)
        count = all_reduce(values.new_tensor(float(values.numel() // values.shape[1])))
        mean = all_reduce(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._update_statistics(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Updates the running statistics, with the population's variance, as torch's norms do."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
