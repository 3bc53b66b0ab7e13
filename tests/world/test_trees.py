"""The world as files: layouts, counts, reruns, and independence of size."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive_fast.world import trees
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world, plan_images
from tests.support.refusals import refused
from tests.support.training import interrupted_call
from tests.support.trees import contents

SPEC = WorldSpec(seed=3, paired_ids=6, test_ids=2, external_ids=2, images_per_camera=2, market_images=7)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world")
    assert build_world(out, SPEC) == 8 * 6 * 2 + 2 * 7 * 3
    return out


def ids(path: Path) -> list[int]:
    (line,) = path.read_text().splitlines()
    return [int(x) for x in line.split(",")]


@pytest.mark.slow
def test_sysu_layout(world):
    train, val = ids(world / "sysu/exp/train_id.txt"), ids(world / "sysu/exp/val_id.txt")
    assert train + val == list(SPEC.paired_pids) == [1, 2, 3, 4, 5, 6] and val
    assert ids(world / "sysu/exp/test_id.txt") == list(SPEC.test_pids) == [301, 302]
    assert ids(world / "sysu/exp/available_id.txt") == [*SPEC.paired_pids, *SPEC.test_pids]
    for camera in range(1, 7):
        folders = sorted(p.name for p in (world / f"sysu/cam{camera}").iterdir())
        assert folders == [f"{pid:04d}" for pid in (*SPEC.paired_pids, *SPEC.test_pids)]
        names = [sorted(p.name for p in (world / f"sysu/cam{camera}" / f).iterdir()) for f in folders]
        assert all(n == ["0001.jpg", "0002.jpg"] for n in names)


def test_market_layout(world):
    names = sorted(p.name for p in (world / "market/bounding_box_train").iterdir())
    assert len(names) == 2 * 7 and names[0] == "1001_c1s1_000001_00.jpg"
    assert {n[:4] for n in names} == {f"{pid:04d}" for pid in SPEC.external_pids}
    assert {n[5:7] for n in names} == {f"c{i}" for i in range(1, 7)}
    assert (world / "market/query").is_dir() and (world / "market/bounding_box_test").is_dir()


def test_infrared_is_single_channel_and_rgb_is_not(world):
    for camera, mode in (("cam1", "RGB"), ("cam3", "L"), ("cam6", "L")):
        with Image.open(world / f"sysu/{camera}/0001/0001.jpg") as image:
            assert (image.mode, image.size, image.format) == (mode, (64, 128), "JPEG")


def test_oracle_pairs_are_the_same_shots(world):
    rows = [json.loads(line) for line in (world / "oracle/pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 7
    shots = {i.path: (i.pid, i.shot_camera, i.index) for i in plan_images(SPEC)}
    for row in rows:
        assert set(row["ir"]) == {"cam3", "cam6"}
        assert all((world / path).is_file() for path in (row["rgb"], *row["ir"].values()))
        assert {shots[path] for path in row["ir"].values()} == {shots[row["rgb"]]}
    assert ids(world / "oracle/exp/train_id.txt") == list(SPEC.external_pids)


def test_rerun_of_a_finished_world_changes_nothing(world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*")}
    assert build_world(world, SPEC) == 0
    assert {p: p.stat().st_mtime_ns for p in world.rglob("*")} == before


@pytest.mark.slow
def test_interrupted_world_resumes_to_the_same_bytes(world, tmp_path, monkeypatch):
    total = sum(1 for _ in plan_images(SPEC))
    monkeypatch.setattr(trees, "_jpeg", interrupted_call(trees._jpeg, total // 2))
    with pytest.raises(KeyboardInterrupt):
        build_world(tmp_path, SPEC)
    assert not (tmp_path / "world.json").exists()
    (tmp_path / "sysu/cam1/0001/0001.jpg").unlink()
    assert build_world(tmp_path, SPEC) == total - total // 2 + 1
    assert contents(tmp_path) == contents(world)
    record = json.loads((tmp_path / "world.json").read_text())
    assert record["spec"] == asdict(SPEC) and record["images"] == total


def test_folders_of_another_world_or_data_set_are_refused(world, tmp_path):
    refused("--out", build_world, world, replace(SPEC, seed=4))
    (tmp_path / "sysu").mkdir()
    refused("--out", build_world, tmp_path, SPEC)


def test_worlds_of_different_sizes_share_their_images(world, tmp_path):
    small = WorldSpec(seed=3, paired_ids=1, test_ids=1, external_ids=1, images_per_camera=1, market_images=2)
    build_world(tmp_path, small)
    large = contents(world)
    for path, data in contents(tmp_path).items():
        if path.endswith(".jpg"):
            assert large[path] == data


def test_another_seed_is_another_world(world, tmp_path):
    build_world(tmp_path, WorldSpec(seed=4, paired_ids=1, test_ids=1, external_ids=1, images_per_camera=1))
    mine, other = (Image.open(d / "sysu/cam1/0001/0001.jpg") for d in (world, tmp_path))
    assert not np.array_equal(np.asarray(mine), np.asarray(other))
