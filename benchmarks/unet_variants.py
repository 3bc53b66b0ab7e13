"""Ways to run the UNet of Stable Diffusion 1.5's size, or of the pocket model: eager, compiled, with our kernels.

For `benchmarks/first_gpu.py`. Weights of sd15 are random: for times and rounding, not for images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import interleaved, medians
from dive_fast.sampling import Schedule, dpmpp_2m, guided, repeated
from dive_fast.unet.fp8 import fp8_layers, use_fp8
from dive_fast.unet.graphs import CachedUnetGraph, KVCacheGraph, UnetGraph, VaeDecoderGraph
from dive_fast.unet.kernels import OPS, Workload, use_kernels
from dive_fast.unet.optimizations import OPTIMIZATIONS, WithoutUnitScale

GFLOP = 372.5  # a row of sd15 at 512x256, counted on the configuration
PROMPTS, GUIDANCE = 16, 7.5
DECODED = 18  # images a call of the decoder: of 64 and more, a layer has over 2^31 elements
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """`bank`: our graph with the K/V cache and all exact optimizations. `ops` run our kernels. `mode` is torch.compile's,
    None for eager. `searched`: cuDNN times its convolutions and takes the fastest. `fp8` are the parts in FP8, as
    `fp8_impl` computes them.
    """

    name: str
    bank: bool = False
    ops: tuple[str, ...] = ()
    mode: str | None = None
    searched: bool = True
    fp8: tuple[str, ...] = ()
    fp8_impl: str = "auto"


EAGER = Variant("eager")
UNSEARCHED = Variant("eager, cudnn.benchmark off", searched=False)
BANK = Variant("bank", bank=True, mode="default")
NORMS = Variant("bank, GroupNorm and GEGLU", bank=True, ops=("groupnorm_silu", "geglu"), mode="default")
KERNELS = Variant("bank, all kernels", bank=True, ops=OPS, mode="default")
VARIANTS = (UNSEARCHED, EAGER, BANK, NORMS, KERNELS)


class Subject:
    """A UNet and a VAE on `device`, fp16 on a GPU and float32 on a CPU, and the inputs of one call of `rows` rows.

    On a CPU kernels are their references, and nothing is compiled.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self.images = rows, rows // 2
        self.device, self.gpu = device, device.type == "cuda"
        self.dtype = torch.float16 if self.gpu else torch.float32
        self.impl = "fused" if self.gpu else "reference"
        bundle = _bundle("sd15" if self.gpu else "pocket")
        self.scheduler_config, self.vae = bundle.scheduler_config, bundle.vae
        torch.backends.cudnn.allow_tf32 = False  # or the float32 reference is none
        exact = nn.Module.to(copy.deepcopy(bundle.unet), device, torch.float32)
        self.unet = nn.Module.to(bundle.unet, device, self.dtype)  # diffusers' own warns of nothing
        self._make_inputs(bundle.tokenizer.model_max_length)
        self.exact = UnetGraph(exact)(self.both.float(), self.timestep, self.hidden.float())

    def _make_inputs(self, tokens: int) -> None:
        """Two rows of each image, the first of the empty prompt."""
        generator = torch.Generator().manual_seed(0)
        config, images = self.unet.config, self.images
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, self.dtype)

        prompts = noise(PROMPTS + 1, tokens, config.cross_attention_dim)
        self.latents = noise(images, config.in_channels, height, width).contiguous(memory_format=torch.channels_last)
        self.both = self.latents.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        self.timestep = torch.tensor([500], device=self.device)
        self.own_prompts = (torch.arange(images) % PROMPTS + 1).to(self.device)
        self.prompt_index = torch.cat([torch.zeros_like(self.own_prompts), self.own_prompts])
        self.image_index = repeated(torch.arange(images), self.rows).to(self.device)
        self.hidden, self.bank = prompts[self.prompt_index], KVCacheGraph(self.unet)(prompts)

    def network(self, variant: Variant) -> nn.Module:
        """The variant's own module, compiled where it says so."""
        torch.backends.cudnn.benchmark = variant.searched
        module = CachedUnetGraph(self.unet, OPTIMIZATIONS, 1000) if variant.bank else UnetGraph(self.unet)
        module.to(memory_format=torch.channels_last)
        if variant.ops:
            use_kernels(module, impl=self.impl, ops=variant.ops)
        if variant.fp8:
            size = self.latents.shape[2:]
            print(
                fp8_layers(
                    use_fp8(module, parts=variant.fp8, impl=variant.fp8_impl, workload=Workload(size=tuple(size)))
                )
            )
        return self.compiled(WithoutUnitScale(module) if variant.bank else module, variant.mode)

    def compiled(self, module: nn.Module, mode: str | None) -> nn.Module:
        if mode is None or not self.gpu:
            return module
        return torch.compile(module, mode=mode, dynamic=False)  # type: ignore[return-value]

    def call(self, network: nn.Module, variant: Variant) -> Call:
        """One call of the UNet, [rows, C, h, w]."""
        if not variant.bank:
            return partial(network, self.both, self.timestep, self.hidden)
        return partial(network, self.latents, self.timestep, self.bank, self.prompt_index, self.image_index)

    def error(self, found: Tensor) -> float:
        """Root mean square difference from the float32 UNet over its own."""
        return float((found.float() - self.exact).square().mean().sqrt() / self.exact.square().mean().sqrt())

    def sample(self, network: nn.Module, steps: int) -> Tensor:
        """Latents of a whole loop with guidance; `network` is a bank's."""

        def eps(latents: Tensor, timestep: int, index: Tensor) -> Tensor:
            given = latents.to(self.dtype).contiguous(memory_format=torch.channels_last)
            step = torch.full((1,), timestep, device=self.device)
            out: Tensor = network(given, step, self.bank, index, self.image_index)
            return out.float()

        schedule = Schedule.from_config(self.scheduler_config, steps)
        return dpmpp_2m(guided(eps, self.own_prompts, 0, GUIDANCE), self.latents.float(), schedule)

    def decoder(self, kernels: bool) -> Call:
        """Decodes the latents of a call, `DECODED` images at a time, compiled, with or without our GroupNorm."""
        vae = nn.Module.to(copy.deepcopy(self.vae), self.device, self.dtype).to(memory_format=torch.channels_last)
        if kernels:
            use_kernels(vae, impl=self.impl, ops=("groupnorm_silu",))
        network = self.compiled(VaeDecoderGraph(vae), "default")
        return lambda: torch.cat([network(part) for part in self.latents.split(DECODED)])


def _bundle(name: str) -> Any:
    if name == "sd15":
        from dive_fast.bench.sd15 import sd15

        return sd15(real=("unet", "vae"))
    from dive_fast.models import load_bundle

    return load_bundle(name)


def first_call(call: Call) -> tuple[float, Tensor]:
    """Seconds of a call that may compile, and what it returns."""
    began = time.perf_counter()
    found = call()
    if found.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def milliseconds(call: Call, repeats: int, device: torch.device) -> float:
    """Median of `repeats` calls, by the GPU's own clock."""
    return medians(interleaved({"": call}, repeats, device.type, warm_up=2))[""]


def kernels_of(call: Call, device: torch.device) -> list[dict[str, Any]]:
    """The GPU's kernels in one call (a CPU's operators), the longest first: name, calls, milliseconds."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        first_call(call)
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    times = [
        {"kernel": event.key[:160], "calls": event.count, "ms": round(_self_time(event, gpu) / 1e3, 4)}
        for event in found.key_averages()
        if event.device_type == kind
    ]
    return sorted(times, key=lambda row: -row["ms"])


def _self_time(event: Any, gpu: bool) -> float:
    return float(event.self_device_time_total if gpu else event.self_cpu_time_total)


def group_norm_statistics(kernels: list[dict[str, Any]]) -> float:
    """Milliseconds of Inductor's reductions for GroupNorm, by their names."""
    reductions = ("triton_red_", "triton_per_")
    return sum(row["ms"] for row in kernels if row["kernel"].startswith(reductions) and "group_norm" in row["kernel"])
