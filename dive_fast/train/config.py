"""The settings of `dive-fast personalize`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dive_fast.models.phrase import ONE_WORD
from dive_fast.types import check_ranges

Precision = Literal["no", "bf16", "fp16"]
Weighting = Literal["debiased", "min-snr", "plain"]


@dataclass(frozen=True)
class Compute:
    """How a training step is computed. `accumulate` and `checkpointing` change results by rounding at most."""

    mixed_precision: Precision = "no"
    """Precision of everything that is not trained; trained weights stay float32, and fp16 requires a GPU."""
    accumulate: int = 1
    """Number of parts that a batch is split into to save memory."""
    checkpointing: bool = False
    """Recompute the UNet's activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        check_ranges(self, "personalize", accumulate=(1, None))


@dataclass(frozen=True)
class Prior:
    """Prior preservation by class photos, as in DreamBooth (arXiv 2208.12242)."""

    prior_weight: float = 0.0
    """Weight of class photos (photos of people in general) in the LoRA's loss; DreamBooth uses 1, 0 uses none."""
    prior_prompt: str = "a photo of a person"
    """Caption of the class photos."""
    prior_count: int = 200
    """Number of class photos that the base model generates when none are given."""

    def __post_init__(self) -> None:
        check_ranges(self, "personalize", prior_weight=(0, None), prior_count=(1, None))


@dataclass(frozen=True)
class Samples:
    """How images are sampled during training, and how often a sheet of them is written."""

    sheet_every: int = 0
    """Steps between sheets of sampled images, written as PNG files beside the loss log; 0 writes none."""
    sheet_people: int = 4
    """Number of identities on a sheet, each in every camera."""
    sample_steps: int = 20
    """Denoising steps of images that are sampled during training."""
    sample_guidance: float = 2.0
    """Guidance scale of images that are sampled during training; Stable Diffusion 1.5 uses 7.5."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "personalize",
            sheet_every=(0, None),
            sheet_people=(1, None),
            sample_steps=(1, None),
            sample_guidance=(0, None),
        )


@dataclass(frozen=True)
class PersonalizeConfig:
    """How identities and the LoRA are learned. The defaults suit the pocket model.

    A run that starts from an adapter takes its phrase and template, and ignores `phrase` and `template`.
    """

    identity_steps: int = 4000
    """Steps that train identities alone and then freeze them, before the LoRA; 0 trains both at once, as DiVE."""
    steps: int = 1500
    """Training steps of the LoRA, or of everything if --identity-steps is 0."""
    batch: int = 32
    """Photos per step."""
    rank: int = 8
    """Rank of the LoRA; DiVE uses 128 on Stable Diffusion 1.5."""
    phrase: str = ONE_WORD
    """Text of an identity: {person} learns a vector that starts from that word (alone: as DiVE), {red|green|blue} learns a
    mix of these words, and pocket is the phrase of the shipped adapter."""
    words_from: str | None = None
    """Tagger folder (from dive-fast world train-tagger) that predicts the start of mixed words from photos; pocket is the
    shipped one, and without a tagger all words of a mix start equal."""
    template: str | None = None
    """Caption of every photo, with {cam} and {token}; without it twenty sentences are used, as DiVE."""
    phrase_drop: float = 0.0
    """Fraction of a phrase's parts (between commas) that a caption leaves out."""
    text_noise: float = 0.0
    """Noise on text embeddings in LoRA training, in units of their standard deviation, for a LoRA that generalises from few
    identities."""
    lora_lr: float = 2e-3
    """Peak learning rate of the LoRA; DiVE uses 5e-5 on Stable Diffusion 1.5."""
    token_lr: float = 3e-3
    """Peak learning rate of learned vectors; DiVE uses 5e-5 on Stable Diffusion 1.5."""
    mix_lr: float = 0.07
    """Peak learning rate of the weights of mixed words."""
    warmup: int = 50
    """Steps of linear learning-rate warm-up."""
    ir_share: float = 0.5
    """Fraction of infrared photos in a batch, where there are any."""
    noisy_share: float = 0.75
    """Fraction of timesteps drawn from the noisier half, which decides garments; DiVE uses 0.5."""
    identity_noisy_share: float = 0.4
    """The same fraction in steps that train identities alone; the less noisy half separates words better."""
    identities_from_ir: bool = False
    """Train identities on infrared photos too where RGB photos exist, as DiVE does."""
    bare_code: float = 0.1
    """Fraction of captions that are the camera's code alone; DiVE uses 0.5."""
    empty_captions: float = 0.05
    """Fraction of empty captions, which train the unconditional prediction of guidance."""
    weight_cap: float = 8.0
    """Largest loss weight of a timestep with --weighting debiased."""
    weight_decay: float = 0.01
    """Weight decay of the LoRA; identities have none, as decay would pull all of them to one vector."""
    average: float = 0.995
    """Decay of the moving average of the trained weights, which the adapter stores; 0 stores the last weights."""
    weighting: Weighting = "debiased"
    """Loss weight of a timestep: 1 / sqrt(SNR), min-SNR-gamma (arXiv 2303.09556), or plain (all equal, as DiVE)."""
    snr_gamma: float = 5.0
    """Gamma of --weighting min-snr."""
    seed: int = 0
    """Seed of all random draws."""
    save_every: int = 100
    """Steps between saved states, from which a rerun resumes."""
    tensorboard: bool = False
    """Also log for TensorBoard, in OUT.training/tensorboard."""
    compute: Compute = field(default_factory=Compute)
    prior: Prior = field(default_factory=Prior)
    samples: Samples = field(default_factory=Samples)

    def __post_init__(self) -> None:
        fractions = ("phrase_drop", "ir_share", "bare_code", "empty_captions")
        at_least_0 = (
            "identity_steps",
            "text_noise",
            "lora_lr",
            "token_lr",
            "mix_lr",
            "warmup",
            "weight_cap",
            "weight_decay",
        )
        check_ranges(
            self,
            "personalize",
            **dict.fromkeys(fractions, (0, 1)),
            **dict.fromkeys((*at_least_0, "weight_decay", "seed"), (0, None)),
            **dict.fromkeys(("steps", "batch", "rank", "save_every"), (1, None)),
            **dict.fromkeys(("noisy_share", "identity_noisy_share"), (0.05, 0.95)),
            average=(0, 0.99999),
            snr_gamma=(0.01, None),
        )
