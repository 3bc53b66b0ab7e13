"""Published recipes by name, as the one record that a training takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dive_fast.reid.data.augment import AugmentConfig
from dive_fast.reid.models.model import ModelConfig
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import InputError

RecipeName = Literal["pocket", "agw", "caj"]
_NESTED = ("model", "augment", "validation")


def recipe(name: str, **overrides: Any) -> ReidConfig:
    """The recipe's config, single settings replaced.

    - "pocket": `ReidConfig()`, for the pocket world on a CPU.
    - "agw" (Ye et al., arXiv:2001.04193): ResNet-50 with non-local blocks and GeM at 288x144, 8 x (4 + 4) images a batch,
      SGD at 0.1 (backbone 0.01) with ten epochs of warm-up and drops at epochs 20 and 50 of 60, weight decay 5e-4 on
      everything, cross entropy and the weighted triplet; images padded by 10 black pixels, cropped and mirrored.
    - "caj" (Ye et al., ICCV 2021): the same for 100 epochs with a channel-exchanged second view of every visible image,
      erased boxes of channels of their own, and the enhanced squared-difference triplet.

    What differs from the authors' code: the sampler sees every identity once a pass and repeats no image in a batch while
    there are others; channels are exchanged in pixels, before normalisation, and those of infrared images, which are alike,
    not at all; that code runs 81 epochs of agw. Both start from ImageNet's weights (`weights`); from
    random ones SGD at 0.1 is too fast: lower `lr`, set `clip`, or take adam at 2e-3.

    An override is a field of `ReidConfig`, or of its model, augment or validation by that field's own name; `steps` takes
    the place of `epochs` and the other way round. Raises `InputError` for an unknown recipe or setting.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return override(RECIPES[name](), overrides)


def override(config: ReidConfig, changes: dict[str, Any]) -> ReidConfig:
    """`config` with settings replaced, see `recipe`."""
    own = {f.name for f in fields(config)} - set(_NESTED)
    owner = {f.name: part for part in _NESTED for f in fields(getattr(config, part))}
    unknown = sorted(set(changes) - own - set(owner))
    if unknown:
        close = difflib.get_close_matches(unknown[0], [*own, *owner], n=1)
        raise InputError(
            f"a recipe has no setting {', '.join(unknown)}" + (f"; did you mean {close[0]}?" if close else "")
        )
    for name, value in changes.items():
        hint = get_type_hints(ReidConfig if name in own else type(getattr(config, owner[name])))[name]
        if not _fits(value, hint):
            raise InputError(f"setting {name} must be {_words(hint)}, got {value!r}")
    top = {name: value for name, value in changes.items() if name in own}
    for length, other in (("steps", "epochs"), ("epochs", "steps")):
        if top.get(length) is not None:
            top.setdefault(other, None)
    for share, other in (("synthetic_share", "synthetic_schedule"), ("synthetic_schedule", "synthetic_share")):
        if top.get(share) is not None:
            top.setdefault(other, None)
    for part in _NESTED:
        inner = {name: value for name, value in changes.items() if owner.get(name) == part and name not in own}
        if inner:
            top[part] = replace(getattr(config, part), **inner)
    return replace(config, **top)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, perhaps from a command line, has a field's type."""
    options = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if get_origin(hint) is Literal:
        return value in options
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = options[:1] * len(value) if options[-1] is Ellipsis else options
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    """A field's type as a message says it."""
    return getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint).replace("typing.", "")


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
