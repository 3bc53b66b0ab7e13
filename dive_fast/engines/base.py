"""What an engine is, and what every engine shares: limits, prompt lookup, scaling and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dive_fast.types import DiveError, EngineSpec, InputError, Profile

if TYPE_CHECKING:
    from dive_fast.models.prompts import PromptEncoder

TEXT_ROWS = 64  # prompts encoded per call; a bank may hold thousands
ROWS_MAX = 1024  # of an engine whose networks name no limit: memory is the real one, and it is not known here


@dataclass(frozen=True)
class Request:
    """What a run is going to ask of an engine: UNet rows a call (guidance included), the image size in pixels, and the
    `depth` of `Kept` deep features, 0 for none.
    """

    rows: int
    height: int
    width: int
    depth: int = 0


@dataclass(frozen=True)
class Conditioning:
    """A bank of prompts in the form that an engine reads, on its device. Opaque: pass it back to the same engine."""

    bank: Tensor  # [P, ...]: the embeddings [P, L, D], or the keys and values that a bank engine made of them


@dataclass(eq=False)
class Kept:
    """Deep features of the UNet that one call leaves for the calls of the next steps (DeepCache, arXiv 2312.00858).

    A call that finds `deep` None computes all and leaves it here; one that finds it computes the last `depth` layers of
    the UNet only, and those that they read. Whoever holds it sets `deep` to None where all is to be computed again.
    """

    depth: int
    deep: Tensor | None = None  # opaque
    rows: int = 0  # of the call that made it


class Engine(Protocol):
    """The networks of one fused model on one device. Noise, guidance and the solver stay in `dive_fast.sampling`.

    Tensors may come from any device; `eps` and `encode` answer on the device of their input, so keeping latents on
    `device` saves a copy a step.
    """

    spec: EngineSpec
    prompts: PromptEncoder
    scheduler_config: dict[str, Any]
    device: torch.device
    fingerprint: str

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one row."""

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Token ids int64 [P, L] -> embeddings float32 [P, L, D], on the CPU."""

    def condition(self, embeddings: Tensor) -> Conditioning:
        """Embeddings float32 [P, L, D], made ready once for all steps."""

    def eps(
        self,
        latents: Tensor,
        timestep: int,
        conditioning: Conditioning,
        prompt_index: Tensor,
        kept: Kept | None = None,
    ) -> Tensor:
        """What the model predicts, float32 [R, C, h, w], for latents [B, C, h, w] and `prompt_index` int64 [R], R = k x B.

        Row r is of latent r % B and prompt `prompt_index[r]`: guidance asks for each latent twice, and an engine may
        compute once what does not depend on the prompt. With `kept`, deep features of an earlier call of the same rows
        and prompts stand in for most of the UNet.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] as the solver leaves them -> images uint8 [B, H, W, 3] on the CPU."""

    def encode(self, images: Tensor) -> Tensor:
        """Images uint8 [B, H, W, 3] -> latents float32 [B, C, h, w], scaled: the posterior's mean."""

    def unsupported(self, request: Request) -> list[str]:
        """Every reason why this engine cannot serve `request`, each with value and limit; empty when it can."""

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
        """From the two config.json of a diffusers model; anything odd in them raises `InputError` naming `where`."""
        try:
            if vae.get("shift_factor") is not None:
                raise ValueError("a VAE with a shift_factor is not supported")
            return cls(
                channels=int(unet["in_channels"]),
                vae_scale=2 ** (len(vae["block_out_channels"]) - 1),
                unet_halvings=len(unet["block_out_channels"]) - 1,
                scaling_factor=float(vae["scaling_factor"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: the UNet's or VAE's config is unusable ({error!r}); make it again") from error

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.channels, height // self.vae_scale, width // self.vae_scale

    def misfits(self, height: int, width: int) -> list[str]:
        """Why an image size does not pass through the UNet's levels and back; empty when it does."""
        multiple = self.vae_scale * 2**self.unet_halvings
        reason = f"is not a multiple of {multiple} = {self.vae_scale} x 2^{self.unet_halvings}"
        return [f"{name} {size} {reason}" for name, size in (("height", height), ("width", width)) if size % multiple]


@dataclass(eq=False)
class EngineBase:
    """Everything but the networks. A backend adds `_text`, `_unet`, `_decoder`, `_encoder`, float32 in and out.

    `_unet(latents [B, ...], timestep, bank, prompt_index [R])` answers for R = k x B rows, as `Engine.eps`; what it is
    given has been checked, and stands on `device` but for `prompt_index`, which stays where the caller has it. A
    backend that can keep deep features says with which `depths`, and adds `_unet_kept`.

    With `guard` every network's answer is looked at, which makes a GPU wait for it: a number that is not finite raises
    `DiveError` with network, timestep and rows, and with the layer, where a backend's `_first_bad_layer` finds it.
    """

    spec: EngineSpec
    prompts: PromptEncoder
    scheduler_config: dict[str, Any]
    device: torch.device
    fingerprint: str
    geometry: Geometry
    runs_on: str
    chosen: str
    guard: bool = False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.geometry.latent_shape(self.spec.profile.height, self.spec.profile.width)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        if token_ids.ndim != 2 or not len(token_ids):
            raise InputError(f"text encoder: token ids must be [P, L] with P >= 1, got {list(token_ids.shape)}")
        return torch.cat([self._guarded("text_encoder", self._text(part)).cpu() for part in self.by_prompts(token_ids)])

    def condition(self, embeddings: Tensor) -> Conditioning:
        return Conditioning(embeddings.to(self.device, torch.float32))

    def eps(
        self,
        latents: Tensor,
        timestep: int,
        conditioning: Conditioning,
        prompt_index: Tensor,
        kept: Kept | None = None,
    ) -> Tensor:
        self._check_latents(latents, "UNet")
        bank = conditioning.bank
        if prompt_index.ndim != 1 or not len(prompt_index) or len(prompt_index) % len(latents):
            raise InputError(
                f"UNet: prompt_index must be [{len(latents)}] as the latents, or a multiple of it, "
                f"got {list(prompt_index.shape)}"
            )
        self._check_rows(len(prompt_index), "UNet")
        if int(prompt_index.min()) < 0 or int(prompt_index.max()) >= len(bank):
            raise InputError(f"UNet: prompt_index reaches outside the bank of {len(bank)} prompts")
        given = latents.to(self.device), timestep, bank, prompt_index
        if kept is None:
            out = self._unet(*given)
        else:
            self._check_kept(kept, len(prompt_index))
            out = self._unet_kept(*given, kept)
            kept.rows = len(prompt_index)
        return self._guarded("unet", out, latents, f" at timestep {timestep}").to(latents.device)

    def decode(self, latents: Tensor) -> Tensor:
        self._check_latents(latents, "VAE decoder")
        images = self._decoder(latents.to(self.device) / self.geometry.scaling_factor)
        pixels, finite = self._pixels(self._guarded("vae_decoder", images, latents))
        if not finite:
            raise DiveError(
                "VAE decoder: the images are not finite; open the engine with the guard, load_engine(..., guard=True), "
                "which names the network, step and layer where that begins, or use precision fp32 or bf16"
            )
        return pixels.cpu()

    def encode(self, images: Tensor) -> Tensor:
        profile = self.spec.profile
        if images.dtype != torch.uint8 or images.shape[1:] != (profile.height, profile.width, 3):
            raise InputError(
                f"VAE encoder: images must be uint8 [B, {profile.height}, {profile.width}, 3], "
                f"got {images.dtype} {list(images.shape)}; resize them first"
            )
        self._check_rows(len(images), "VAE encoder")
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        mean = self._guarded("vae_encoder", self._encoder(pixels))
        return (mean * self.geometry.scaling_factor).to(images.device)

    def unsupported(self, request: Request) -> list[str]:
        reasons = _row_limits(request.rows, self.spec.profile) + self.geometry.misfits(request.height, request.width)
        profile = self.spec.profile
        for name, size, own in (("height", request.height, profile.height), ("width", request.width, profile.width)):
            if size != own:
                reasons.append(f"{name} {size} is not this engine's {own}")
        if request.depth:
            reasons += self._depth_reasons(request.depth)
        return reasons

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

    @property
    def depths(self) -> range:
        """The depths of `Kept` that this engine can; empty: it keeps no deep features."""
        depth = self.spec.reuse_depth
        return range(depth, depth + 1) if depth else range(0)

    def _depth_reasons(self, depth: int) -> list[str]:
        """Why deep features cannot be kept with `depth`, each with a remedy; empty when they can."""
        able = self.depths
        if depth in able:
            return []
        if not able:
            return [f"it keeps no deep features; export it with --reuse-depth {depth}, or plan without reuse"]
        return [f"deep features are kept with reuse_depth {able[0]} to {able[-1]}, not {depth}; plan with one of these"]

    def _check_kept(self, kept: Kept, rows: int) -> None:
        reasons = self._depth_reasons(kept.depth)
        if reasons:
            raise InputError(f"UNet: {reasons[0]}")
        if kept.deep is not None and kept.rows != rows:
            raise InputError(f"UNet: deep features of {kept.rows} rows are kept, the call has {rows}; drop them first")

    def by_prompts(self, prompts: Tensor) -> Sequence[Tensor]:
        """[P, ...] in as many rows as one call takes."""
        return torch.split(prompts, min(TEXT_ROWS, self.spec.profile.rows_max))

    def _guarded(self, network: str, answer: Tensor, given: Tensor | None = None, when: str = "") -> Tensor:
        """`answer` [rows, ...] as it is; with `guard`, `DiveError` when it, or what the caller `given`, is not finite."""
        bad = _rows_not_finite(answer) if self.guard else []
        if not bad:
            return answer
        if given is not None and _rows_not_finite(given):
            raise DiveError(f"{network}{when}: it was given latents that are not finite; look at what made them")
        numbers = f"{', '.join(map(str, bad[:4]))}{', ...' if len(bad) > 4 else ''}"
        remedy = self._first_bad_layer(network) or f"{self.spec.precision} may be too narrow, use fp32 or bf16"
        raise DiveError(f"{network}{when}: not finite in {len(bad)} of {len(answer)} rows ({numbers}); {remedy}")

    def _first_bad_layer(self, network: str) -> str | None:
        """Which layer of `network` was the first to go bad in its last call, in words with a remedy; None: not known."""
        return None

    def _pixels(self, images: Tensor) -> tuple[Tensor, bool]:
        """[B, 3, H, W] in about -1..1 as uint8 [B, H, W, 3], rounded as diffusers does; and whether all are finite."""
        pixels = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (pixels * 255).round().to(torch.uint8), bool(images.isfinite().all())

    def _text(self, token_ids: Tensor) -> Tensor:
        raise NotImplementedError

    def _unet(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor) -> Tensor:
        raise NotImplementedError

    def _unet_kept(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor, kept: Kept) -> Tensor:
        raise NotImplementedError

    def _decoder(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def _encoder(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


def by_row(latents: Tensor, bank: Tensor, prompt_index: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B, ...] and a bank [P, ...] as R rows each, for a UNet that wants both in full."""
    rows = torch.arange(len(prompt_index), device=latents.device) % len(latents)
    return latents.index_select(0, rows), bank.index_select(0, on_device(prompt_index, bank.device))


def on_device(index: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host's on `device`, without waiting: CUDA has read pageable memory when the call returns."""
    return index.to(device, non_blocking=device.type == "cuda")


def _rows_not_finite(tensor: Tensor) -> list[int]:
    finite = tensor.isfinite().flatten(1).all(1)
    return torch.nonzero(~finite).flatten().tolist()


def _row_limits(rows: int, profile: Profile) -> list[str]:
    if rows < profile.rows_min:
        return [f"rows {rows} < rows_min {profile.rows_min}"]
    return [f"rows {rows} > rows_max {profile.rows_max}"] if rows > profile.rows_max else []
