"""Packing mixed sets into tars: what is in them, what is left out, and reading them without the raw trees."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from dive_fast.data.config import PrepareConfig
from dive_fast.data.filters import apply_filters
from dive_fast.data.images import open_image
from dive_fast.data.prepare import PreparePlan
from dive_fast.data.prepared import open_prepared, packed_images, prepared_images
from dive_fast.data.sets import SetSpec, read_sets
from dive_fast.data.shards import read_shard, tar_path
from dive_fast.io import sha256_bytes
from tests.support.preparing import break_file, plan_of, prepare
from tests.support.refusals import refused
from tests.support.trees import contents, photo


def test_what_the_tars_hold(trees: Path, tmp_path: Path) -> None:
    """As WebDataset reads them: members of one key are neighbours, an image with its original bytes and a JSON."""
    report = prepare(plan_of(trees), tmp_path / "out")
    assert [shard["images"] for shard in report["shards"]] == [5, 5, 4]
    with tarfile.open(tmp_path / "out/shards/00001.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:4]] == ["00000005.jpg", "00000005.json", "00000006.jpg", "00000006.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        raw = (trees / "sysu/cam3/0001/0002.jpg").read_bytes()
        assert tar.extractfile("00000005.jpg").read() == raw  # type: ignore[union-attr]
        assert json.loads(tar.extractfile("00000005.json").read()) == {  # type: ignore[union-attr]
            "pid": "0001",
            "camera": "cam3",
            "modality": "ir",
            "set": "sysu",
            "path": "cam3/0001/0002.jpg",
            "sha256": sha256_bytes(raw),
        }
        offsets = {m.name: m.offset_data for m in members}
    shard = read_shard(tmp_path / "out", 1)
    assert all(offsets[image.file] == image.offset for image in shard.images)
    assert len(shard.images) == 5


def test_read_without_the_raw_trees(trees: Path, tmp_path: Path) -> None:
    plan = plan_of(trees)
    pixels = [open_image(image.sample.path).tobytes() for image in plan.images]
    given = [(image.sample.pid, image.sample.camera, image.sample.modality, image.name) for image in plan.images]
    prepare(plan, tmp_path / "out")
    shutil.rmtree(trees)
    prepared = open_prepared(tmp_path / "out")
    read = list(prepared_images(prepared))
    assert [image.tobytes() for _, image in read] == pixels
    assert [(s.pid, s.camera, s.modality, s.path.as_posix()) for s, _ in read] == given
    assert given[8] == ("10002", "cam7", "rgb", "market/bounding_box_train/0002_c1s1_000001_01.jpg")


def test_the_same_wherever_the_trees_lie(trees: Path, tmp_path: Path) -> None:
    prepare(plan_of(trees), tmp_path / "out")
    shutil.move(trees, tmp_path / "moved")
    prepare(plan_of(tmp_path / "moved"), tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "out/prepared.json").read_text()


def test_the_report(trees: Path, tmp_path: Path) -> None:
    shutil.copy(trees / "sysu/cam1/0001/0001.jpg", trees / "market/bounding_box_train/0011_c1s1_000001_01.jpg")
    plan = plan_of(trees, min_images=2)
    report = prepare(plan, tmp_path / "out")
    assert (report["images"], report["identities"], report["latents"], report["damaged"]) == (13, 4, [], [])
    assert report["sets"] == [
        {"name": "sysu", "layout": "sysu", "split": "trainval", "prefix": ""},
        {"name": "market", "layout": "market", "split": "train", "prefix": "1", "camera": "cam7"},
    ]
    assert report["dropped"] == [
        {
            "set": "market",
            "rule": "of people with fewer than 2 images",
            "identities": ["10002"],
            "images": ["bounding_box_train/0002_c1s1_000001_01.jpg"],
        },
    ]
    same = ["sysu/cam1/0001/0001.jpg", "market/bounding_box_train/0011_c1s1_000001_01.jpg"]
    assert report["duplicates"] == [same]
    assert [(row["set"], row["identities"], row["images"]) for row in report["read"]][2] == ("market", 3, 6)
    assert [(row["set"], row["identities"], row["images"]) for row in report["prepared"]][2] == ("market", 2, 5)


def test_damaged_images_are_named_and_left_out(trees: Path, tmp_path: Path) -> None:
    cut = break_file(trees / "sysu/cam1/0002/0001.jpg")
    (trees / "market/bounding_box_train/0007_c2s1_000002_01.jpg").write_bytes(b"<html>404</html>")
    report = prepare(plan_of(trees), tmp_path / "out")
    assert report["images"] == 12
    first, second = report["damaged"]
    assert (first["set"], first["path"], first["bytes"]) == ("sysu", "cam1/0002/0001.jpg", cut.stat().st_size)
    assert first["problem"].startswith("image sysu/cam1/0002/0001.jpg is damaged (image file is truncated")
    assert "0007_c2s1_000002_01.jpg is not an image" in second["problem"]
    assert [row["images"] for row in report["prepared"]] == [3, 4, 5]
    assert len(list(prepared_images(open_prepared(tmp_path / "out")))) == 12


def test_an_image_that_vanished_is_named(trees: Path, tmp_path: Path) -> None:
    plan = plan_of(trees)
    (trees / "sysu/cam1/0001/0001.jpg").unlink()
    (image,) = prepare(plan, tmp_path / "out")["damaged"]
    assert image["problem"].startswith("image sysu/cam1/0001/0001.jpg does not exist")


def test_memory_is_bounded_by_an_image(tmp_path: Path) -> None:
    """Eighty images of 0.3 MB in one shard: Python never holds more than a few of them."""
    first = photo(tmp_path / "raw/0001/0.png", height=400, width=250)
    for i in range(1, 80):
        os.link(first, tmp_path / f"raw/0001/{i}.png")
    sets = read_sets([SetSpec("folder", tmp_path / "raw")])
    plan = PreparePlan(tuple(sets), (), PrepareConfig(shard_size=80), ())
    tracemalloc.start()
    report = prepare(plan, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report["images"] == 80
    assert peak < 6 * first.stat().st_size < tar_path(tmp_path / "out", 0).stat().st_size / 10


def test_damage_to_a_prepared_set_is_found(trees: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out", plan_of(trees)
    refused(r"prepared\.json.*dive-fast prepare", open_prepared, out)
    prepare(plan, out)
    tar = out / "shards/00001.tar"
    whole = tar.read_bytes()
    middle = read_shard(out, 1).images[2].offset + 100
    tar.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    images = prepared_images(open_prepared(out))
    assert len([next(images) for _ in range(7)]) == 7
    refused(r"00001\.tar: 00000007\.jpg is damaged", next, images)
    tar.write_bytes(whole[:middle])
    refused(r"00001\.tar: 00000007\.jpg is damaged", list, prepared_images(open_prepared(out)))
    tar.unlink()
    refused(r"00001\.tar is missing", list, prepared_images(open_prepared(out)))
    index = out / "shards/00002.json"
    index.write_text(index.read_text().replace("10011", "10012"))
    refused(r"00002\.json is damaged", packed_images, open_prepared(out), 2)
    (out / "prepared.json").unlink()
    refused("not finished.*dive-fast prepare", open_prepared, out)
    (out / "prepared.json").write_text('{"format": 2}')
    refused("version", open_prepared, out)


def test_nothing_left_to_prepare(trees: Path) -> None:
    config = PrepareConfig(min_images=9)
    left, _ = apply_filters(read_sets([SetSpec("market", trees / "market")]), config)
    refused("filters", PreparePlan, tuple(left), (), config, ())


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("shards/00000.json", lambda data: data["images"][0].update(file=True)),
        ("shards/00000.json", lambda data: data["images"][0].update(pid=2147483648)),
        ("shards/00000.json", lambda data: data["images"][0].update(path=[None])),
        ("shards/00000.json", lambda data: data["images"][0].update(modality="uv")),
        ("shards/00000.json", lambda data: data["images"][0].update(offset=-1)),
        ("shards/00000.json", lambda data: data.update(bytes="1")),
        ("prepared.json", lambda data: data["shards"][0].update(images=-3)),
        ("prepared.json", lambda data: data["shards"][0].update(images="../../../etc/passwd")),
        ("prepared.json", lambda data: data["shards"][0].update(bytes=10**400)),
    ],
)
def test_records_of_another_type_are_refused(trees: Path, tmp_path: Path, file: str, change: Callable) -> None:
    out = tmp_path / "out"
    prepare(plan_of(trees), out)
    data = json.loads((out / file).read_text())
    change(data)
    (out / file).write_text(json.dumps(data))
    read = open_prepared if file == "prepared.json" else lambda folder: read_shard(folder, 0)
    refused(re.escape(str(out / file)), read, out)
