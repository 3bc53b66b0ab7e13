"""Published recipes by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from dive_fast.io import nearest
from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import InputError, shown

_NESTED = ("model", "augment", "validation")
_EXCLUSIVE = (("steps", "epochs"), ("synthetic_fraction", "synthetic_schedule"))  # giving one unsets the other


def recipe(name: str, **overrides: Any) -> ReidConfig:
    """Returns the recipe's config with single settings replaced.

    - "pocket": `ReidConfig()`, for the pocket world on a CPU.
    - "agw" (Ye et al., arXiv:2001.04193): ResNet-50 with non-local blocks and GeM at 288x144, 8 x (4 + 4) images a batch,
      SGD at 0.1 (backbone 0.01) with ten epochs of warm-up and drops at epochs 20 and 50 of 60, weight decay 5e-4 on
      everything, cross entropy and the weighted triplet; images padded by 10 black pixels, cropped and mirrored.
    - "caj" (Ye et al., ICCV 2021): the same for 100 epochs with a channel-exchanged second view of every visible image,
      erased boxes with a value for each channel, and the enhanced squared-difference triplet.

    Differences from the authors' code: the sampler sees every identity once a pass and repeats no image in a batch while
    others are left; channels are exchanged in pixels, before normalisation, and never those of infrared images, which are
    alike; their agw runs 81 epochs. Both recipes start from ImageNet's weights (`weights`). SGD at 0.1 diverges from random
    weights: lower `lr`, set `clip`, or take adam at 2e-3.

    An override is a field of `ReidConfig`, or of its model, augment or validation by that field's name; `steps` unsets
    `epochs` and the reverse. Raises `InputError` for an unknown recipe or setting.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {shown(name)}; choose one of {', '.join(RECIPES)}")
    return override(RECIPES[name](), overrides)


def override(config: ReidConfig, changes: dict[str, Any]) -> ReidConfig:
    """Returns `config` with settings replaced, see `recipe`."""
    own = {f.name for f in fields(config)} - set(_NESTED)
    owner = {f.name: part for part in _NESTED for f in fields(getattr(config, part)) if f.name not in own}
    for name in changes:
        if name not in own and name not in owner:
            raise InputError(f"unknown setting {shown(name)}{nearest(name, [*own, *owner])}")
    top = {name: value for name, value in changes.items() if name in own}
    for pair in _EXCLUSIVE:
        for given, other in (pair, pair[::-1]):
            if top.get(given) is not None:
                top.setdefault(other, None)
    for part in _NESTED:
        inner = {name: value for name, value in changes.items() if owner.get(name) == part}
        if inner:
            top[part] = replace(getattr(config, part), **inner)
    return replace(config, **top)


def _agw() -> ReidConfig:
    return ReidConfig(
        model=ModelConfig("resnet50", height=288, width=144, pooling="gem", stripes=1, nonlocal_blocks=True),
        augment=AugmentConfig(crop=10, fill="black", erase=0, exchange=0, brightness=0),
        identities=8,
        per_modality=4,
        steps=None,
        epochs=60,
        optimizer="sgd",
        lr=0.1,
        backbone_lr=0.1,
        weight_decay=5e-4,
        decay_all=True,
        gem_learns=False,
        schedule="epochs",
        warmup_epochs=10,
        drop_epochs=(20, 50),
        triplet="weighted",
        smoothing=0.0,
    )


def _caj() -> ReidConfig:
    agw = _agw()
    return replace(
        agw,
        augment=replace(agw.augment, erase=0.5, erase_most=0.4, erase_fill="channels"),
        epochs=100,
        exchange_view=True,
        triplet="squared",
    )


RECIPES: dict[str, Callable[[], ReidConfig]] = {"pocket": ReidConfig, "agw": _agw, "caj": _caj}
