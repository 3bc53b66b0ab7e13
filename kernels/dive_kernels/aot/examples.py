"""What is compiled: example launches of every op at the sizes of Stable Diffusion 1.5, made by the ops' own plans.

Tensors are on the device "meta", so nothing is computed. Sizes that a kernel takes at run time (rows, tokens) need one
example; each value of a kernel's constants (head dim, keys, channels) needs its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dive_kernels.aot.job import Job
from dive_kernels.launch import Launch
from dive_kernels.sources import source_hash

HEADS = 8
HEAD_DIMS = (40, 80, 160)
KEYS = 77
UNET_CHANNELS = (320, 640, 960, 1280, 1920, 2560)  # of its norms, skips included
BANK_CHANNELS = 12_480  # of all cross-attentions together
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
FLOATS = {"fp32": torch.float32, **HALVES}


@dataclass(frozen=True)
class Example:
    """The launches of one use of an op. `ptx` keeps the PTX too, for TensorRT's plugins."""

    op: str
    dtype: str
    launches: list[Launch]
    key: dict[str, int] = field(default_factory=dict)
    ptx: bool = False

    def jobs(self, architecture: int) -> Iterator[Job]:
        """Yields the compilation of each launch."""
        key = "".join(f"-{name.replace('_', '')}{value}" for name, value in self.key.items())
        for launch in self.launches:
            function = launch.kernel.partition(":")[2].removesuffix("_kernel")
            part = "" if function == self.op else f"-{function}"
            yield Job(
                name=f"{self.op}{part}{key}-{self.dtype}-sm{architecture}",
                op=self.op,
                dtype=self.dtype,
                key=self.key,
                architecture=architecture,
                kernel=launch.kernel,
                arguments=tuple(launch.signature.items()),
                constants=launch.constants,
                warps=launch.warps,
                stages=launch.stages,
                source_sha256=source_hash(launch.kernel),
                keep_ptx=self.ptx,
            )


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def solver_step(capability: int) -> Iterator[Example]:
    """Predictions in every type, latents in float32, first and second order."""
    from dive_kernels.solver_step import StepCoefficients
    from dive_kernels.solver_step.plan import plan

    x = meta(36, 4, 64, 32, dtype=torch.float32)
    for name, dtype in FLOATS.items():
        eps = x.to(dtype)
        for order in (1, 2):
            launch, _ = plan(eps, eps, x, x if order == 2 else None, StepCoefficients(7.5, 1.0, 1.0, 1.0, 1.0, 1.0))
            yield Example("solver_step", name, [launch], {"order": order})


def cross_attention(capability: int) -> Iterator[Example]:
    """Every level of the UNet, keys and values as views into the bank of prompts."""
    from dive_kernels.cross_attention.plan import plan

    for head_dim in HEAD_DIMS:
        for name, dtype in HALVES.items():
            channels = HEADS * head_dim
            bank = meta(18, 2, KEYS, BANK_CHANNELS, dtype=dtype)
            key, value = bank[:, 0, :, :channels], bank[:, 1, :, :channels]
            index = meta(36, dtype=torch.int64)
            launch, _ = plan(meta(36, 2048, channels, dtype=dtype), key, value, index, HEADS, capability)
            yield Example("cross_attention", name, [launch], {"head_dim": head_dim, "keys": KEYS}, ptx=True)


def attention(capability: int) -> Iterator[Example]:
    """Every level of the UNet, queries, keys and values as slices of one projection."""
    from dive_kernels.attention.plan import plan

    for head_dim in HEAD_DIMS:
        for name, dtype in HALVES.items():
            query, key, value = meta(36, 2048, 3 * HEADS * head_dim, dtype=dtype).chunk(3, -1)
            launch, _ = plan(query, key, value, HEADS, capability)
            yield Example("attention", name, [launch], {"head_dim": head_dim}, ptx=True)


def groupnorm_silu(capability: int) -> Iterator[Example]:
    """Every norm of the UNet and of the VAE's decoder: around a resnet's first convolution, and a transformer's.

    The UNet's also with an e4m3 result, whose statistics are the same.
    """
    from dive_kernels.fp8.numbers import CHIPS
    from dive_kernels.groupnorm_silu.arguments import Arguments
    from dive_kernels.groupnorm_silu.plan import plan

    plain = [(channels, 0, False, silu) for channels in (320, 640, 1280) for silu in (True, False)]
    skips = [(1280, 1280), (1280, 640), (640, 640), (640, 320), (320, 320)]  # of the way up, with the way down's
    after = [(channels, 0, True, True) for channels in (320, 640, 1280)]  # a time embedding is added
    decoder = [(512, 0, False, True), (256, 0, False, True), (128, 0, False, True), (512, 0, False, False)]
    for own, others, shifted, silu in [*plain, *((*pair, False, True) for pair in skips), *after, *decoder]:
        for name, dtype in HALVES.items():
            x, skip = _image(own, dtype), _image(others, dtype) if others else None
            weight = meta(own + others, dtype=dtype)
            shift = meta(36, own, dtype=dtype) if shifted else None
            given = Arguments(x, weight, weight, 32, 1e-5, skip, shift, silu)
            yield Example("groupnorm_silu", name, plan(given)[0], given.key)
            if capability >= CHIPS and own + others in UNET_CHANNELS:
                given = given._replace(scale=1.0)
                yield Example("groupnorm_silu", name, plan(given)[0][1:], given.key)


def geglu(capability: int) -> Iterator[Example]:
    """The feed-forward's first layer at each width: K -> 4 K, with bias."""
    from dive_kernels.geglu.plan import plan

    for inner in (320, 640, 1280):
        for name, dtype in HALVES.items():
            x, weight = meta(36, 512, inner, dtype=dtype), meta(8 * inner, inner, dtype=dtype)
            launch, _ = plan(x, weight, meta(8 * inner, dtype=dtype), capability)
            yield Example("geglu", name, [launch], {"inner": inner})


def _image(channels: int, dtype: torch.dtype) -> Tensor:
    return meta(36, channels, 64, 32, dtype=dtype).to(memory_format=torch.channels_last)


# `image_epilogue` is CUDA C++, see `cuda_kernels`.
EXAMPLES: tuple[Callable[[int], Iterator[Example]], ...] = (
    solver_step,
    cross_attention,
    attention,
    groupnorm_silu,
    geglu,
)
# In the index beside what could not be built here.
LEFT_OUT = ("attention, cross_attention, groupnorm_silu, geglu in fp32", "Triton compiles them at first use")
