"""A few coloured people, real and "generated": features need not be good to be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dive_fast.io import sha256_file
from dive_fast.sampling import Sampling
from dive_fast.synth.manifest import read_shard, shard_lines, shard_name
from dive_fast.synth.plan import make_plan, save_plan
from dive_fast.synth.provenance import png_tags
from dive_fast.types import MODALITIES, Camera, PairRecord

PIDS = tuple(f"{number:04d}" for number in range(1, 6))
CAMERAS = (Camera("cam1", "rgb", "a"), Camera("cam2", "rgb", "b"), Camera("cam3", "ir", "c"), Camera("cam6", "ir", "d"))
SIZE = (32, 64)  # width, height


def photo(pid: str, camera: str, number: int) -> Image.Image:
    """Three boxes in the person's colours; infrared has a brightness of its own, so that luma tells the modalities apart."""
    person = np.random.default_rng([7, int(pid)]).integers(40, 215, (3, 3))
    random = np.random.default_rng([int(pid), int(camera[3:]), number])
    image = np.full((SIZE[1], SIZE[0], 3), 20.0 * int(camera[3:]))
    for part in range(3):
        box = person[part] if camera not in ("cam3", "cam6") else 255 - person[part].mean() / 2
        image[part * 20 + 2 : part * 20 + 20, 6:26] = box
    return Image.fromarray((image + random.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8))


def make_dataset(
    out: Path,
    pids: Sequence[str] = PIDS,
    mode: str = "synthetic",
    pairs: int = 2,
    shards: int | None = None,
    **plan: object,
) -> Path:
    """A finished dataset (or its first `shards` shards), its images drawn by `photo`; 3 pairs a shard."""
    photos = [] if mode == "synthetic" else [s for s in plan.pop("photos") if s.modality == "rgb"]  # type: ignore[attr-defined]
    made = make_plan(
        mode=mode,  # type: ignore[arg-type]
        pids=pids,
        cameras=CAMERAS,
        ir=["cam3", "cam6"],
        rgb=["cam1", "cam2"],
        pairs_per_identity=pairs,
        seed=3,
        sampling=Sampling(4, 2.0),
        height=SIZE[1],
        width=SIZE[0],
        model_fingerprint="model-1",
        shard_size=3,
        **({} if mode == "synthetic" else {"photos": photos}),
        **plan,  # type: ignore[arg-type]
    )
    out.mkdir(exist_ok=True)
    save_plan(made, out / "plan.json")
    numbers: dict[tuple[str, str], int] = {}
    for number in range(made.shards if shards is None else shards):
        records = []
        for pair in made.shard(number):
            files, hashes, sizes = {}, {}, {}
            for side in MODALITIES:
                camera = pair.rgb if side == "rgb" else pair.ir
                numbers[camera, pair.pid] = count = numbers.get((camera, pair.pid), 0) + 1
                name = f"{camera}/{pair.pid}/{count:04d}.png"
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                marks = png_tags({"pair_id": pair.pair_id})
                photo(pair.pid, camera, 100 + count).save(out / name, pnginfo=marks)
                files[side], hashes[side], sizes[side] = name, sha256_file(out / name), (out / name).stat().st_size
            records.append(PairRecord(pair, files, hashes, sizes, "engine-1", {}))
        (out / shard_name(number)).parent.mkdir(exist_ok=True)
        (out / shard_name(number)).write_bytes(shard_lines(records))
    return out


def rejected(dataset: Path, number: int, line: int) -> None:
    """Marks one pair as rejected."""
    records = list(read_shard(dataset / shard_name(number)))
    records[line] = replace(records[line], status="rejected")
    (dataset / shard_name(number)).write_bytes(shard_lines(records))
