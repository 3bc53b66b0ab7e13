"""How fast training photos come, one core: `python -m benchmarks.loader --out FILE` (part of make bench).

The same photos as raw files, as the images of a prepared set's tars, and as its cached latents, read by one thread in turn,
files in the page cache. What is read is checked to be the same before anything is timed. A figure is a median.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import interleaved, metadata, options_of, write
from dive_fast.data.config import PrepareConfig
from dive_fast.data.images import open_image
from dive_fast.data.prepare import PreparePlan, claimed, finish, pack
from dive_fast.data.prepared import open_prepared, prepared_images
from dive_fast.data.sets import SetSpec, read_sets
from dive_fast.models import ModelBundle, load_bundle
from dive_fast.train.photos import BalancedSampler, encode_photos
from dive_fast.train.prepared import encode_shards, load_prepared
from dive_fast.types import Sample

# Height and width: Market-1501's, and about the largest of SYSU-MM01's.
SIZES = ((128, 64), (384, 160))
BATCH = 16  # DiVE's


def _photos(folder: Path, size: tuple[int, int], count: int) -> Path:
    """A folder of `count` JPEG photos of the pocket world's people, brought to `size`."""
    from dive_fast.world.config import WorldSpec
    from dive_fast.world.trees import build_world

    people = -(-count // 10)
    build_world(folder / "world", WorldSpec(0, 1, 1, people, 1, 10))
    files = sorted((folder / "world" / "market" / "bounding_box_train").iterdir())[:count]
    for file in files:
        target = folder / "photos" / file.name[:4] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        open_image(file).resize(size[::-1], Image.Resampling.BICUBIC).save(target, quality=90)
    return folder / "photos"


def _prepared(raw: Path, out: Path, bundle: ModelBundle) -> list[Sample]:
    """Prepares the folder `raw` in `out`, and gives its samples."""
    plan = PreparePlan(tuple(read_sets([SetSpec("folder", raw)])), (), PrepareConfig(strict=True), ())
    with claimed(out, plan):
        pack(plan, out, set(), lambda _: None)
        encode_shards(plan, out, set(range(plan.shards)), bundle, lambda _: None)
        finish(plan, out)
    return [image.sample for image in plan.images]


def _same(samples: list[Sample], out: Path, bundle: ModelBundle) -> float:
    """Largest difference between loaded latents and those of the raw files; other pixels raise."""
    for sample, (_, image) in zip(samples, prepared_images(open_prepared(out)), strict=True):
        if not np.array_equal(np.asarray(open_image(sample.path)), np.asarray(image)):
            raise SystemExit(f"{sample.path} reads differently from the tar")
    raw = encode_photos(bundle, samples, progress=False).latents
    return float((load_prepared(out, bundle).latents - raw).abs().max())


def measure(size: tuple[int, int], count: int, repeats: int, bundle: ModelBundle) -> dict[str, Any]:
    """Images a second of each way to the same photos, for photos of one size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prepared"
        samples = _prepared(_photos(Path(folder), size, count), out, bundle)
        difference = _same(samples, out, bundle)
        photos = load_prepared(out, bundle)
        draw = BalancedSampler(photos.samples, BATCH, 0.5, seed=0)

        def batches() -> None:
            for step in range(-(-count // BATCH)):
                rows, rng = draw(step)
                photos.latents[torch.from_numpy(rows), torch.from_numpy(rng.integers(0, 2, BATCH))]

        runs: dict[str, Callable[[], object]] = {
            "decode raw files": lambda: [open_image(sample.path) for sample in samples],
            "decode from tars": lambda: [None for _ in prepared_images(open_prepared(out))],
            "decode and encode raw files": lambda: encode_photos(bundle, samples, progress=False),
            "load cached latents": lambda: load_prepared(out, bundle),
            f"draw cached latents, batches of {BATCH}": batches,
        }
        times = interleaved(runs, repeats)
    rows = [_row(what, [1e3 * count / ms for ms in values]) for what, values in times.items()]
    return {"photo": f"{size[0]}x{size[1]}", "images": count, "largest latent difference": difference, "rows": rows}


def _row(what: str, rates: list[float]) -> dict[str, Any]:
    least, middle, most = (round(function(rates), 1) for function in (min, statistics.median, max))
    print(f"{what:<36}{middle:>12,.0f} images/s", flush=True)
    return {"what": what, "images/s": middle, "range": [least, most]}


def main() -> None:
    options = options_of(__doc__, images=500, repeats=5).parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle("pocket")
    sizes = [measure(size, options.images, options.repeats, bundle) for size in SIZES]
    packages = ("torch", "pillow", "safetensors", "diffusers")
    write(options.out, metadata(packages, threads=1, repeats=options.repeats, model="pocket", sizes=sizes))


if __name__ == "__main__":
    main()
