"""Small synthesized datasets without an engine, real sets beside them, and another reader of what a merge wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dive_fast.data.sets import parse_set
from dive_fast.io import sha256_file, write_json
from dive_fast.merge.config import MergeConfig, parse_dataset
from dive_fast.merge.inputs import read_inputs
from dive_fast.merge.plan import survey
from dive_fast.merge.write import merge
from dive_fast.sampling import Sampling
from dive_fast.synth.manifest import shard_lines
from dive_fast.synth.plan import make_plan, save_plan
from dive_fast.types import Camera, PairRecord, Sample
from tests.support.trees import photo, write

CAMERAS = (Camera("cam1", "rgb", "a"), Camera("cam2", "rgb", "b"), Camera("cam3", "ir", "c"), Camera("cam6", "ir", "d"))
ALL = ("sysu", "regdb", "llcm", "market", "market-gt-bbox", "msmt17", "folder")


def dataset(
    root: Path, pids: Sequence[str], pairs: int = 2, photos: Sequence[Sample] = (), shard_size: int = 3, seed: int = 0
) -> Path:
    """Pairs of noise: RGB by cam1 and infrared, in one channel, by cam3; with `photos`, real RGB sides by cam7."""
    plan = make_plan(
        mode="real-rgb" if photos else "synthetic",
        pids=pids,
        cameras=CAMERAS,
        ir=["cam3"],
        rgb=[] if photos else ["cam1"],
        pairs_per_identity=pairs,
        seed=seed,
        sampling=Sampling(2, 1.0),
        height=32,
        width=16,
        model_fingerprint="model",
        photos=photos,
        photo_root=photos[0].path.parents[1] if photos else None,
        shard_size=shard_size,
    )
    save_plan(plan, root / "plan.json")
    random, numbers, known = np.random.default_rng(seed), Counter[str](), dict[str, str]()
    records = []
    for spec in plan.pairs:
        files = {}
        for side, camera in (("rgb", spec.rgb), ("ir", spec.ir)):
            place = f"{camera}/{spec.pid}"
            source = spec.photo if side == "rgb" else None
            if source in known:
                files[side] = known[source]
                continue
            numbers[place] += 1
            name = files[side] = f"{place}/{numbers[place]:04d}{'.jpg' if source else '.png'}"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if source:
                known[source] = name
                (root / name).write_bytes((Path(plan.photo_root or "") / source).read_bytes())
            else:
                pixels = random.integers(0, 255, (32, 16, 3) if side == "rgb" else (32, 16), dtype=np.uint8)
                notes = PngInfo()
                for key, value in (("synthetic", "1"), ("plan_id", plan.plan_id), ("pair_id", spec.pair_id)):
                    notes.add_text(f"dive_fast:{key}", value)
                Image.fromarray(pixels).save(root / name, pnginfo=notes)
        hashes = {side: sha256_file(root / name) for side, name in files.items()}
        sizes = {side: (root / name).stat().st_size for side, name in files.items()}
        records.append(PairRecord(spec, files, hashes, sizes, "engine", {}))
    save_records(root, records, shard_size)
    return root


def save_records(root: Path, records: Sequence[PairRecord], shard_size: int = 3) -> None:
    (root / "shards").mkdir(exist_ok=True)
    for start in range(0, len(records), shard_size):
        lines = shard_lines(records[start : start + shard_size])
        (root / f"shards/{start // shard_size:05d}.jsonl").write_bytes(lines)


def change(record: PairRecord, **changes: Any) -> PairRecord:
    return replace(record, **changes)


def drop(root: Path, *pair_ids: str) -> None:
    (root / "dropped.jsonl").write_text(
        "".join(json.dumps({"pair_id": pair_id, "reasons": ["identity 0.31 < 0.50"]}) + "\n" for pair_id in pair_ids)
    )
    write_json(root / "filter.json", {"dropped": len(pair_ids)})


def sysu(root: Path) -> Path:
    """People 1 (train), 2 (val) and 3 (test), each with photos 1 and 7 by cam1 and cam3."""
    for seed, (camera, pid, number) in enumerate(
        (c, p, n) for c in ("cam1", "cam3") for p in (1, 2, 3) for n in (1, 7)
    ):
        photo(root / camera / f"{pid:04d}/{number:04d}.jpg", seed)
    for split, pid in (("train", 1), ("val", 2), ("test", 3)):
        write(root / f"exp/{split}_id.txt", str(pid))
    return root


def joined(out: Path, layout: str, real: Sequence[str] = (), synthetic: Sequence[str] = (), **options: Any) -> Path:
    """Merges as the command does; `real` and `synthetic` as on the command line."""
    config = MergeConfig(layout, **options)
    inputs = read_inputs([parse_set(text, ALL) for text in real], [parse_dataset(text) for text in synthetic], layout)
    merge(survey(inputs, config), out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def provenance(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]


def agw_arrays(folder: Path) -> dict[str, np.ndarray]:
    """As data_loader.py of the AGW family loads them."""
    return {path.stem: np.load(path) for path in sorted(folder.glob("train_*.npy"))}


def agw_lines(path: Path) -> tuple[list[str], list[int]]:
    """As load_data of the AGW family reads a list: both parts at the space."""
    rows = [line.split(" ") for line in path.read_text().splitlines()]
    return [row[0] for row in rows], [int(row[1]) for row in rows]
