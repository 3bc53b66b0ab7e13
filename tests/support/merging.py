"""Small synthesized datasets without an engine, real sets beside them, and another reader of what a merge wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dive_fast.data.sets import parse_set
from dive_fast.io import write_json
from dive_fast.merge.config import MergeConfig, parse_dataset
from dive_fast.merge.inputs import read_inputs
from dive_fast.merge.plan import survey
from dive_fast.merge.write import merge
from dive_fast.types import PairRecord, Sample
from tests.support.dataset import drop as write_drops
from tests.support.dataset import write_dataset, write_shard
from tests.support.trees import photo, write


def dataset(root: Path, pids: Sequence[str], pairs: int = 2, photos: Sequence[Sample] = (), seed: int = 0) -> Path:
    """Pairs of noise: RGB by cam1 and infrared, in one channel, by cam3; with `photos`, real RGB sides by cam7."""
    random = np.random.default_rng(seed)

    def draw(side: str, name: str) -> Image.Image:
        return Image.fromarray(random.integers(0, 255, (32, 16, 3) if side == "rgb" else (32, 16), dtype=np.uint8))

    real = {"mode": "real-rgb", "rgb": [], "photos": photos, "photo_root": photos[0].path.parents[1]} if photos else {}
    plan = {"pids": pids, "rgb": ["cam1"], "ir": ["cam3"], "pairs_per_identity": pairs, "seed": seed, **real}
    return write_dataset(root, draw, **plan)


def save_records(root: Path, records: Sequence[PairRecord]) -> None:
    for number, start in enumerate(range(0, len(records), 3)):
        write_shard(root, number, records[start : start + 3])


def drop(root: Path, *pair_ids: str) -> None:
    write_drops(root, [(pair_id, ["identity 0.31 < 0.50"]) for pair_id in pair_ids])
    write_json(root / "filter.json", {"dropped": len(pair_ids)})


def sysu(root: Path) -> Path:
    """People 1 (train), 2 (val) and 3 (test), each with photos 1 and 7 by cam1 and cam3."""
    for seed, (camera, pid, number) in enumerate(product(("cam1", "cam3"), (1, 2, 3), (1, 7))):
        photo(root / camera / f"{pid:04d}/{number:04d}.jpg", seed)
    for split, pid in (("train", 1), ("val", 2), ("test", 3)):
        write(root / f"exp/{split}_id.txt", str(pid))
    return root


def joined(out: Path, layout: str, real: Sequence[str] = (), synthetic: Sequence[str] = (), **options: Any) -> Path:
    """Merges as the command does; `real` and `synthetic` as on the command line."""
    config = MergeConfig(layout, **options)
    inputs = read_inputs([parse_set(text) for text in real], [parse_dataset(text) for text in synthetic], layout)
    merge(survey(inputs, config), out)
    return out


def provenance(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]


def agw_arrays(folder: Path) -> dict[str, np.ndarray]:
    """As data_loader.py of the AGW family loads them."""
    return {path.stem: np.load(path) for path in sorted(folder.glob("train_*.npy"))}


def agw_lines(path: Path) -> tuple[list[str], list[int]]:
    """As load_data of the AGW family reads a list: both parts at the space."""
    rows = [line.split(" ") for line in path.read_text().splitlines()]
    return [row[0] for row in rows], [int(row[1]) for row in rows]
