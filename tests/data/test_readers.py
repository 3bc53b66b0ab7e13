"""Readers on small trees of the real sets' shape; expected values are written down by hand."""

import os
import warnings
from pathlib import Path

import pytest

from dive_fast.data.folder import read_folder
from dive_fast.data.market import read_market
from dive_fast.data.names import canonical_pid, natural_key
from dive_fast.data.sysu import read_ids, read_sysu
from dive_fast.types import InputError
from tests.support.refusals import refused
from tests.support.trees import names, touch, write


def sysu(root: Path, **lists: str) -> Path:
    for split, text in lists.items():
        write(root / f"exp/{split}_id.txt", text)
    return root


@pytest.fixture
def tree(tmp_path) -> Path:
    touch(tmp_path, "cam1/0001/0010.jpg", "cam1/0001/0002.jpg", "cam3/0001/0001.JPG", "cam6/0002/0001.png")
    touch(tmp_path, "cam10/0001/0001.jpg", "cam2/0003/0001.jpg", "cam1/0001/Thumbs.db", "cam1/0001/._0002.jpg")
    return sysu(tmp_path, train="2,1\n", val="3", test="4,5,6,7,8")


def test_sysu_train(tree):
    samples = read_sysu(tree)
    assert names(samples, tree) == [
        "cam1/0001/0002.jpg",
        "cam1/0001/0010.jpg",
        "cam3/0001/0001.JPG",
        "cam6/0002/0001.png",
        "cam10/0001/0001.jpg",
    ]
    assert [(s.pid, s.camera, s.modality, s.source) for s in samples[1:]] == [
        ("0001", "cam1", "rgb", "real"),
        ("0001", "cam3", "ir", "real"),
        ("0002", "cam6", "ir", "real"),
        ("0001", "cam10", "rgb", "real"),
    ]


def test_sysu_numbers_are_read_as_numbers_and_all_needs_no_lists(tmp_path):
    touch(tmp_path, "cam1/0001/2.jpg", "cam1/0001/10.jpg", "cam1/0001/1.jpg")
    assert [s.path.name for s in read_sysu(tmp_path, "all")] == ["1.jpg", "2.jpg", "10.jpg"]


def test_sysu_splits(tree):
    assert names(read_sysu(tree, "val"), tree) == ["cam2/0003/0001.jpg"]
    assert {s.pid for s in read_sysu(tree, "trainval")} == {"0001", "0002", "0003"}
    touch(tree, "cam4/0099/0001.jpg")
    assert {s.pid for s in read_sysu(str(tree), "all")} == {"0001", "0002", "0003", "0099"}
    refused("trainval.*'tset'", read_sysu, tree, "tset")


def test_sysu_reports_identities_without_images(tree):
    touch(tree, "cam1/0005/0001.jpg")
    with pytest.warns(UserWarning, match="4 .* 0004, 0006, 0007 and 1 more"):
        assert names(read_sysu(tree, "test"), tree) == ["cam1/0005/0001.jpg"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_sysu(tree, "trainval")


@pytest.mark.parametrize("text", ["1,2,3", "1, 2 ,3,\n", "1\n2\n3\n", "1,2,\n3\n\n", "0001,0002,0003"])
def test_ids(tmp_path, text):
    (tmp_path / "ids.txt").write_text(text)
    assert read_ids(tmp_path / "ids.txt") == ["0001", "0002", "0003"]


def test_ids_that_are_no_numbers_stay(tmp_path):
    (tmp_path / "ids.txt").write_text("12345, anna b,market-0002")
    assert read_ids(tmp_path / "ids.txt") == ["12345", "anna b", "market-0002"]
    (tmp_path / "ids.txt").write_text("1,../2")
    refused(r"ids\.txt: '\.\./2'", read_ids, tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "no camera folder.*cam1/"),
        (lambda root: (root / "cam1").mkdir(), r"exp/train_id\.txt"),
        (lambda root: touch(root, "cam1/0001/0001.jpg", "exp/train_id.txt"), "no image.*train_id"),
        (lambda root: (root / "exp").mkdir() or touch(root, "camera1/0001/0001.jpg"), "no camera folder"),
        (lambda root: touch(sysu(root, train="7"), "cam1/0001/0001.jpg"), "no image.*train_id"),
    ],
)
def test_sysu_says_what_it_expected(tmp_path, prepare, message):
    prepare(tmp_path)
    refused(message, read_sysu, tmp_path)


def test_sysu_root_itself(tmp_path):
    refused("nowhere.*SYSU", read_sysu, tmp_path / "nowhere")
    refused("a.zip.*SYSU", read_sysu, touch(tmp_path, "a.zip") / "a.zip")


def test_market(tmp_path):
    touch(tmp_path / "bounding_box_train", "0007_c2s3_000451_03.jpg", "0002_c1s1_000776_01.png", "Thumbs.db")
    touch(tmp_path / "bounding_box_train", "-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg")
    samples = read_market(tmp_path)
    assert [(s.path.name, s.pid, s.camera, s.modality) for s in samples] == [
        ("0002_c1s1_000776_01.png", "0002", "cam7", "rgb"),
        ("0007_c2s3_000451_03.jpg", "0007", "cam7", "rgb"),
    ]


def test_market_gallery_keeps_distractors_but_no_junk(tmp_path):
    junk, distractor, person = "-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "1501_c6s4_001877_02.jpg"
    touch(tmp_path / "bounding_box_test", junk, distractor, person)
    assert [s.pid for s in read_market(tmp_path, "gallery", camera="cam9")] == ["0000", "1501"]


def test_market_gt_bbox_warns(tmp_path):
    touch(tmp_path / "gt_bbox", "0001_c1s1_001051_00.jpg")
    with pytest.warns(UserWarning, match="TEST identities"):
        assert len(read_market(tmp_path, "gt_bbox")) == 1


def test_market_errors(tmp_path):
    refused("query.*Market-1501", read_market, tmp_path, "query")
    refused("gt_bbox.*'test'", read_market, tmp_path, "test")
    (tmp_path / "query").mkdir()
    refused("query", read_market, tmp_path, "query")
    touch(tmp_path / "query", "0001_c1s1_001051_00.jpg", "holiday.jpg")
    refused(r"holiday\.jpg.*folder:", read_market, tmp_path, "query")


def test_folder(tmp_path):
    touch(tmp_path, "12/b10.jpg", "12/b9.png", "anna/x.jpeg", ".cache/x.jpg", "12/notes.txt")
    samples = read_folder(tmp_path, "cam8", modality="ir")
    assert [(s.path.name, s.pid, s.camera, s.modality) for s in samples] == [
        ("b9.png", "0012", "cam8", "ir"),
        ("b10.jpg", "0012", "cam8", "ir"),
        ("x.jpeg", "anna", "cam8", "ir"),
    ]


SUFFIXES = ["jpg", "JPG", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "TIFF", "gif", "pgm"]


def test_every_suffix_of_the_image_reader(tmp_path):
    touch(tmp_path, *(f"0001/{number}.{suffix}" for number, suffix in enumerate(SUFFIXES)))
    assert [s.path.suffix[1:] for s in read_folder(tmp_path, "cam1")] == SUFFIXES


def test_files_that_are_not_read_are_counted_and_named(tmp_path):
    touch(tmp_path, "0001/a.jpg", "0001/b.heic", "0001/c.heic", "0001/d.CR2", "0001/deeper/e.jpg", "f.jpg")
    (tmp_path / "0001/g.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "0002").symlink_to("nowhere")
    os.mkfifo(tmp_path / "0001/h.jpg")
    with pytest.warns(UserWarning, match="8 files are not read") as caught:
        assert len(read_folder(tmp_path, "cam1")) == 1
    kinds = (".heic 2", ".cr2 1", "dangling links 2", "folders 1", "images in no folder 1", "pipes and devices 1")
    assert all(kind in str(caught[0].message) for kind in kinds)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda root: read_folder(root, "cam1"), "0001/a.heic"),
        (lambda root: read_sysu(root, "all"), "cam1/0001/a.heic"),
        (read_market, "bounding_box_train/0001_c1s1_001051_00.heic"),
    ],
)
def test_a_set_whose_files_are_all_unread_says_why(tmp_path, read, name):
    touch(tmp_path, name)
    refused(r"\.heic 1", read, tmp_path)


def test_folders_of_drives_and_archives_are_no_people(tmp_path):
    for name in ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"):
        touch(tmp_path, f"{name}/0001/1.jpg", f"0001/{name}/1.jpg", f"{name}/1.jpg")
    touch(tmp_path, "0001/1.jpg", "0001/._1.jpg", "._0001", "0001/Thumbs.db", "0001/desktop.ini", "0001/.DS_Store")
    assert names(read_folder(tmp_path, "cam1"), tmp_path) == ["0001/1.jpg"]


def test_market_suffixes(tmp_path):
    stems = ("0002_c1s1_000451_03.jpg", "0002_c1s1_000452_03.JPG", "0002_c1s1_000453_03.jpeg")
    touch(tmp_path / "bounding_box_train", *stems, "._0002_c1s1_000451_03.jpg")
    assert tuple(s.path.name for s in read_market(tmp_path)) == stems


NAMES = {
    "小明": "小明",
    "anna b": "anna b",
    "Jose\u0301": "Jos\u00e9",
    "Jos\u00e9": "Jos\u00e9",
    "मीरा": "मीरा",
    "a@b": "a@b",
    "O'Brien": "O'Brien",
    "Anna (2)": "Anna (2)",
    "नेहा\u200dराव": "नेहा\u200dराव",
    "7": "0007",
    "x" * 180: "x" * 180,
    "明" * 60: "明" * 60,
}


@pytest.mark.parametrize(("name", "pid"), NAMES.items())
def test_names_of_people(tmp_path, name, pid):
    touch(tmp_path, f"{name}/1.jpg")
    (sample,) = read_folder(tmp_path, "cam1")
    assert (sample.pid, sample.path) == (pid, tmp_path / name / "1.jpg")


def test_names_that_differ_by_case_are_two_people(tmp_path):
    touch(tmp_path, "Anna/1.jpg", "anna/1.jpg")
    assert [s.pid for s in read_folder(tmp_path, "cam1")] == ["Anna", "anna"]


def test_one_name_in_both_normal_forms(tmp_path):
    touch(tmp_path, "Jose\u0301/1.jpg", "Jos\u00e9/1.jpg")
    refused("both mean", read_folder, tmp_path, "cam1")


SIGNS = ("", " anna", "anna ", "anna.", ".anna", "a/b", "a,b", "a\nb", "a\0b", "<anna>", "-", "\u0301a")
LONG = ("x" * 181, "明" * 61, "9" * 5000)


@pytest.mark.parametrize("name", [*SIGNS, "\ufeffanna", "\u202eanna", "\udcffa", *LONG])
def test_names_that_are_refused(name):
    refused("cannot be an identity name", canonical_pid, name, "here")
    with pytest.raises(InputError) as caught:
        canonical_pid(name, "here")
    assert len(str(caught.value)) < 250


def test_natural_order_of_numbers_of_any_length():
    mixed = ["a" + "9" * 5000, "a10", "a9", "a09", "a", "b1"]
    assert sorted(mixed, key=natural_key) == ["a", "a09", "a9", "a10", "a" + "9" * 5000, "b1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "ids.txt").write_text("1,2\r\n小明\r\n", encoding=encoding)
    assert read_ids(tmp_path / "ids.txt") == ["0001", "0002", "小明"]


def test_lists_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "loop", "endless"):
        refused(rf"{name}\.txt cannot be read", read_ids, tmp_path / f"{name}.txt")


def test_folder_errors(tmp_path):
    refused("ROOT/<identity>", read_folder, tmp_path, "cam1")
    touch(tmp_path, "12/a.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="empty"):
        read_folder(tmp_path, "cam1")
    touch(tmp_path, "0012/a.jpg")
    refused("0012", read_folder, tmp_path, "cam1")
    touch(tmp_path / "other", "a,b/a.jpg")
    refused("'a,b'", read_folder, tmp_path / "other", "cam1")
