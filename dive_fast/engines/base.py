"""The `Engine` protocol, and what every engine shares: limits, prompt lookup, scaling and pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dive_fast.sampling import repeated
from dive_fast.types import DiveError, EngineSpec, InputError, Profile, shown

if TYPE_CHECKING:
    from dive_fast.models.prompts import PromptEncoder

TEXT_ROWS = 64  # prompts encoded per call; a run may have thousands
ROWS_MAX = 1024  # of an engine whose networks name no limit: memory is the real one
# Pixels decoded a call: 32 images of 512 x 256. Stable Diffusion's decoder has 256 channels of them in a tensor, and from
# 2^31 elements on libraries' kernels are slower or fail.
DECODED_PIXELS = 1 << 22


@dataclass(frozen=True)
class Request:
    """What a run needs of an engine: UNet rows a call (guidance included) and the image size in pixels."""

    rows: int
    height: int
    width: int


@dataclass(frozen=True)
class Conditioning:
    """Prompts as an engine's UNet reads them, on its device. Opaque: pass it back to the same engine."""

    states: Tensor  # [P, ...]: embeddings [P, L, D], or the cross-attention K/V cache computed from them


class Engine(Protocol):
    """The networks of one fused model on one device. Noise, guidance and the solver stay in `dive_fast.sampling`.

    Tensors may lie on any device; `eps` and `encode` return theirs on the device of the input, so keeping latents on
    `device` saves a copy a step.
    """

    spec: EngineSpec
    prompts: PromptEncoder
    scheduler_config: dict[str, Any]
    device: torch.device
    fingerprint: str
    folder: Path | None  # that `load_engine` opened

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one row."""

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Token ids int64 [P, L] -> embeddings float32 [P, L, D], on the CPU."""

    def condition(self, embeddings: Tensor) -> Conditioning:
        """Embeddings float32 [P, L, D] -> what the UNet reads of them at every step."""

    def eps(self, latents: Tensor, timestep: int, conditioning: Conditioning, prompt_index: Tensor) -> Tensor:
        """Returns the model's prediction float32 [R, C, h, w] of latents [B, C, h, w]; prompt_index is int64 [R], R = k x B.

        Row r belongs to latent r % B (`sampling.repeated`) and prompt `prompt_index[r]`: guidance asks for each latent
        twice, and an engine may compute once what does not depend on the prompt.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] as the solver leaves them -> images uint8 [B, H, W, 3] on the CPU."""

    def encode(self, images: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] -> latents float32 [B, C, h, w], scaled: the posterior's mean."""

    def unsupported(self, request: Request) -> list[str]:
        """Every reason why this engine cannot serve `request`, each with value and limit; empty when it can."""

    def batches_of(self, images: int) -> AbstractContextManager[None]:
        """Announces a run whose batches hold `images` images, but for smaller ones at its end.

        Inside, smaller ones are padded: libraries choose kernels by size, so an image would be rounded otherwise where a
        rerun computes it beside fewer others. An engine that compiles for each size compiles once.
        """

    def describe(self) -> str:
        """One line: what runs where, and why it was chosen."""


@dataclass(frozen=True)
class Geometry:
    """How pixels, latents and the UNet's levels relate in one model."""

    channels: int
    vae_scale: int
    unet_halvings: int
    scaling_factor: float

    @classmethod
    def from_configs(cls, unet: Mapping[str, Any], vae: Mapping[str, Any], where: str) -> Geometry:
        """Reads the configs of a diffusers model's UNet and VAE; raises `InputError` naming `where` for a bad one."""
        try:
            if vae.get("shift_factor") is not None:
                raise ValueError("a VAE with a shift_factor is not supported")
            found = cls(
                channels=int(unet["in_channels"]),
                vae_scale=2 ** (len(vae["block_out_channels"]) - 1),
                unet_halvings=len(unet["block_out_channels"]) - 1,
                scaling_factor=float(vae["scaling_factor"]),
            )
            if found.channels < 1 or found.scaling_factor <= 0:
                raise ValueError(f"{found.channels} channels, scaling_factor {found.scaling_factor}: needs numbers > 0")
            return found
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: the UNet's or VAE's config is unusable ({shown(error)}); make it again"
            ) from error

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.channels, height // self.vae_scale, width // self.vae_scale

    def own_size(self, unet: Any) -> tuple[int, int]:
        """(height, width) in pixels that a UNet was trained at, from its config."""
        sample = unet.sample_size  # of latents, one number or two
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self.vae_scale, width * self.vae_scale

    def misfits(self, height: int, width: int) -> list[str]:
        """Returns every reason why the UNet cannot halve an image size."""
        multiple = self.vae_scale * 2**self.unet_halvings
        reason = f"is not a multiple of {multiple} = {self.vae_scale} x 2^{self.unet_halvings}"
        return [f"{name} {size} {reason}" for name, size in (("height", height), ("width", width)) if size % multiple]


@dataclass(eq=False)
class EngineBase:
    """`Engine` but for the networks. A backend adds `_text`, `_unet`, `_decoder`, `_encoder`, float32 in and out.

    `_unet(latents [B, ...], timestep, states, prompt_index [R])` computes `Engine.eps` for R = k x B rows. Its arguments
    are checked and lie on `device`, except `prompt_index`, which stays on the caller's.

    With `check_finite` the output of every network is checked, which makes the host wait for a GPU. A value that is not
    finite raises `DiveError` with network, timestep and rows, and the layer if `_first_bad_layer` of the backend finds it.
    """

    spec: EngineSpec
    prompts: PromptEncoder
    scheduler_config: dict[str, Any]
    device: torch.device
    fingerprint: str
    geometry: Geometry
    runs_on: str
    chosen: str
    check_finite: bool = False
    batch: int = 0  # images that batches hold, inside of `batches_of`; 0 outside
    folder: Path | None = None  # that `load_engine` opened

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.geometry.latent_shape(self.spec.profile.height, self.spec.profile.width)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        if token_ids.ndim != 2 or not len(token_ids):
            raise InputError(f"text encoder: token ids must be [P, L] with P >= 1, got {list(token_ids.shape)}")
        return torch.cat([self._checked("text_encoder", self._text(part)).cpu() for part in self.by_prompts(token_ids)])

    def condition(self, embeddings: Tensor) -> Conditioning:
        return Conditioning(embeddings.to(self.device, torch.float32))

    def eps(self, latents: Tensor, timestep: int, conditioning: Conditioning, prompt_index: Tensor) -> Tensor:
        self._check_latents(latents, "UNet")
        states = conditioning.states
        if prompt_index.ndim != 1 or not len(prompt_index) or len(prompt_index) % len(latents):
            raise InputError(
                f"UNet: prompt_index must be [{len(latents)}] as the latents, or a multiple of it, "
                f"got {list(prompt_index.shape)}"
            )
        self._check_rows(len(prompt_index), "UNet")
        if int(prompt_index.min()) < 0 or int(prompt_index.max()) >= len(states):
            raise InputError(f"UNet: prompt_index reaches outside the {len(states)} prompts of the conditioning")
        images = len(latents)
        index = self._whole(prompt_index.view(-1, images).T).T.flatten()  # [R, k x B], as `eps` says
        out = self._unet(self._whole(latents.to(self.device)), timestep, states, index)
        out = out.unflatten(0, (-1, max(images, self.batch)))[:, :images].flatten(0, 1)
        return self._checked("unet", out, latents, f" at timestep {timestep}").to(latents.device)

    def decode(self, latents: Tensor) -> Tensor:
        self._check_latents(latents, "VAE decoder")
        parts = torch.split(self._whole(latents), self._decoded_images(len(latents)))
        return torch.cat([self._decoded(part) for part in parts])[: len(latents)]

    def _whole(self, given: Tensor) -> Tensor:
        """Inside of `batches_of`, pads [B, ...] with zeros to a whole batch; a zero in an index is its first entry."""
        return padded(given, self.batch) if len(given) < self.batch else given

    def _decoded(self, latents: Tensor) -> Tensor:
        images = self._decoder(latents.to(self.device) / self.geometry.scaling_factor)
        pixels, finite = self._pixels(self._checked("vae_decoder", images, latents))
        if not finite:
            raise DiveError(
                "VAE decoder: the images are not finite; open the engine with --check-finite (check_finite=True), which "
                "names the first network, step and layer, or use precision fp32 or bf16"
            )
        return pixels.cpu()

    def _decoded_images(self, images: int) -> int:
        """Returns the images of a decoder call: a batch in as few equal parts as `DECODED_PIXELS` allows."""
        whole = max(images, self.batch)
        most = max(1, DECODED_PIXELS // (self.spec.profile.height * self.spec.profile.width))
        return -(-whole // -(-whole // most))

    def encode(self, images: Tensor) -> Tensor:
        profile = self.spec.profile
        if images.dtype != torch.uint8 or images.shape[1:] != (profile.height, profile.width, 3):
            raise InputError(
                f"VAE encoder: images must be uint8 [B, {profile.height}, {profile.width}, 3], "
                f"got {images.dtype} {list(images.shape)}; resize them first"
            )
        self._check_rows(len(images), "VAE encoder")
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        mean = self._checked("vae_encoder", self._encoder(self._whole(pixels))[: len(images)])
        return (mean * self.geometry.scaling_factor).to(images.device)

    def unsupported(self, request: Request) -> list[str]:
        reasons = _row_limits(request.rows, self.spec.profile) + self.geometry.misfits(request.height, request.width)
        profile = self.spec.profile
        for name, size, own in (("height", request.height, profile.height), ("width", request.width, profile.width)):
            if size != own:
                reasons.append(f"{name} {size} is not this engine's {own}")
        return reasons

    @contextmanager
    def batches_of(self, images: int) -> Iterator[None]:
        before, self.batch = self.batch, images
        try:
            yield
        finally:
            self.batch = before

    def describe(self) -> str:
        profile = self.spec.profile
        return (
            f"{self.spec.backend} {self.spec.precision} on {self.runs_on}, images {profile.height}x{profile.width}, "
            f"up to {profile.rows_max} rows ({self.chosen})"
        )

    def _check_latents(self, latents: Tensor, network: str) -> None:
        if latents.shape[1:] != self.latent_shape:
            wanted = ", ".join(map(str, self.latent_shape))
            raise InputError(f"{network}: latents must be [rows, {wanted}], got {list(latents.shape)}")
        self._check_rows(len(latents), network)

    def _check_rows(self, rows: int, network: str) -> None:
        reasons = _row_limits(rows, self.spec.profile)
        if reasons:
            raise InputError(f"{network}: {'; '.join(reasons)}; call with fewer rows at a time")

    def by_prompts(self, prompts: Tensor) -> Sequence[Tensor]:
        """Splits [P, ...] into the rows of one call each."""
        return torch.split(prompts, min(TEXT_ROWS, self.spec.profile.rows_max))

    def _checked(self, network: str, output: Tensor, given: Tensor | None = None, when: str = "") -> Tensor:
        """Returns `output` [rows, ...]; with `check_finite`, raises `DiveError` if it or its input `given` is not finite."""
        bad = _rows_not_finite(output) if self.check_finite else []
        if not bad:
            return output
        if given is not None and _rows_not_finite(given):
            raise DiveError(f"{network}{when}: its input is not finite; check what computed the input")
        numbers = f"{', '.join(map(str, bad[:4]))}{', ...' if len(bad) > 4 else ''}"
        remedy = self._first_bad_layer(network) or f"{self.spec.precision} may be too narrow, use fp32 or bf16"
        raise DiveError(f"{network}{when}: not finite in {len(bad)} of {len(output)} rows ({numbers}); {remedy}")

    def _first_bad_layer(self, network: str) -> str | None:
        """Names the first layer of `network` with a value that is not finite in its last call, and a remedy."""
        return None

    def _pixels(self, images: Tensor) -> tuple[Tensor, bool]:
        """[B, 3, H, W] in about -1..1 as uint8 [B, H, W, 3], rounded as diffusers does; and whether all are finite."""
        pixels = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (pixels * 255).round().to(torch.uint8), bool(images.isfinite().all())

    def _text(self, token_ids: Tensor) -> Tensor:
        raise NotImplementedError

    def _unet(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> Tensor:
        raise NotImplementedError

    def _decoder(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def _encoder(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


def padded(tensor: Tensor, count: int) -> Tensor:
    """Pads [n, ...] with zeros to `count` rows."""
    return functional.pad(tensor, (*(0, 0) * (tensor.ndim - 1), 0, count - len(tensor)))


def row_inputs(latents: Tensor, states: Tensor, prompt_index: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B, ...] and prompt states [P, ...] as R rows each, for a UNet that reads both in full."""
    return repeated(latents, len(prompt_index)), states.index_select(0, on_device(prompt_index, states.device))


def on_device(index: Tensor, device: torch.device) -> Tensor:
    """Copies a small tensor to `device` without waiting: CUDA has read pageable memory when the call returns."""
    return index.to(device, non_blocking=device.type == "cuda")


def _rows_not_finite(tensor: Tensor) -> list[int]:
    finite = tensor.isfinite().flatten(1).all(1)
    return torch.nonzero(~finite).flatten().tolist()


def _row_limits(rows: int, profile: Profile) -> list[str]:
    if rows < profile.rows_min:
        return [f"rows {rows} < rows_min {profile.rows_min}"]
    return [f"rows {rows} > rows_max {profile.rows_max}"] if rows > profile.rows_max else []
