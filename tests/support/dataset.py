"""Datasets without an engine: small images, records as synth writes them, scores and drops beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dive_fast.io import sha256_file
from dive_fast.sampling import Sampling
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.manifest import shard_lines, shard_name
from dive_fast.synth.plan import make_plan, save_plan
from dive_fast.synth.provenance import png_tags
from dive_fast.types import Camera, PairRecord

CAMERAS = (Camera("cam1", "rgb", "a"), Camera("cam2", "rgb", "b"), Camera("cam3", "ir", "c"), Camera("cam6", "ir", "d"))
PLAN = {
    "mode": "synthetic",
    "cameras": CAMERAS,
    "rgb": ["cam1", "cam2"],
    "ir": ["cam3", "cam6"],
    "pairs_per_identity": 2,
    "seed": 0,
    "sampling": Sampling(4, 2.0),
    "height": 32,
    "width": 16,
    "model_fingerprint": "model",
    "shard_size": 3,
}
Draw = Callable[[str, str], Image.Image]


def write_dataset(out: Path, draw: Draw, shards: int | None = None, engine: str = "engine", **plan: Any) -> Path:
    """A finished dataset, or its first `shards` shards; `draw(side, name)` gives a generated image, photos are copied."""
    made = make_plan(**{**PLAN, **plan})
    save_plan(made, out / "plan.json")
    for number in range(made.shards if shards is None else shards):
        records = []
        for spec, files in shard_pairs(made, number):
            for side, name in files.items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                if side == "rgb" and spec.photo:
                    (out / name).write_bytes((Path(made.photo_root or "") / spec.photo).read_bytes())
                else:
                    notes = png_tags({"plan_id": made.plan_id, "pair_id": spec.pair_id})
                    draw(side, name).save(out / name, pnginfo=notes)
            hashes = {side: sha256_file(out / name) for side, name in files.items()}
            sizes = {side: (out / name).stat().st_size for side, name in files.items()}
            records.append(PairRecord(spec, dict(files), hashes, sizes, engine, {}))
        write_shard(out, number, records)
    return out


def write_shard(out: Path, number: int, records: Sequence[PairRecord]) -> None:
    (out / shard_name(number)).parent.mkdir(exist_ok=True)
    (out / shard_name(number)).write_bytes(shard_lines(records))


def make_dataset(out: Path, people: int = 3, pairs: int = 4, shards: int | None = None) -> Path:
    """`pairs` pairs per identity and infrared camera; every image is one flat colour."""
    random = np.random.default_rng(0)

    def draw(side: str, name: str) -> Image.Image:
        image = Image.new("RGB", (8, 16), tuple(int(value) for value in random.integers(0, 256, 3)))
        return image if side == "rgb" else image.convert("L")

    pids = [f"{n + 1:04d}" for n in range(people)]
    size = {"height": 16, "width": 8, "shard_size": 8}
    return write_dataset(out, draw, shards, pids=pids, pairs_per_identity=pairs, seed=7, **size)


def raw_records(out: Path) -> list[dict]:
    """The manifest's lines, read with json alone."""
    return [row for path in sorted((out / "shards").iterdir()) for row in _rows(path)]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_records(out: Path, change: Callable[[dict], object]) -> None:
    """Applies `change` to every record."""
    for path in (out / "shards").iterdir():
        rows = _rows(path)
        for row in rows:
            change(row)
        _write_rows(path, rows)


def add_scores(out: Path, score: Callable[[int], Mapping[str, Mapping[str, float]] | None]) -> None:
    """`score` gives {"rgb": {...}, "ir": {...}} of a pair by its number; None leaves the pair out."""
    (out / "scores").mkdir()
    number = count()
    for path in sorted((out / "shards").iterdir()):
        scored = [(row["spec"]["pair_id"], score(next(number))) for row in _rows(path)]
        _write_rows(out / "scores" / path.name, ({"pair_id": i, **found} for i, found in scored if found is not None))


def drop(out: Path, reasons: Sequence[tuple[str, list[str]]]) -> None:
    _write_rows(out / "dropped.jsonl", ({"pair_id": pair_id, "reasons": why} for pair_id, why in reasons))
