"""The world as files: a SYSU-MM01 tree, a Market-1501 tree, and the oracle's true infrared."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from dive_fast.io import atomic_write, canonical_json, read_json, write_json
from dive_fast.types import InputError
from dive_fast.world.cameras import MARKET_CAMERAS, SYSU_CAMERAS, WorldCamera
from dive_fast.world.persons import world_person, world_shot
from dive_fast.world.render import render

WORLD_VERSION = 3
TEST_FIRST_PID = 301  # fixed, so that the test identities do not change with the number of paired ones
EXTERNAL_FIRST_PID = 1001  # SYSU identities end below 534
MAX_PAIRED, MAX_TEST, MAX_EXTERNAL = 300, 200, 8999
VAL_SHARE = 6  # one in this many paired identities is listed in val_id.txt; readers train on train + val
INFRARED = tuple(name for name, camera in SYSU_CAMERAS.items() if camera.modality == "ir")


@dataclass(frozen=True)
class WorldSpec:
    """How large a world is. An image depends on the seed and its own place alone, never on the size."""

    seed: int = 0
    paired_ids: int = 48  # identities with real RGB and infrared, for training
    test_ids: int = 40  # held-out identities, in all six cameras
    external_ids: int = 160  # identities with RGB only
    images_per_camera: int = 10  # of every paired or test identity
    market_images: int = 10  # of every external identity, over the six Market cameras

    def __post_init__(self) -> None:
        limits = {"paired_ids": MAX_PAIRED, "test_ids": MAX_TEST, "external_ids": MAX_EXTERNAL,
                  "images_per_camera": 9999, "market_images": 9999}  # fmt: skip
        wrong = [f"{k} must be 1..{limits[k]}, got {getattr(self, k)}" for k in limits
                 if not 1 <= getattr(self, k) <= limits[k]]  # fmt: skip
        if wrong:
            raise InputError("world: " + "; ".join(wrong))


@dataclass(frozen=True)
class WorldImage:
    """One file of a world: where it goes and what it shows. `shot_camera` is the camera whose shot it shares."""

    path: str  # relative to the world
    pid: int
    camera: WorldCamera
    shot_camera: str
    index: int


def paired_pids(spec: WorldSpec) -> range:
    """Identities with both modalities to train on."""
    return range(1, spec.paired_ids + 1)


def heldout_pids(spec: WorldSpec) -> range:
    """Held-out identities with both modalities."""
    return range(TEST_FIRST_PID, TEST_FIRST_PID + spec.test_ids)


def external_pids(spec: WorldSpec) -> range:
    """Identities of the RGB-only tree."""
    return range(EXTERNAL_FIRST_PID, EXTERNAL_FIRST_PID + spec.external_ids)


def _market_camera(index: int) -> str:
    return tuple(MARKET_CAMERAS)[index % len(MARKET_CAMERAS)]


def _market_path(pid: int, index: int) -> str:
    return f"market/bounding_box_train/{pid:04d}_{_market_camera(index)}s1_{index + 1:06d}_00.jpg"


def _oracle_path(camera: str, pid: int, index: int) -> str:
    return f"oracle/{camera}/{pid:04d}/{index + 1:04d}.jpg"


def plan_images(spec: WorldSpec) -> Iterator[WorldImage]:
    """Every image of a world, in writing order."""
    for pid in (*paired_pids(spec), *heldout_pids(spec)):
        for name, camera in SYSU_CAMERAS.items():
            for index in range(spec.images_per_camera):
                yield WorldImage(f"sysu/{name}/{pid:04d}/{index + 1:04d}.jpg", pid, camera, name, index)
    for pid in external_pids(spec):
        for index in range(spec.market_images):
            name = _market_camera(index)
            yield WorldImage(_market_path(pid, index), pid, MARKET_CAMERAS[name], name, index)
            for infrared in INFRARED:
                yield WorldImage(_oracle_path(infrared, pid, index), pid, SYSU_CAMERAS[infrared], name, index)


def _jpeg(spec: WorldSpec, image: WorldImage) -> bytes:
    """The bytes of one image: colour 4:4:4, or one grey channel from an infrared camera."""
    shot = world_shot(spec.seed, image.pid, image.shot_camera, image.index)
    pixels = render(world_person(spec.seed, image.pid), image.camera, shot)
    picture = Image.fromarray(pixels[..., 0] if image.camera.modality == "ir" else pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _id_lists(spec: WorldSpec) -> dict[str, str]:
    """The text of every id list, by path relative to the world."""
    paired, test, external = list(paired_pids(spec)), list(heldout_pids(spec)), list(external_pids(spec))
    split = len(paired) - len(paired) // VAL_SHARE
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
    """JSON lines: an RGB photo of an external identity and the true infrared of the same shot, by camera."""
    rows = (
        {
            "pid": f"{pid:04d}",
            "index": index,
            "rgb": _market_path(pid, index),
            "ir": {camera: _oracle_path(camera, pid, index) for camera in INFRARED},
        }
        for pid in external_pids(spec)
        for index in range(spec.market_images)
    )
    return "".join(canonical_json(row) + "\n" for row in rows)


def _claim(out: Path, spec: WorldSpec) -> None:
    """Make sure that `out` is empty of worlds or holds this one, whole or in part."""
    record = {"version": WORLD_VERSION, "spec": asdict(spec)}
    marker = out / "spec.json"
    if marker.exists():
        found = read_json(marker, "world")
        if found != record:
            raise InputError(
                f"{out} holds another world ({canonical_json(found)}), asked for {canonical_json(record)}; "
                "choose another folder or remove this one"
            )
        return
    foreign = [name for name in ("sysu", "market", "oracle", "world.json") if (out / name).exists()]
    if foreign:
        raise InputError(f"{out} holds {', '.join(foreign)} but no spec.json of a world; choose another folder")
    write_json(marker, record)


def build_world(out: Path | str, spec: WorldSpec, progress: Callable[[int, int], None] | None = None) -> int:
    """Write a world below `out` and return how many images were missing and are now written.

    `spec.json` is written first and `world.json` last: a tree with `world.json` is whole. A rerun with the same spec
    writes what is missing and nothing else; one with another spec raises `InputError`. `progress(done, total)` is
    called after every image.
    """
    out = Path(out)
    _claim(out, spec)
    for folder in ("query", "bounding_box_test"):
        (out / "market" / folder).mkdir(parents=True, exist_ok=True)
    images = list(plan_images(spec))
    written = 0
    for done, image in enumerate(images, start=1):
        if not (out / image.path).exists():
            atomic_write(out / image.path, _jpeg(spec, image))
            written += 1
        if progress is not None:
            progress(done, len(images))
    texts = {**_id_lists(spec), "oracle/pairs.jsonl": _oracle_pairs(spec)}
    for path, text in texts.items():
        if not (out / path).exists():
            atomic_write(out / path, text)
    if not (out / "world.json").exists():
        write_json(out / "world.json", {"version": WORLD_VERSION, "spec": asdict(spec), "images": len(images)})
    return written
