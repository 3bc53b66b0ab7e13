"""A few coloured people, real and "generated", and an untrained net: features need not be good to be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dive_fast.data.sets import SetSpec
from dive_fast.data.writers import SysuTreeWriter
from dive_fast.io import sha256_file, write_json
from dive_fast.quality.net import Net, open_net
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.config import ReidConfig
from dive_fast.synth.manifest import shard_lines, shard_name
from dive_fast.synth.marks import png_marks
from dive_fast.synth.plan import make_plan, save_plan
from dive_fast.types import MODALITIES, Camera, PairRecord, to_dict

PIDS = tuple(f"{number:04d}" for number in range(1, 6))
CAMERAS = (Camera("cam1", "rgb", "a"), Camera("cam2", "rgb", "b"), Camera("cam3", "ir", "c"), Camera("cam6", "ir", "d"))
SIZE = (32, 64)  # width, height


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photo(pid: str, camera: str, number: int) -> Image.Image:
    """Three boxes in the person's colours; infrared has a brightness of its own, so that luma tells the modalities apart."""
    person = np.random.default_rng([7, int(pid)]).integers(40, 215, (3, 3))
    random = np.random.default_rng([int(pid), int(camera[3:]), number])
    image = np.full((SIZE[1], SIZE[0], 3), 20.0 * int(camera[3:]))
    for part in range(3):
        box = person[part] if camera not in ("cam3", "cam6") else 255 - person[part].mean() / 2
        image[part * 20 + 2 : part * 20 + 20, 6:26] = box
    return Image.fromarray((image + random.normal(0, 12, image.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> SetSpec:
    """A SYSU tree of all people: 3 images by each of two RGB and two infrared cameras."""
    root = tmp_path_factory.mktemp("real")
    writer = SysuTreeWriter(root)
    for pid in PIDS:
        for camera in CAMERAS:
            for number in range(1, 4):
                path = writer.image_path(camera.name, pid, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(pid, camera.name, number).save(path)
    writer.write_ids(train=PIDS[:-1], val=PIDS[-1:])
    return SetSpec("sysu", root)


MakeNet = Callable[..., Path]


@pytest.fixture(scope="session")
def make_net(tmp_path_factory) -> MakeNet:
    """Writes the checkpoint of an untrained net; `record` changes what its reid.json says (None: leaves that out)."""

    def make(seed: int = 0, **record: object) -> Path:
        out = tmp_path_factory.mktemp("net")
        config = ReidConfig(model=ModelConfig(height=64, width=32, stripes=1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ReidModel(config.model, 3)
            for module in model.modules():  # statistics as training would leave them, roughly
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
        save_file(model.state_dict(), out / "model.safetensors")
        known = {"synthetic": 0, "images": 60, "data": "d", "pids": ["1", "2", "3"], "config": to_dict(config)}
        known |= {"sha256": sha256_file(out / "model.safetensors"), **record}
        write_json(out / "reid.json", {name: value for name, value in known.items() if value is not None})
        return out

    return make


@pytest.fixture(scope="session")
def checkpoint(make_net) -> Path:
    return make_net()


@pytest.fixture(scope="session")
def net(checkpoint) -> Net:
    return open_net(checkpoint)


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
        steps=4,
        guidance=2.0,
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
                marks = png_marks({"pair_id": pair.pair_id})
                photo(pair.pid, camera, 100 + count).save(out / name, pnginfo=marks)
                files[side], hashes[side], sizes[side] = name, sha256_file(out / name), (out / name).stat().st_size
            records.append(PairRecord(pair, files, hashes, sizes, "engine-1", {}))
        (out / shard_name(number)).parent.mkdir(exist_ok=True)
        (out / shard_name(number)).write_bytes(shard_lines(records))
    return out


@pytest.fixture
def dataset(tmp_path) -> Path:
    """5 people, 4 pairs each, in 7 shards of 3: a person's images lie in several shards."""
    return make_dataset(tmp_path / "pairs")


def rejected(dataset: Path, number: int, line: int) -> None:
    """Marks one pair as rejected."""
    from dive_fast.synth.manifest import read_shard

    records = list(read_shard(dataset / shard_name(number)))
    records[line] = replace(records[line], status="rejected")
    (dataset / shard_name(number)).write_bytes(shard_lines(records))
