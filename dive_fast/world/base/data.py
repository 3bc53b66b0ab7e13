"""Training images and captions of the pocket base model, rendered from identities that no ReID split holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dive_fast.io import atomic_path
from dive_fast.train.cameras import CODE_LETTERS
from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH, random_grey_camera, random_rgb_camera
from dive_fast.world.captions import caption
from dive_fast.world.pedestrians import Pedestrian, Shot, sample_pedestrian, sample_shot
from dive_fast.world.render import render

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


def _grey_caption(person: Pedestrian, camera_words: str, shot: Shot, drop: float, rng: np.random.Generator) -> str:
    """As `caption`, with a last phrase like "dim grey indoor" that is never left out."""
    text = caption(person, "", shot, drop=drop, rng=rng)
    scene = "indoor" if rng.random() < 0.5 else "outdoor"
    return " , ".join([*(phrase for phrase in text.split(" , ") if phrase), f"{camera_words} grey {scene}"])


def _one(seed: int, index: int, grey_fraction: float, noise_fraction: float) -> tuple[np.ndarray, str]:
    rng, person = _person(seed, index)
    shot = sample_shot(rng)
    grey = rng.random() < grey_fraction
    camera = random_grey_camera(rng) if grey else random_rgb_camera(rng)
    image = render(person, camera, shot, noise=bool(rng.random() < noise_fraction))
    # Half of the captions leave phrases out, as captions of real photos do.
    drop = 0.0 if rng.random() < 0.5 else 0.3
    if grey:
        text = _grey_caption(person, camera.words, shot, drop, rng)
    else:
        text = caption(person, camera.words, shot, drop=drop, rng=rng)
    if rng.random() < 0.4:  # a meaningless camera word, to which a LoRA can later give a meaning
        code = "".join(CODE_LETTERS[i] for i in rng.integers(0, len(CODE_LETTERS), 4))
        text = text.replace("a photo", f"a {code} photo", 1)
    return image, text


def _chunk(task: tuple[int, int, int, float, float]) -> tuple[int, np.ndarray, list[str]]:
    seed, start, stop, grey_fraction, noise_fraction = task
    pairs = [_one(seed, i, grey_fraction, noise_fraction) for i in range(start, stop)]
    return start, np.stack([image for image, _ in pairs]), [text for _, text in pairs]


def render_base_images(
    seed: int,
    count: int,
    *,
    grey_fraction: float,
    noise_fraction: float,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
    chunk: int = 250,
) -> BaseImages:
    """Renders `count` images; image i depends on (seed, i) and the two fractions only."""
    images = np.empty((count, IMAGE_HEIGHT, IMAGE_WIDTH, 3), dtype=np.uint8)
    captions: list[str] = [""] * count
    tasks = [(seed, i, min(i + chunk, count), grey_fraction, noise_fraction) for i in range(0, count, chunk)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for start, block, texts in pool.map(_chunk, tasks):
            images[start : start + len(block)] = block
            captions[start : start + len(block)] = texts
            if progress is not None:
                progress(len(block))
    return BaseImages(images, captions)


def cached_images(path: Path, seed: int, count: int, *, grey_fraction: float, noise_fraction: float) -> BaseImages:
    """Returns `render_base_images`, rendered once with a progress bar and stored in `path`."""
    from tqdm import tqdm

    if not path.exists():
        with tqdm(total=count, desc="render", unit="image") as bar:
            made = render_base_images(
                seed, count, grey_fraction=grey_fraction, noise_fraction=noise_fraction, progress=bar.update
            )
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, images=made.images, captions=np.array(made.captions))
    with np.load(path, allow_pickle=False) as data:
        return BaseImages(data["images"], [str(text) for text in data["captions"]])
