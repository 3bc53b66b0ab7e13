"""Files of a world: a SYSU-MM01 tree, a Market-1501 tree, and the oracle's true infrared."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from dive_fast.io import atomic_write, canonical_json, write_json
from dive_fast.outputs import claim_folder
from dive_fast.world.cameras import MARKET_CAMERAS, SYSU_CAMERAS, WorldCamera
from dive_fast.world.config import WorldSpec
from dive_fast.world.pedestrians import world_pedestrian, world_shot
from dive_fast.world.render import render

WORLD_VERSION = 3
VAL_EVERY = 6  # one in so many paired identities is in val_id.txt; readers train on train + val
INFRARED = tuple(name for name, camera in SYSU_CAMERAS.items() if camera.spectrum)


@dataclass(frozen=True)
class WorldImage:
    """One image file of a world. `shot_camera` is the camera whose shot it shows."""

    path: str  # relative to the world
    pid: int
    camera: WorldCamera
    shot_camera: str
    index: int


def _market_camera(index: int) -> str:
    return tuple(MARKET_CAMERAS)[index % len(MARKET_CAMERAS)]


def _market_path(pid: int, index: int) -> str:
    return f"market/bounding_box_train/{pid:04d}_{_market_camera(index)}s1_{index + 1:06d}_00.jpg"


def _oracle_path(camera: str, pid: int, index: int) -> str:
    return f"oracle/{camera}/{pid:04d}/{index + 1:04d}.jpg"


def plan_images(spec: WorldSpec) -> Iterator[WorldImage]:
    """Yields every image of a world in writing order."""
    for pid in (*spec.paired_pids, *spec.test_pids):
        for name, camera in SYSU_CAMERAS.items():
            for index in range(spec.images_per_camera):
                yield WorldImage(f"sysu/{name}/{pid:04d}/{index + 1:04d}.jpg", pid, camera, name, index)
    for pid in spec.external_pids:
        for index in range(spec.market_images):
            name = _market_camera(index)
            yield WorldImage(_market_path(pid, index), pid, MARKET_CAMERAS[name], name, index)
            for infrared in INFRARED:
                yield WorldImage(_oracle_path(infrared, pid, index), pid, SYSU_CAMERAS[infrared], name, index)


def _jpeg(spec: WorldSpec, image: WorldImage) -> bytes:
    """Returns the JPEG of an image: colour 4:4:4, or one grey channel for infrared."""
    shot = world_shot(spec.seed, image.pid, image.shot_camera, image.index)
    pixels = render(world_pedestrian(spec.seed, image.pid), image.camera, shot)
    picture = Image.fromarray(pixels if image.camera.spectrum is None else pixels[..., 0])
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _id_lists(spec: WorldSpec) -> dict[str, str]:
    """Returns the text of every id list by path."""
    paired, test, external = list(spec.paired_pids), list(spec.test_pids), list(spec.external_pids)
    split = len(paired) - len(paired) // VAL_EVERY
    lists = {
        "sysu/exp/train_id.txt": paired[:split],
        "sysu/exp/val_id.txt": paired[split:],
        "sysu/exp/test_id.txt": test,
        "sysu/exp/available_id.txt": paired + test,
        "oracle/exp/train_id.txt": external,
        "oracle/exp/val_id.txt": [],
        "oracle/exp/test_id.txt": [],
        "oracle/exp/available_id.txt": external,
    }
    return {path: ",".join(map(str, ids)) + "\n" for path, ids in lists.items()}


def _oracle_pairs(spec: WorldSpec) -> str:
    """Returns JSON lines of RGB photos of external identities with the true infrared of their shots."""
    rows = (
        {
            "pid": f"{pid:04d}",
            "index": index,
            "rgb": _market_path(pid, index),
            "ir": {camera: _oracle_path(camera, pid, index) for camera in INFRARED},
        }
        for pid in spec.external_pids
        for index in range(spec.market_images)
    )
    return "".join(canonical_json(row) + "\n" for row in rows)


def build_world(out: Path | str, spec: WorldSpec, progress: bool = False) -> int:
    """Writes the missing images of a world to `out` and returns their number.

    JPEG files of 128 x 64 pixels: RGB and infrared of the paired and test identities in `sysu/`, RGB of the external ones
    in `market/`, and their true infrared in `oracle/`. Writes `spec.json` first and `world.json` last: a world with
    `world.json` is complete. A folder with another world or other files raises `InputError`. `progress` shows a bar.
    """
    from dive_fast.progress import ProgressBar

    out, record = Path(out), {"version": WORLD_VERSION, "spec": asdict(spec)}
    with claim_folder(out, "spec.json", record, "world", ()):
        for folder in ("query", "bounding_box_test"):
            (out / "market" / folder).mkdir(parents=True, exist_ok=True)
        images = list(plan_images(spec))
        missing = [image for image in images if not (out / image.path).exists()]
        for image in ProgressBar(missing, desc="render", unit="image", disable=not progress):
            atomic_write(out / image.path, _jpeg(spec, image))
        texts = {**_id_lists(spec), "oracle/pairs.jsonl": _oracle_pairs(spec)}
        for path, text in texts.items():
            if not (out / path).exists():
                atomic_write(out / path, text)
        if not (out / "world.json").exists():
            write_json(out / "world.json", {**record, "images": len(images)})
    return len(missing)
