"""Datasets without an engine: tiny images, records as synth writes them, scores and drops beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dive_fast.sampling import Sampling
from dive_fast.synth import make_plan, save_plan
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.manifest import shard_lines, shard_name
from dive_fast.types import Camera, PairRecord

CAMERAS = [Camera("cam1", "rgb", "a"), Camera("cam2", "rgb", "b"), Camera("cam3", "ir", "c"), Camera("cam6", "ir", "d")]


def make_dataset(out: Path, people: int = 3, pairs: int = 4, shards: int | None = None, shard_size: int = 8) -> Path:
    """`pairs` pairs per identity and infrared camera; every image is one flat colour of its own. `shards`: only so many."""
    plan = make_plan(
        mode="synthetic", pids=[f"{n + 1:04d}" for n in range(people)], cameras=CAMERAS, ir=["cam3", "cam6"],
        rgb=["cam1", "cam2"], pairs_per_identity=pairs, seed=7, sampling=Sampling(4, 2.0), height=16, width=8,
        model_fingerprint="model", shard_size=shard_size,
    )  # fmt: skip
    save_plan(plan, out / "plan.json")
    rng = np.random.default_rng(0)
    for number in range(plan.shards if shards is None else shards):
        records = []
        for spec, files in shard_pairs(plan, number):
            hashes, sizes = {}, {}
            for side, name in files.items():
                path = out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = tuple(int(value) for value in rng.integers(0, 256, 3))
                image = Image.new("RGB", (8, 16), colour)
                (image if side == "rgb" else image.convert("L")).save(path)
                hashes[side], sizes[side] = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
            records.append(PairRecord(spec, dict(files), hashes, sizes, "engine", {}))
        path = out / shard_name(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(shard_lines(records))
    return out


def raw_records(out: Path) -> list[dict]:
    """The manifest's lines, read with json alone."""
    lines = [line for path in sorted((out / "shards").iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def change_records(out: Path, change: Callable[[dict], object]) -> None:
    """Applies `change` to every record."""
    for path in (out / "shards").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_scores(out: Path, score: Callable[[int], Mapping[str, Mapping[str, float]] | None]) -> None:
    """`score` gives {"rgb": {...}, "ir": {...}} of a pair by its number; None leaves the pair out."""
    (out / "scores").mkdir()
    number = 0
    for path in sorted((out / "shards").iterdir()):
        lines = []
        for line in path.read_text().splitlines():
            found = score(number)
            number += 1
            if found is not None:
                lines.append(json.dumps({"pair_id": json.loads(line)["spec"]["pair_id"], **found}) + "\n")
        (out / "scores" / path.name).write_text("".join(lines))


def drop(out: Path, reasons: Sequence[tuple[str, list[str]]]) -> None:
    lines = [json.dumps({"pair_id": pair_id, "reasons": why}) + "\n" for pair_id, why in reasons]
    (out / "dropped.jsonl").write_text("".join(lines))
