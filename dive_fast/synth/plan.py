"""Plans a run: the identity, cameras, noise and photo of every pair, before anything is made."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from dive_fast.data.names import abbreviate, natural_key
from dive_fast.data.sysu import camera_modality
from dive_fast.io import brief, canonical_json, nearest, sha256_bytes
from dive_fast.json_files import read_json
from dive_fast.sampling.config import STRENGTH, Sampling
from dive_fast.synth.layout import check_names
from dive_fast.synth.planfile import (
    IdentityPlan,
    ImageFormat,
    RgbSide,
    SynthesisPlan,
    load_plan,
    plan_hash,
    save_plan,
)
from dive_fast.synth.records import checked
from dive_fast.types import PAIR_MODES, Camera, InputError, Modality, PairMode, Sample, shown

__all__ = ["Override", "SynthesisPlan", "load_plan", "make_plan", "read_overrides", "save_plan"]


@dataclass(frozen=True)
class Override:
    """Settings of one identity that replace those of all; None keeps them."""

    pairs: int | None = None
    ir: tuple[str, ...] | None = None
    rgb: tuple[str, ...] | None = None


def make_plan(
    *,
    mode: PairMode,
    pids: Sequence[str],
    cameras: Sequence[Camera],
    ir: Sequence[str],
    rgb: Sequence[str] = (),
    pairs_per_identity: int,
    seed: int,
    sampling: Sampling,
    height: int,
    width: int,
    model_fingerprint: str,
    photos: Sequence[Sample] | None = None,
    photo_root: Path | str | None = None,
    strength: float = STRENGTH,
    precision: str | None = None,
    shard_size: int = 64,
    image_format: ImageFormat = "png",
    overrides: Mapping[str, Override] | None = None,
    virtual: Collection[str] = (),
) -> SynthesisPlan:
    """Plans `pairs_per_identity` pairs per identity AND infrared camera: 18 with two cameras are 36 pairs each.

    "synthetic": both sides are generated, the k-th pairs of an identity with the k-th of the `rgb` cameras, cycling.
    "real-rgb" and "photo-guided": the RGB side is a photo of `photos` (its real RGB samples; only those of the cameras
    `rgb` if given): the k-th of the identity, in an order drawn from `seed`, cycling when there are too few. The k-th
    RGB side meets every infrared camera. `cameras` are the model's. A pair's index counts within its identity, so no
    two pairs share noise. `precision` is what the engine must have, by default any. `overrides` gives single identities
    other numbers of pairs (0: none) or other cameras. `virtual` are those of the identities who are nobody.
    Raises `InputError` for unknown cameras, identities without photos, photos outside `photo_root`, and bad numbers.
    """
    if mode not in PAIR_MODES:
        raise InputError(f"plan: mode must be one of {PAIR_MODES}, got {mode!r}")
    everyone = sorted(set(pids), key=natural_key)
    own = overrides or {}
    unknown = sorted(set(own) - set(everyone), key=natural_key)
    if unknown:
        raise InputError(
            f"plan: overrides name identities that are not in the plan: {brief(abbreviate(unknown), 80)}; leave them out"
        )
    if mode != "synthetic":
        if photo_root is None:
            raise InputError(f"plan: mode {mode!r} needs photos and the folder that they lie in (photo_root)")
        root = Path(os.path.abspath(photo_root))  # links inside the photo folder stay as they are
        pictures = _photos_of(everyone, photos or (), root, seed)
    identities = []
    for pid in everyone:
        change = own.get(pid, Override())
        pairs = pairs_per_identity if change.pairs is None else change.pairs
        if pairs == 0:
            continue
        infrared = tuple(ir if change.ir is None else change.ir)
        visible = tuple(rgb if change.rgb is None else change.rgb)
        _check_cameras(infrared, "ir", cameras)
        sides: tuple[RgbSide, ...]
        if mode == "synthetic":
            _check_cameras(visible, "rgb", cameras)
            sides = tuple((camera, None) for camera in visible)
        else:
            sides = tuple(side for side in pictures[pid] if not visible or side[0] in visible)
        identities.append(IdentityPlan(pid, pairs, infrared, sides, pid in virtual))
    _need_photos(identities, rgb)
    plan = SynthesisPlan(
        plan_id="",
        mode=mode,
        model_fingerprint=model_fingerprint,
        seed=seed,
        sampling=sampling,
        precision=precision,
        strength=float(strength) if mode == "photo-guided" else None,
        height=height,
        width=width,
        photo_root=None if mode == "synthetic" else str(root),
        image_format=image_format,
        shard_size=shard_size,
        identities=tuple(identities),
    )
    check_names(plan)
    _warn_of_modalities(plan)
    return replace(plan, plan_id=plan_hash(plan))


def read_overrides(path: Path | str) -> dict[str, Override]:
    """Reads a JSON file {"0001": {"pairs": 36, "ir": ["cam3"], "rgb": ["cam1"]}, ...}; anything else raises `InputError`."""
    data = read_json(path, "overrides")
    if not isinstance(data, dict):
        raise InputError(f"overrides {path}: expected a JSON object of identities, got {type(data).__name__}")
    return {
        normalize("NFC", pid): checked(Override, entry, f"overrides {path}: identity {brief(pid, 80)}")
        for pid, entry in data.items()
    }


def _warn_of_modalities(plan: SynthesisPlan) -> None:
    """Warns of cameras whose modality readers of a SYSU tree get wrong: they know only the camera's name."""
    used = {(camera, "rgb") for identity in plan.identities for camera, _ in identity.rgb}
    used |= {(camera, "ir") for identity in plan.identities for camera in identity.ir}
    misread = sorted(camera for camera, modality in used if camera_modality(camera) != modality)
    if misread:
        warnings.warn(
            f"plan: SYSU readers take cam3 and cam6, and no others, as infrared and so misread {', '.join(misread)}; "
            "read this dataset by its manifest",
            stacklevel=3,
        )


def _photos_of(identities: Sequence[str], photos: Sequence[Sample], root: Path, seed: int) -> dict[str, list[RgbSide]]:
    """Every identity's photos in an order that depends on `seed` and each photo's own name only."""
    sides: dict[str, list[RgbSide]] = {pid: [] for pid in identities}
    for sample in photos:
        if sample.source == "real" and sample.modality == "rgb" and sample.pid in sides:
            sides[sample.pid].append((sample.camera, _relative(sample.path, root)))
    for listed in sides.values():
        listed.sort(key=lambda side: sha256_bytes(canonical_json([seed, side[1]]).encode()))
    return sides


def _need_photos(identities: Sequence[IdentityPlan], rgb: Sequence[str]) -> None:
    without = [identity.pid for identity in identities if not identity.rgb]
    if without:
        raise InputError(
            f"plan: {len(without):,} of {len(identities):,} identities have no real RGB photo"
            f"{' of ' + ', '.join(rgb) if rgb else ''} ({abbreviate(without)}); leave them out or add their photos"
        )


def _relative(path: Path, root: Path) -> str:
    try:
        return Path(os.path.abspath(path)).relative_to(root).as_posix()
    except ValueError as error:
        raise InputError(f"plan: photo {path} is not in photo_root {root}; give the folder that holds all") from error


def _check_cameras(names: Sequence[str], modality: Modality, cameras: Sequence[Camera]) -> None:
    known = {camera.name: camera.modality for camera in cameras}
    if not names or len(set(names)) != len(names):
        raise InputError(f"plan: name at least one {modality} camera, each once, got {list(names)}")
    for name in names:
        if name not in known:
            raise InputError(
                f"plan: the model knows {len(known)} cameras, {shown(name)} is not one{nearest(name, known)}"
            )
        if known[name] != modality:
            raise InputError(
                f"plan: camera {shown(name)} is an {known[name]} camera and cannot give the {modality} side"
            )
