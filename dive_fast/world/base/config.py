"""The settings of `dive-fast world train-base` and `train-tagger`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

from dive_fast.types import check_ranges


@dataclass(frozen=True)
class BaseShape:
    """Sizes of the three networks; the defaults are the shipped model's."""

    latent_channels: int = 16
    """Channels of the latents."""
    vae_channels: tuple[int, ...] = (16, 32, 64, 96)
    """Channels of the autoencoder's levels."""
    unet_channels: tuple[int, ...] = (96, 128, 144)
    """Channels of the UNet's levels."""
    text_width: int = 128
    """Width of the text encoder."""
    text_layers: int = 2
    """Layers of the text encoder."""
    heads: int = 4
    """Attention heads of text encoder and UNet."""
    tokens: int = 77
    """Tokens of a prompt, as CLIP."""

    @property
    def factor(self) -> int:
        return 2 ** (len(self.vae_channels) - 1)


@dataclass(frozen=True)
class FitConfig:
    """Training of one network."""

    steps: int
    """Training steps."""
    batch: int
    """Images or captions per step."""
    lr: float
    """Peak learning rate."""
    warmup: int
    """Steps of linear learning-rate warm-up."""
    seed: int = 0
    """Seed of initial weights, batches and noise."""
    save_every: int = 200
    """Steps between saved states, from which a rerun resumes."""

    def __post_init__(self) -> None:
        at_least_0 = dict.fromkeys(("lr", "warmup", "seed"), (0, None))
        check_ranges(self, "training", **dict.fromkeys(("steps", "batch", "save_every"), (1, None)), **at_least_0)


@dataclass(frozen=True)
class VaeConfig(FitConfig):
    """Training of the autoencoder's decoder."""

    steps: int = 6000
    batch: int = 32
    lr: float = 1.5e-3
    warmup: int = 100
    chroma: float = 1.0
    """Weight of colour differences, which a plain loss learns last."""


@dataclass(frozen=True)
class TextConfig(FitConfig):
    """Training of the text encoder on captions alone."""

    steps: int = 4000
    batch: int = 256
    lr: float = 1.5e-3
    warmup: int = 200
    save_every: int = 250


@dataclass(frozen=True)
class UnetConfig(FitConfig):
    """Training of the UNet by v-prediction; at batches of 16, a rate of 7e-4 is better."""

    steps: int = 12000
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 500
    empty_captions: float = 0.1
    """Fraction of empty captions, for classifier-free guidance (arXiv 2207.12598)."""


@dataclass(frozen=True)
class TaggerConfig(FitConfig):
    """Training of the tagger."""

    steps: int = 2600
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    save_every: int = 100
    images: int = 48000
    """Number of rendered photos."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "train-tagger", images=(1, None))


@dataclass(frozen=True)
class BaseTrainConfig:
    """Everything that the pocket base depends on."""

    shape: BaseShape = field(default_factory=BaseShape)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    vae_images: int = 20000
    """Number of rendered images for the autoencoder."""
    unet_images: int = 100000
    """Number of rendered images for text encoder and UNet."""
    unet_grey: float = 0.35
    """Fraction of grey photos among the UNet's images: luma through a tone curve, which shows nothing of infrared; Stable
    Diffusion has seen millions of them."""
    start: str | None = None
    """Base model whose UNet continues training on photos of other identities, with autoencoder and text encoder frozen;
    pocket is the shipped one."""

    def __post_init__(self) -> None:
        check_ranges(self, "train-base", vae_images=(1, None), unet_images=(1, None), unet_grey=(0, 1))
