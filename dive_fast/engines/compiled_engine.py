"""The torch engine, compiled by inductor: K/V cache, all graph optimizations, our kernels where they are faster.

Not run on a GPU yet: CUDA graphs, the kernels, FP8 and the fused image epilogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dive_fast.engines.base import Conditioning, Engine, on_device, padded
from dive_fast.engines.compile_cache import keep_compiled
from dive_fast.engines.registry import Choice, installed
from dive_fast.engines.torch_engine import TorchEngine, opening
from dive_fast.io import brief, sha256_bytes
from dive_fast.sampling import repeated
from dive_fast.types import DiveError, InputError, Profile
from dive_fast.unet.fp8 import fp8_layers, use_fp8
from dive_fast.unet.graphs import TIMESTEPS, CachedUnetGraph, KVCacheGraph, VaeDecoderGraph, other_traits
from dive_fast.unet.kernels import Workload, use_kernels
from dive_fast.unet.optimizations import OPTIMIZATIONS, WithoutUnitScale
from dive_kernels.fp8.cudnn_graphs import NoPlan
from dive_kernels.image_epilogue import image_epilogue

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle

# A count is compiled at its first call, a minute or more on a GPU; 18, 36, 72 and 144 suit DiVE's 18 images a call.
ROW_COUNTS = (1, 2, 4, 8, 16, 18, 32, 36, 64, 72, 128, 144)
ROWS_USUAL = 32
SHAPES = 64  # compilations of a network in a process: each row count with and without guidance
REMEDY = "open the folder with --backend torch"


class CompiledEngine(TorchEngine):
    """Takes the bundle's modules over, as `TorchEngine`; UNet and VAE decoder are compiled.

    Only `row_counts` are compiled; calls are padded to the next one. Inside of `batches_of` that batch's size is compiled,
    so a run compiles each network once (the UNet twice if guidance has an interval). `compiler` is a backend
    of torch.compile. With `graphs`, UNet calls are captured as CUDA graphs after compilation, and replayed.
    """

    backend = "torch-compiled"

    def __init__(
        self,
        bundle: ModelBundle,
        device: torch.device,
        *,
        row_counts: Sequence[int] = ROW_COUNTS,
        compiler: str | Callable[..., Any] = "inductor",
        graphs: bool = False,
        **others: Any,
    ) -> None:
        """`others` are `TorchEngine`'s.

        Raises `InputError` for row counts below 1, for graphs on a CPU, and for a UNet of another build.
        """
        counts = tuple(sorted(set(row_counts)))
        if not counts or counts[0] < 1:
            raise InputError(f"torch-compiled: row_counts must be whole numbers > 0, got {list(row_counts)}")
        if graphs and device.type != "cuda":
            raise InputError(f"torch-compiled: graphs are CUDA graphs, the device is {device}; leave them out")
        traits = other_traits(bundle.unet)
        if traits:
            raise InputError(
                f"torch-compiled: this UNet has {'; '.join(traits)}, unlike Stable Diffusion 1.5's; {REMEDY}"
            )
        super().__init__(bundle, device, **others)
        profile, triton = self.spec.profile, installed("triton")
        usual = max((count for count in counts if count <= ROWS_USUAL), default=counts[0])
        self.spec = replace(
            self.spec,
            profile=Profile(1, usual, counts[-1], profile.height, profile.width),
            variant="kv-cache",
            optimizations=OPTIMIZATIONS,
            row_counts=counts,
            versions=self.spec.versions | ({"triton": triton} if triton else {}),
        )
        timesteps = int(bundle.scheduler_config.get("num_train_timesteps", TIMESTEPS))
        self._prompt_bank = KVCacheGraph(self._unet_module)
        bank_unet = CachedUnetGraph(self._unet_module, OPTIMIZATIONS, timesteps)
        self._unet_module = bank_unet.unet  # frees the projections that the K/V cache replaces
        self._graph, self._decoder_module = WithoutUnitScale(bank_unet), VaeDecoderGraph(self._vae)
        work = Workload(usual, self.latent_shape[1:], bundle.tokenizer.model_max_length, compiled=True)
        fp8 = self.spec.precision == "fp8"
        in_unet = use_kernels(bank_unet, workload=work)
        self.kernels = {
            "unet": in_unet.then(use_fp8(bank_unet, workload=work)) if fp8 else in_unet,
            "vae_decoder": use_kernels(self._vae, workload=work),
        }
        if fp8:  # with other layers in FP8 it makes other images
            self.fingerprint = sha256_bytes(f"{self.fingerprint} {fp8_layers(self.kernels['unet'])}".encode())
        mode = "max-autotune-no-cudagraphs" if device.type == "cuda" and compiler == "inductor" else None
        self._fast_unet, self._fast_decoder = (
            torch.compile(module, fullgraph=True, dynamic=False, backend=compiler, mode=mode)
            for module in (self._graph, self._decoder_module)
        )
        self._graphs, self._bank = graphs, FixedBank()
        self._replays: dict[tuple[int, int], Replay] = {}  # by images and rows

    def describe(self) -> str:
        found = "; ".join(f"{network}: {applied.summary}" for network, applied in self.kernels.items())
        fp8 = f"; {fp8_layers(self.kernels['unet'])}" if self.spec.precision == "fp8" else ""
        return f"{super().describe()}; kernels in the {found}{fp8}"

    def condition(self, embeddings: Tensor) -> Conditioning:
        caches = []
        for part in self.by_prompts(embeddings):
            given = part.to(self.device, self.dtype)
            cache = self._run("prompt_bank", lambda given=given: self._prompt_bank(given))  # type: ignore[misc]
            caches.append(self._checked("prompt_bank", cache, part).to(self.dtype))
        return Conditioning(torch.cat(caches))

    def _pixels(self, images: Tensor) -> tuple[Tensor, bool]:
        if self.device.type != "cuda":
            return super()._pixels(images)
        pixels, not_finite = image_epilogue(images)
        return pixels, not bool(not_finite.any())

    def _unet(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> Tensor:
        feeds = self._feeds(latents, timestep, states, prompt_index)
        fast = self._replayed if self._graphs else self._fast_unet
        out = self._run("unet", lambda: self._compiled("UNet", fast, feeds), lambda: self._graph(*feeds))
        return out[: len(prompt_index)]

    def _feeds(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> tuple[Tensor, ...]:
        """Returns the UNet's inputs, padded to a number of images that have as many rows each as before."""
        images, rows = len(latents), len(prompt_index)
        room, count = self._room(images, rows // images)
        if self._graphs:
            states = self._bank.hold(states)
        if len(states) > 1:  # torch.compile treats a length of 1 as fixed
            torch._dynamo.mark_dynamic(states, 0)
        image_index = repeated(torch.arange(images, device=self.device), rows)
        return (
            self._images(latents, room),
            torch.full((1,), timestep, dtype=torch.int64, device=self.device),
            states,
            padded(on_device(prompt_index, self.device), count),
            padded(image_index, count),
        )

    def _decoder(self, latents: Tensor) -> Tensor:
        given = self._images(
            latents, self._decoded_images(len(latents)) if self.batch else self._room(len(latents), 1)[0]
        )
        call = lambda: self._compiled("VAE decoder", self._fast_decoder, (given,))  # noqa: E731
        return self._run("vae_decoder", call, lambda: self._decoder_module(given))[: len(latents)]

    def _room(self, images: int, each: int) -> tuple[int, int]:
        """Returns the images and the rows to compute for `images` of `each` rows; `EngineBase` refuses too many rows."""
        if images == self.batch:
            return images, images * each
        count = next(count for count in self.spec.row_counts if count >= images * each)
        return -(-count // each), count

    def _images(self, latents: Tensor, count: int) -> Tensor:
        whole = padded(latents.to(self.dtype), count)
        return whole.contiguous(memory_format=torch.channels_last) if self.device.type == "cuda" else whole

    def _compiled(self, what: str, network: Callable[..., Any], feeds: tuple[Any, ...]) -> Any:
        """Runs the network, compiled at the first call of these shapes; raises `DiveError` if compilation fails."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES):
                return network(*feeds)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            message = brief(str(error).split("\n\n")[0])  # torch's own advice follows
            raise DiveError(
                f"torch-compiled: torch.compile cannot compile the {what} for {len(feeds[0])} images ({message}); inductor "
                f"needs a C++ compiler (g++ or clang++) on a CPU and triton on a GPU: install it, or {REMEDY}"
            ) from error
        except NoPlan as error:
            raise DiveError(f"torch-compiled: {error}; use precision fp16") from error

    def _replayed(self, *feeds: Tensor) -> Tensor:
        """Runs the UNet by a CUDA graph of these shapes, captured at the first call and when the cache needs more room."""
        key = (len(feeds[0]), len(feeds[3]))
        replay = self._replays.get(key)
        if replay is None or not replay.fits(feeds):
            replay = self._replays[key] = Replay(self._fast_unet, feeds)
        return replay(feeds)

    def _module(self, network: str) -> nn.Module:
        return self._prompt_bank if network == "prompt_bank" else super()._module(network)

    def _first_bad_layer(self, network: str) -> str | None:
        """Runs the last call again without compilation and kernels, which tells a bad layer from a bad kernel."""
        if network not in self.kernels:
            return super()._first_bad_layer(network)
        applied = self.kernels[network]
        applied.restore()
        try:
            found = super()._first_bad_layer(network)
        finally:
            applied.apply()
        return (
            found
            or f"eager torch computes finite values: a compiled layer or a kernel is wrong; report it, and {REMEDY}"
        )


def open_compiled(folder: Path, choice: Choice) -> Engine:
    """Opens a model folder for compilation, whose results stay in `choice.cache`."""
    keep_compiled(choice.cache)
    return CompiledEngine(**opening(folder, choice, []), graphs=choice.graphs)


class FixedBank:
    """K/V caches at one address, which a CUDA graph holds: each new one is copied in.

    The room grows in powers of two. No index reaches behind the last prompt, so what is left there is not read.
    """

    def __init__(self) -> None:
        self._source = self._buffer = torch.empty(0)

    @torch.inference_mode()  # as caches are made
    def hold(self, cache: Tensor) -> Tensor:
        """Returns the cache [P, ...] in a buffer of at least P prompts: another buffer only if it does not fit."""
        if cache is not self._source:
            if len(cache) > len(self._buffer) or cache.shape[1:] != self._buffer.shape[1:]:
                self._buffer = cache.new_zeros(1 << (len(cache) - 1).bit_length(), *cache.shape[1:])
            self._buffer[: len(cache)].copy_(cache)
            self._source = cache  # kept, so that no other cache can be taken for it
        return self._buffer


class Replay:
    """A captured call of a network: inputs are copied in, but for the K/V cache of a `FixedBank`, which is read in place.

    Not run on a GPU yet.
    """

    CACHE = 2  # its index among the inputs

    def __init__(self, network: Callable[..., Tensor], feeds: tuple[Tensor, ...]) -> None:
        self._feeds = tuple(x if i == self.CACHE else x.clone() for i, x in enumerate(feeds))
        stream, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(stream)
        with torch.cuda.stream(aside):  # compiles, tunes and allocates outside the capture
            network(*self._feeds)
        stream.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = network(*self._feeds)

    def fits(self, feeds: tuple[Tensor, ...]) -> bool:
        """Whether the cache lies in the captured buffer: its address and length are in the graph."""
        return feeds[self.CACHE] is self._feeds[self.CACHE]

    def __call__(self, feeds: tuple[Tensor, ...]) -> Tensor:
        for i, (own, given) in enumerate(zip(self._feeds, feeds, strict=True)):
            if i != self.CACHE:
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._out.clone()
