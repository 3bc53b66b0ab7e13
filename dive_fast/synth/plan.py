"""Planning a run: which person, by which cameras, from which noise and which photo, fixed before anything is made."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dive_fast.data.names import natural_key, some
from dive_fast.data.sysu import camera_modality
from dive_fast.io import canonical_json, nearest, sha256_bytes
from dive_fast.synth.layout import pair_files
from dive_fast.synth.planfile import SynthesisPlan, check_plan, load_plan, plan_hash, save_plan
from dive_fast.types import PAIR_MODES, Camera, InputError, Modality, PairMode, PairSpec, Sample

__all__ = ["SynthesisPlan", "load_plan", "make_plan", "pair_seed", "save_plan"]


def pair_seed(seed: int, pid: str, index: int) -> int:
    """A pair's own 63-bit seed, from the run's seed, the identity and the pair's index only."""
    digest = hashlib.sha256(canonical_json([seed, pid, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_plan(
    *,
    mode: PairMode,
    pids: Sequence[str],
    cameras: Sequence[Camera],
    ir: Sequence[str],
    rgb: Sequence[str] = (),
    pairs_per_identity: int,
    seed: int,
    steps: int,
    guidance: float,
    height: int,
    width: int,
    model_fingerprint: str,
    photos: Sequence[Sample] | None = None,
    photo_root: Path | str | None = None,
    strength: float = 0.6,
    shard_size: int = 64,
) -> SynthesisPlan:
    """Plans `pairs_per_identity` pairs per identity AND infrared camera: 18 with two cameras are 36 pairs a person.

    "synthetic": both sides are generated, the k-th pairs of an identity with the k-th of the `rgb` cameras, cycling.
    "real-rgb" and "photo-guided": the RGB side is a photo of `photos` (its real RGB samples; only those of the cameras
    `rgb` if given): the k-th of the identity, in an order drawn from `seed`, cycling when there are too few. The k-th
    RGB side meets every infrared camera. `cameras` are the model's. A pair's index counts within its identity, so no
    two pairs share noise.
    Raises `InputError` for unknown cameras, identities without photos, photos outside `photo_root`, and bad numbers.
    """
    if mode not in PAIR_MODES:
        raise InputError(f"plan: mode must be one of {PAIR_MODES}, got {mode!r}")
    people = sorted(set(pids), key=natural_key)
    _check_cameras(ir, "ir", cameras)
    if mode == "synthetic":
        _check_cameras(rgb, "rgb", cameras)
        root = None
        sides = {pid: [_RgbSide(camera, None) for camera in rgb] for pid in people}
    else:
        root = _photo_root(photo_root, mode)
        sides = _photo_sides(people, rgb, photos or (), root, seed)
    plan = SynthesisPlan(
        plan_id="",
        mode=mode,
        model_fingerprint=model_fingerprint,
        seed=seed,
        steps=steps,
        guidance=float(guidance),
        strength=float(strength) if mode == "photo-guided" else None,
        height=height,
        width=width,
        photo_root=None if root is None else str(root),
        shard_size=shard_size,
        pairs=tuple(pair for pid in people for pair in _pairs(pid, sides[pid], ir, pairs_per_identity, seed)),
    )
    check_plan(plan, "plan")
    _warn_of_modalities(plan)
    pair_files(plan)  # raises for names that the dataset's tree cannot hold
    return replace(plan, plan_id=plan_hash(plan))


@dataclass(frozen=True)
class _RgbSide:
    """An RGB camera and, unless the side is to be generated, its photo relative to the photo root."""

    camera: str
    photo: str | None


def _pairs(
    pid: str, sides: Sequence[_RgbSide], ir: Sequence[str], pairs_per_identity: int, seed: int
) -> Iterator[PairSpec]:
    for index in range(pairs_per_identity * len(ir)):
        k, camera = divmod(index, len(ir))
        side = sides[k % len(sides)]
        yield PairSpec(
            pair_id=f"{pid}-{index:05d}-{ir[camera]}",
            pid=pid,
            index=index,
            rgb=side.camera,
            ir=ir[camera],
            seed=pair_seed(seed, pid, index),
            photo=side.photo,
        )


def _warn_of_modalities(plan: SynthesisPlan) -> None:
    """The manifest knows every image's modality; a SYSU tree has only the camera's name to tell it."""
    used = {(pair.rgb, "rgb") for pair in plan.pairs} | {(pair.ir, "ir") for pair in plan.pairs}
    misread = sorted(camera for camera, modality in used if camera_modality(camera) != modality)
    if misread:
        warnings.warn(
            f"plan: SYSU readers take cam3 and cam6, and no others, as infrared and so misread {', '.join(misread)}; "
            "read this dataset by its manifest",
            stacklevel=3,
        )


def _photo_root(photo_root: Path | str | None, mode: str) -> Path:
    if photo_root is None:
        raise InputError(f"plan: mode {mode!r} needs photos and the folder that they lie in (photo_root)")
    return Path(os.path.abspath(photo_root))  # links inside the photo folder stay as they are


def _photo_sides(
    people: Sequence[str], rgb: Sequence[str], photos: Sequence[Sample], root: Path, seed: int
) -> dict[str, list[_RgbSide]]:
    """Every identity's photos in an order that depends on `seed` and each photo's own name only."""
    sides: dict[str, list[_RgbSide]] = {pid: [] for pid in people}
    for sample in photos:
        wanted = sample.source == "real" and sample.modality == "rgb" and (not rgb or sample.camera in rgb)
        if wanted and sample.pid in sides:
            sides[sample.pid].append(_RgbSide(sample.camera, _relative(sample.path, root)))
    without = [pid for pid in people if not sides[pid]]
    if without:
        raise InputError(
            f"plan: {len(without):,} of {len(people):,} identities have no real RGB photo"
            f"{' of ' + ', '.join(rgb) if rgb else ''} ({some(without)}); leave them out or add their photos"
        )
    for listed in sides.values():
        listed.sort(key=lambda side: sha256_bytes(canonical_json([seed, side.photo]).encode()))
    return sides


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
            raise InputError(f"plan: the model knows {len(known)} cameras, {name!r} is not one{nearest(name, known)}")
        if known[name] != modality:
            raise InputError(f"plan: camera {name!r} is an {known[name]} camera and cannot give the {modality} side")
