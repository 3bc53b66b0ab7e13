"""What layouts call images, decided without any file; trees that are written and read back are in tests/merge."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import numpy as np
import pytest

from dive_fast.data.layout_arrays import array_writer
from dive_fast.data.layout_heldout import held_out
from dive_fast.data.layout_names import Naming
from dive_fast.data.layout_trees import train_and_val
from dive_fast.data.layouts import LAYOUTS, NATIVE, labels_of, naming
from dive_fast.data.sets import SetSpec
from dive_fast.types import DiveError
from tests.support.refusals import refused
from tests.support.trees import touch, write


def names_of(layout: str, trial: int = 1) -> Naming:
    names = naming(layout, trial)
    assert names is not None
    return names


def test_a_layout_that_is_not_written_is_refused() -> None:
    assert tuple(NATIVE) == LAYOUTS
    refused("sysu.*'cuhk03'", naming, "cuhk03")


def test_new_names_follow_kept_ones() -> None:
    sysu = names_of("sysu")
    assert sysu.keep("cam1/0001/0041.JPG", "0001", "cam1") == "cam1/0001/0041.JPG"
    assert [sysu.add("0001", camera, "rgb", ".png") for camera in ("cam1", "cam2", "cam1")] == [
        "cam1/0001/0042.png",
        "cam2/0001/0001.png",
        "cam1/0001/0043.png",
    ]
    refused(r"cam1/0001/0041\.JPG", sysu.keep, "cam1/1/0041.JPG", "0001", "cam1")
    regdb = names_of("regdb", 4)
    regdb.keep("Visible/1/new_v_00001_0001.png", "0001", "x")
    assert regdb.add("0001", "cam1", "rgb", ".PNG") == "Visible/1/new_v_00002_0001.png"
    assert regdb.keep("Thermal/1/a.bmp", "10001", "x") == "Thermal/10001/a.bmp"
    refused("space", regdb.keep, "Thermal/1/a b.bmp", "0001", "x")


@pytest.mark.parametrize(
    ("layout", "people", "camera", "modality", "wrong", "caution"),
    [
        ("sysu", "0001", "cam3", "ir", "", ""),
        ("sysu", "10001", "cam7", "rgb", "", "not four digits.*reads cam1 to cam6"),
        ("sysu", "0001", "regdb-thermal2", "ir", "cannot be ir in a SYSU tree.*regdb-thermal2=cam6", ""),
        ("sysu", "0001", "cam3", "rgb", "cannot be rgb.*cam3=cam1", ""),
        ("regdb", "anna b", "cam1", "rgb", "a name with a space cannot stand in a list", ""),
        ("llcm", "0001", "front", "rgb", "does not end in a number", ""),
        ("market", "1501", "cam6", "ir", "", ""),
        ("market", "1502", "cam7", "rgb", "", r"Market1501 classes stop at .*\(1502, cam7\)"),
        ("market", "anna", "cam10", "rgb", "does not end in one digit.*anna: people are numbers", ""),
    ],
)
def test_problems(layout: str, people: str, camera: str, modality: str, wrong: str, caution: str) -> None:
    found = names_of(layout).problems([people], [(camera, modality)])  # type: ignore[list-item]
    errors, cautions = ("; ".join(texts) for texts in found)
    if wrong:  # what else there is to say then does not matter
        assert re.search(wrong, errors)
    else:
        assert errors == ""
        assert re.search(caution, cautions) if caution else cautions == ""


def test_labels_and_lists() -> None:
    assert labels_of(["10001", "0002", "0002", "anna", "0010"]) == {"0002": 0, "0010": 1, "10001": 2, "anna": 3}
    assert train_and_val(["0003", "0001", "0002"], ["0002", "0009"]) == (["0001", "0003"], ["0002"])
    assert train_and_val(["0003", "0001"], []) == (["0001"], ["0003"])
    assert train_and_val(["0003"], ["0003"]) == ([], ["0003"])


def test_held_out_people(tmp_path: Path) -> None:
    assert held_out(SetSpec("folder", tmp_path)) is None
    assert held_out(SetSpec("sysu", tmp_path)) is None
    touch(tmp_path, "query/0003_c1s1_000001_00.jpg", "bounding_box_test/-1_c1s1_000001_00.jpg")
    touch(tmp_path, "bounding_box_test/0000_c1s1_000001_00.jpg", "bounding_box_test/0005_c1s1_000001_00.jpg")
    half = held_out(SetSpec("market", tmp_path, prefix="1"))
    assert half is not None
    assert half.people == {"10003", "10005"}
    assert len(half.images) == 4
    write(tmp_path / "exp/test_id.txt", "6")
    touch(tmp_path, "cam1/0006/0001.jpg", "exp/rand_perm_cam.mat")
    half = held_out(SetSpec("sysu", tmp_path))
    assert half is not None
    assert [path.name for path in half.list_files] == ["test_id.txt", "rand_perm_cam.mat"]


def test_arrays_appear_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    with array_writer(tmp_path, {"rgb": 2, "ir": 1}, (4, 2)) as add:
        rows = [add("rgb", pixels, 5), add("ir", 255 - pixels, 2), add("rgb", pixels[::-1], 3)]
        assert not list(tmp_path.glob("*.npy"))
        refused("rgb", add, "rgb", pixels, 0, error=DiveError)
        message = r"uint8 \(4, 2, 3\), got uint8 \(2, 4, 3\)"
        refused(message, add, "rgb", pixels.transpose(1, 0, 2), 0, error=DiveError)
    assert rows == [0, 0, 1]
    images, labels = np.load(tmp_path / "train_rgb_resized_img.npy"), np.load(tmp_path / "train_rgb_resized_label.npy")
    assert (images == np.stack([pixels, pixels[::-1]])).all()
    assert (labels.dtype, labels.tolist()) == (np.int64, [5, 3])
    other = tmp_path / "b"
    with pytest.raises(DiveError, match="1, 'ir': 0}"), array_writer(other, {"rgb": 2, "ir": 0}, (4, 2)) as add:
        add("rgb", pixels, 0)
    with pytest.raises(DiveError, match="disk is full"), array_writer(other, {"rgb": 1, "ir": 0}, (4, 2)):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(other.iterdir()) == []
