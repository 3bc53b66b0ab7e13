"""People in colours, real and "generated", and datasets of them: features need not be good to be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dive_fast.data.sets import SetSpec
from dive_fast.data.writers import write_ids
from dive_fast.io import write_json
from dive_fast.synth.manifest import read_shard, shard_name
from tests.support.dataset import CAMERAS, write_dataset, write_shard

PIDS = tuple(f"{number:04d}" for number in range(1, 6))
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


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_engine(engine: Path) -> Path:
    """The two records of an engine that the card reads."""
    write_json(engine / "engine.json", {"model_fingerprint": "model-1"})
    write_json(engine / "prompts.json", {"base_fingerprint": "base-1", "adapter_fingerprint": "adapter-1"})
    return engine


def make_dataset(out: Path, pids: Sequence[str] = PIDS, pairs: int = 2, shards: int | None = None, **plan: Any) -> Path:
    """A finished dataset (or its first `shards` shards), its images drawn by `photo`; 3 pairs a shard."""
    if "photos" in plan:
        plan["photos"] = [sample for sample in plan["photos"] if sample.modality == "rgb"]

    def draw(side: str, name: str) -> Image.Image:
        camera, pid, file = name.split("/")
        return photo(pid, camera, 100 + int(Path(file).stem))

    size = {"height": SIZE[1], "width": SIZE[0]}
    plan = {"pids": pids, "pairs_per_identity": pairs, "seed": 3, "model_fingerprint": "model-1", **size, **plan}
    return write_dataset(out, draw, shards, engine="engine-1", **plan)


def rejected(dataset: Path, number: int, line: int) -> None:
    """Marks one pair as rejected."""
    records = list(read_shard(dataset / shard_name(number)))
    records[line] = replace(records[line], status="rejected")
    write_shard(dataset, number, records)


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> SetSpec:
    """A SYSU tree of all people: 3 images by each of two RGB and two infrared cameras."""
    root = tmp_path_factory.mktemp("real")
    for pid in PIDS:
        for camera in CAMERAS:
            for number in range(1, 4):
                save(root / camera.name / pid / f"{number:04d}.jpg", photo(pid, camera.name, number))
    write_ids(root, train=PIDS[:-1], val=PIDS[-1:])
    return SetSpec("sysu", root)


@pytest.fixture
def only_rgb(tmp_path) -> SetSpec:
    """A folder of one RGB image of everybody."""
    for pid in PIDS:
        save(tmp_path / "rgb" / pid / "1.png", photo(pid, "cam1", 1))
    return SetSpec("folder", tmp_path / "rgb")


@pytest.fixture
def dataset(tmp_path) -> Path:
    """5 people, 4 pairs each, in 7 shards of 3: a person's images lie in several shards."""
    return make_dataset(tmp_path / "pairs")
