"""The arms of a usefulness comparison: the images of external identities, which have no infrared photos, in training.

paired-only: none; rgb-only: their RGB photos; and beside these, grey: their luma as infrared; ours: synthetic infrared;
autoencoder: their true infrared as the model's autoencoder returns it; oracle: their true infrared, which only a rendered
world has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dive_fast.data.images import open_image, photo_pixels
from dive_fast.data.market import read_market
from dive_fast.data.sysu import read_sysu
from dive_fast.engines import Engine
from dive_fast.io import atomic_encode
from dive_fast.json_files import read_jsonl
from dive_fast.progress import ProgressBar
from dive_fast.types import InputError, Sample
from dive_fast.world.trees import INFRARED

BASELINE = "paired-only"  # what a user has without this project
_ROWS = 32  # images that the autoencoder takes at once


def external_photos(world: Path, limit: int | None = None) -> list[Sample]:
    """Returns RGB photos of the external identities, as camera "cam7"; with `limit`, the first so many of each."""
    samples = read_market(world / "market")
    if limit is None:
        return samples
    kept: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.pid, s.path.name.split("_")[2])):  # the frame, in six digits
        kept.setdefault(sample.pid, []).append(sample)
    return [sample for photos in kept.values() for sample in photos[:limit]]


def paired_photos(world: Path) -> list[Sample]:
    """Returns real RGB and infrared photos of the paired training identities."""
    return read_sysu(world / "sysu", "trainval")


def heldout_sides(world: Path) -> tuple[list[Sample], list[Sample]]:
    """Returns infrared queries and RGB gallery of the held-out identities."""
    photos = read_sysu(world / "sysu", "test")
    return [s for s in photos if s.modality == "ir"], [s for s in photos if s.modality == "rgb"]


def grey_infrared(world: Path, out: Path, per_camera: int) -> list[Sample]:
    """Writes luma (Rec. 601) copies of the first `per_camera` photos of each external identity per infrared camera."""
    made = []
    for photo in external_photos(world, per_camera):
        paths = [(out / camera / photo.pid / f"{photo.path.stem}.png", camera) for camera in INFRARED]
        missing = [path for path, _ in paths if not path.exists()]
        if missing:
            _write_grey(open_image(photo.path), *missing)
        made += [Sample(path, photo.pid, camera, "synthetic", "ir") for path, camera in paths]
    return made


def oracle_infrared(world: Path, per_camera: int) -> list[Sample]:
    """Returns the true infrared of the first `per_camera` shots of each external identity per infrared camera."""
    made: list[Sample] = []
    path = world / "oracle" / "pairs.jsonl"
    for number, row in enumerate(read_jsonl(path, "oracle"), start=1):
        try:
            if row["index"] < per_camera:
                made += [Sample(world / file, row["pid"], camera, "real", "ir") for camera, file in row["ir"].items()]
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number} is not what world make wrote; make the world again") from error
    return made


def _write_grey(image: Image.Image, *paths: Path) -> None:
    grey = image.convert("L")
    for path in paths:
        atomic_encode(path, lambda stream: grey.save(stream, "PNG"))


def autoencoded_infrared(engine: Engine, truth: Sequence[Sample], out: Path) -> list[Sample]:
    """Writes true infrared to `out` as the engine's autoencoder returns it: our look, the truth's content."""
    made = [Sample(out / s.camera / s.pid / f"{s.path.stem}.png", s.pid, s.camera, "synthetic", "ir") for s in truth]
    missing = [(s.path, own.path) for s, own in zip(truth, made, strict=True) if not own.path.exists()]
    rows = min(_ROWS, engine.spec.profile.rows_max)
    for start in ProgressBar(range(0, len(missing), rows), desc="autoencoder", unit="batch", disable=not missing):
        batch = missing[start : start + rows]
        for image, (_, path) in zip(_through(engine, [source for source, _ in batch]), batch, strict=True):
            _write_grey(Image.fromarray(image), path)
    return made


def _through(engine: Engine, photos: Sequence[Path]) -> NDArray[np.uint8]:
    """Returns photos, uint8 [B, H, W, 3] at the engine's size, after its encoder and decoder."""
    import torch

    profile = engine.spec.profile
    pixels = np.stack([photo_pixels(path, profile.height, profile.width) for path in photos])
    return engine.decode(engine.encode(torch.from_numpy(pixels))).numpy()


def build_arms(
    world: Path, work: Path, ours: Sequence[Sample], per_camera: int, autoencoded: Sequence[Sample] = ()
) -> dict[str, list[Sample]]:
    """Returns the training samples of every arm, with equal numbers of external infrared images.

    `ours` are the synthetic infrared samples; without `autoencoded` there is no arm autoencoder. An external identity
    without any of `ours` raises `InputError`.
    """
    paired, external = paired_photos(world), external_photos(world)
    pids = {s.pid for s in external}
    missing = sorted(pids - {s.pid for s in ours})
    if missing:
        raise InputError(f"{len(missing)} external identities have no synthetic infrared, first {missing[0]!r}")
    return {
        BASELINE: paired,
        "rgb-only": paired + external,
        "grey": paired + external + grey_infrared(world, work / "grey", per_camera),
        "ours": paired + external + list(ours),
        **({"autoencoder": paired + external + list(autoencoded)} if autoencoded else {}),
        "oracle": paired + external + oracle_infrared(world, per_camera),
    }
