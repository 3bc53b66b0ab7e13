"""The settings of `dive-fast world train-base` and `train-tagger`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dive_fast.settings import Fraction, NonNegativeFloat, NonNegativeInt, Part, PositiveInt, Settings
from dive_fast.train.config import Precision
from dive_fast.types import InputError


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
class FitConfig(Settings):
    """Training of one network."""

    steps: NonNegativeInt
    """Training steps; 0 keeps what was there."""
    batch: PositiveInt
    """Images or captions per step."""
    lr: NonNegativeFloat
    """Peak learning rate."""
    warmup: NonNegativeInt
    """Steps of linear learning-rate warm-up."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, batches and noise."""
    save_every: PositiveInt = 200
    """Steps between saved states, from which a rerun resumes."""
    precision: Precision = "no"
    """Precision of the arithmetic; trained weights stay float32."""


@dataclass(frozen=True)
class VaeConfig(FitConfig):
    """Training of the autoencoder's decoder."""

    steps: PositiveInt = 6000
    """Training steps."""
    batch: PositiveInt = 32
    lr: NonNegativeFloat = 1.5e-3
    warmup: NonNegativeInt = 100
    chroma: float = 1.0
    """Weight of colour differences, which a plain loss learns last."""


@dataclass(frozen=True)
class UnetConfig(FitConfig):
    """Training of the UNet by v-prediction; at batches of 16, a rate of 7e-4 is better."""

    steps: PositiveInt = 12000
    """Training steps."""
    batch: PositiveInt = 256
    lr: NonNegativeFloat = 1e-3
    warmup: NonNegativeInt = 500
    compile: bool = False
    """Compile the UNet with torch.compile: a minute once, then faster steps."""
    empty_captions: Fraction = 0.1
    """Fraction of empty captions, for classifier-free guidance (arXiv 2207.12598)."""


@dataclass(frozen=True)
class TaggerConfig(FitConfig):
    """Training of the tagger."""

    steps: PositiveInt = 2600
    """Training steps."""
    batch: PositiveInt = 64
    lr: NonNegativeFloat = 3e-3
    warmup: NonNegativeInt = 100
    save_every: PositiveInt = 100
    images: PositiveInt = 48000
    """Number of rendered photos."""


@dataclass(frozen=True)
class BaseTrainConfig(Settings):
    """Everything that the pocket base depends on."""

    shape: BaseShape = BaseShape()
    vae: Annotated[VaeConfig, Part("vae", only=("steps", "batch"))] = VaeConfig()
    text: Annotated[FitConfig, Part("text", only=("steps", "batch", "lr"))] = FitConfig(
        4000, 256, 1.5e-3, 200, save_every=250
    )
    unet: Annotated[UnetConfig, Part("unet", only=("steps", "batch", "lr", "precision", "compile"))] = UnetConfig()
    vae_images: PositiveInt = 20000
    """Number of rendered images for the autoencoder."""
    unet_images: PositiveInt = 100000
    """Number of rendered images for text encoder and UNet."""
    monochrome: Fraction = 0.5
    """Fraction of monochrome photos among the UNet's images: every reflectance is random, which shows nothing of infrared,
    and captions name how bright it is; Stable Diffusion has seen millions of such photos."""
    init_from: str | None = None
    """Base model whose text encoder and UNet continue training on photos of other identities, with the autoencoder frozen;
    pocket is the shipped one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text.steps == 0 and self.init_from is None:
            raise InputError(
                "--text-steps 0 keeps the text encoder of --init-from, and there is none; train some steps"
            )
