"""The settings of every training, and those of `dive-fast personalize`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dive_fast.models.phrase import ONE_WORD
from dive_fast.sampling.config import DenoisingSteps
from dive_fast.settings import (
    AtLeast,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Settings,
    Within,
)

Precision = Literal["no", "bf16", "fp16"]
Scheduler = Literal["cosine", "constant"]
Weighting = Literal["debiased", "min-snr", "plain"]
NoisyFraction = Annotated[float, Within(0.05, 0.95)]


@dataclass(frozen=True)
class Compute(Settings):
    """How a training step is computed. `accumulate` and `checkpointing` change results by rounding at most."""

    mixed_precision: Precision = "no"
    """Precision of everything that is not trained; trained weights stay float32, and fp16 requires a GPU."""
    accumulate: PositiveInt = 1
    """Number of parts that a batch is split into to save memory."""
    checkpointing: bool = False
    """Recompute the UNet's activations in the backward pass: less memory, more time."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """What the settings of every training have."""

    steps: PositiveInt = 1500
    """Training steps."""
    batch: PositiveInt = 16
    """Examples per training step."""
    warmup: NonNegativeInt = 50
    """Steps of linear learning-rate warm-up."""
    lr_scheduler: Scheduler = "cosine"
    """Learning rate after the warm-up: along half a cosine to a hundredth of the peak, or constant at the peak."""
    average: Annotated[float, Within(0, 0.99999)] = 0.99
    """Decay of the moving average of the trained weights, which the result has; 0 takes the last weights."""
    seed: NonNegativeInt = 0
    """Seed of all random draws."""
    save_every: PositiveInt = 100
    """Steps between saved states, from which a rerun resumes."""
    tensorboard: bool = False
    """Also log for TensorBoard, in OUT.training/tensorboard."""
    compute: Compute = Compute()
    """How a step is computed."""


@dataclass(frozen=True)
class Prior(Settings):
    """Prior preservation by class photos, as in DreamBooth (arXiv 2208.12242)."""

    prior_weight: NonNegativeFloat = 0.0
    """Weight of class photos (photos of people in general) in the LoRA's loss; DreamBooth uses 1, 0 uses none."""
    prior_prompt: str = "a photo of a person"
    """Caption of the class photos."""
    prior_count: PositiveInt = 200
    """Number of class photos that the base model generates when none are given."""


@dataclass(frozen=True)
class Samples(Settings):
    """How images are sampled during training, and how often a sheet of them is written."""

    sheet_every: NonNegativeInt = 0
    """Steps between sheets of sampled images, written as PNG files beside the loss log; 0 writes none."""
    sheet_people: PositiveInt = 4
    """Number of identities on a sheet, each in every camera."""
    sample_steps: DenoisingSteps = 20
    """Denoising steps of images that are sampled during training."""
    sample_guidance: NonNegativeFloat = 2.0
    """Guidance scale of images that are sampled during training."""


@dataclass(frozen=True)
class PersonalizeConfig(TrainConfig):
    """How identities and the LoRA are learned. The defaults suit the pocket model; `recipes` has those of others.

    A run that starts from an adapter takes its phrase, template, cameras and tones, not those given here.
    """

    identity_steps: NonNegativeInt = 4000
    """Steps that train identities alone and then freeze them, before the LoRA; 0 trains both at once, as DiVE."""
    steps: NonNegativeInt = 1500
    """Training steps of the LoRA, or of everything if --identity-steps is 0."""
    batch: PositiveInt = 32
    """Photos per step."""
    rank: PositiveInt = 8
    """Rank of the LoRA."""
    lora_scale: Annotated[float, Within(0.05, 1)] = 1.0
    """Strength of the finished LoRA, of that with which it was trained: below 1 it keeps more of the base, which can hold
    better for people whose infrared it has not seen (arXiv 2109.01903)."""
    phrase: str = ONE_WORD
    """Text of an identity: {person} learns a vector that starts from that word (alone: as DiVE), {red|green|blue} learns a
    mix of these words, and pocket is the phrase of the shipped adapter."""
    words_from: str | None = None
    """Tagger folder (from dive-fast world train-tagger) that predicts the start of mixed words from photos; pocket is the
    shipped one, and without a tagger all words of a mix start equal."""
    template: str | None = None
    """Caption of every photo, with {cam} and {token}; without it twenty sentences are used, as DiVE."""
    ir_words: str = ""
    """Words after the code of each infrared camera, by which the base knows photos without colour, as monochrome."""
    ir_tones: str = ""
    """Words by which the base knows how bright a thing is, from dark to bright, as black|gray|white: infrared prompts have
    one before each learned word marked in the phrase, as {~red|green|blue}, and which one is learned as a function of the
    person's words. pocket takes those of the pocket model, whose phrase has marks."""
    phrase_drop: Fraction = 0.0
    """Fraction of a phrase's parts (between commas) that a caption leaves out."""
    text_noise: NonNegativeFloat = 0.0
    """Noise on text embeddings in LoRA training, in units of their standard deviation, for a LoRA that generalises from few
    identities."""
    lora_lr: NonNegativeFloat = 2e-3
    """Peak learning rate of the LoRA."""
    token_lr: NonNegativeFloat = 3e-3
    """Peak learning rate of learned vectors."""
    mix_lr: NonNegativeFloat = 0.07
    """Peak learning rate of the weights of mixed words."""
    tone_lr: NonNegativeFloat = 3e-3
    """Peak learning rate of tones."""
    ir_fraction: Fraction | None = 0.5
    """Fraction of infrared photos in a batch, where there are any; recipe dive: as many as the photos have."""
    noisy_fraction: NoisyFraction = 0.75
    """Fraction of timesteps drawn from the noisier half, which decides garments."""
    identity_noisy_fraction: NoisyFraction = 0.4
    """The same fraction in steps that train identities alone; the less noisy half separates words better."""
    identities_from_ir: bool = False
    """Train identities on infrared photos too where RGB photos exist, as DiVE does."""
    bare_code: Fraction = 0.1
    """Fraction of captions that are the camera's code alone."""
    empty_captions: Fraction = 0.05
    """Fraction of empty captions, which train the unconditional prediction of guidance."""
    weight_cap: NonNegativeFloat = 8.0
    """Largest loss weight of a timestep with --weighting debiased."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of the LoRA; identities have none, as decay would pull all of them to one vector."""
    average: Annotated[float, Within(0, 0.99999)] = 0.995
    weighting: Weighting = "debiased"
    """Loss weight of a timestep: 1 / sqrt(SNR), min-SNR-gamma (arXiv 2303.09556), or plain (all equal, as DiVE)."""
    snr_gamma: Annotated[float, AtLeast(0.01)] = 5.0
    """Gamma of --weighting min-snr."""
    prior: Prior = Prior()
    """Prior preservation."""
    samples: Samples = Samples()
    """Images sampled during training."""
