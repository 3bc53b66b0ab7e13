"""Training images and captions of the pocket base model, rendered from identities that no ReID split holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dive_fast.io import atomic_path
from dive_fast.models.phrase import drop_parts
from dive_fast.train.cameras import CODE_LETTERS
from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH, random_monochrome_camera, random_rgb_camera
from dive_fast.world.canvas import Part
from dive_fast.world.captions import MONOCHROME, Brightness, caption, phrase_caption
from dive_fast.world.optics import Spectrum
from dive_fast.world.pedestrians import Pedestrian, sample_pedestrian, sample_shot
from dive_fast.world.render import reflectances, render

# Separates base identities from those of every world, which are seeded with a hash.
_NAMESPACE = 0xBA5E


@dataclass(frozen=True)
class BaseImages:
    """`images` uint8 [N, 128, 64, 3] and one caption each."""

    images: np.ndarray
    captions: list[str]


def _person(seed: int, index: int) -> tuple[np.random.Generator, Pedestrian]:
    """The identity in image `index`, and the generator of the rest of the image."""
    rng = np.random.default_rng([_NAMESPACE, seed, index])
    return rng, sample_pedestrian(rng)


def base_identities(seed: int, count: int) -> list[Pedestrian]:
    """Returns the identities in the images of `render_base_images`, in order."""
    return [_person(seed, index)[1] for index in range(count)]


_TONED = {  # the surfaces whose tone a caption names; all parts of a garment have one dye
    "skin": Part.SKIN,
    "hair": Part.HAIR,
    "hat": Part.HAT,
    "top": Part.TOP,
    "second": Part.TOP_SECOND,
    "bottom": Part.BOTTOM,
    "shoes": Part.SHOES,
    "bag": Part.BAG,
}


def _tones(person: Pedestrian, spectrum: Spectrum) -> Brightness:
    levels = reflectances(person, spectrum)
    return {name: levels[part] for name, part in _TONED.items() if part in levels}


def _one(seed: int, index: int, monochrome_fraction: float, noise_fraction: float) -> tuple[np.ndarray, str]:
    """A photo and its caption, which names a view and a scene, or has the form of an adapter's phrase.

    Half of the captions leave phrases out, as captions of real photos do. Of a monochrome photo most name every tone.
    """
    rng, person = _person(seed, index)
    shot = sample_shot(rng)
    camera = random_monochrome_camera(rng) if rng.random() < monochrome_fraction else random_rgb_camera(rng)
    image = render(person, camera, shot, noise=bool(rng.random() < noise_fraction))
    tones = _tones(person, camera.spectrum) if camera.spectrum is not None and rng.random() < 0.75 else None
    drop = 0.0 if rng.random() < 0.5 else 0.3
    if rng.random() < 0.5:
        text = caption(person, camera.words, shot, drop, rng, tones)
    else:
        text = drop_parts(phrase_caption(person, tones), drop, rng)
    if camera.spectrum is not None:
        text = text.replace("a photo", f"a {MONOCHROME} photo", 1)
    if rng.random() < 0.4:  # a meaningless camera word, to which a LoRA can later give a meaning
        code = "".join(CODE_LETTERS[i] for i in rng.integers(0, len(CODE_LETTERS), 4))
        text = text.replace("a ", f"a {code} ", 1)
    return image, text


def _chunk(task: tuple[int, int, int, float, float]) -> tuple[int, np.ndarray, list[str]]:
    seed, start, stop, monochrome_fraction, noise_fraction = task
    pairs = [_one(seed, i, monochrome_fraction, noise_fraction) for i in range(start, stop)]
    return start, np.stack([image for image, _ in pairs]), [text for _, text in pairs]


def render_base_images(
    seed: int,
    count: int,
    *,
    monochrome_fraction: float,
    noise_fraction: float,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
    chunk: int = 250,
) -> BaseImages:
    """Renders `count` images; image i depends on (seed, i) and the two fractions only."""
    images = np.empty((count, IMAGE_HEIGHT, IMAGE_WIDTH, 3), dtype=np.uint8)
    captions: list[str] = [""] * count
    tasks = [(seed, i, min(i + chunk, count), monochrome_fraction, noise_fraction) for i in range(0, count, chunk)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for start, block, texts in pool.map(_chunk, tasks):
            images[start : start + len(block)] = block
            captions[start : start + len(block)] = texts
            if progress is not None:
                progress(len(block))
    return BaseImages(images, captions)


def cached_images(
    path: Path, seed: int, count: int, *, monochrome_fraction: float, noise_fraction: float
) -> BaseImages:
    """Returns `render_base_images`, rendered once with a progress bar and stored in `path`."""
    from dive_fast.progress import ProgressBar

    if not path.exists():
        with ProgressBar(total=count, desc="render", unit="image") as bar:
            made = render_base_images(
                seed, count, monochrome_fraction=monochrome_fraction, noise_fraction=noise_fraction, progress=bar.update
            )
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, images=made.images, captions=np.array(made.captions))
    with np.load(path, allow_pickle=False) as data:
        return BaseImages(data["images"], [str(text) for text in data["captions"]])
