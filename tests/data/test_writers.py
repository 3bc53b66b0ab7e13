"""The SYSU tree writer: names that readers read back, and nothing ever replaced."""

import pytest

from dive_fast.data.sysu import read_sysu
from dive_fast.data.writers import new_path, sysu_name, write_ids
from tests.support.refusals import refused
from tests.support.trees import names, photo, touch


def test_written_tree_is_read_back(tmp_path):
    for camera, pid, number in [("cam1", "0002", 1), ("cam3", "0010", 12), ("cam6", "0002", 10000)]:
        photo(new_path(tmp_path, sysu_name(camera, pid, number)))
    write_ids(tmp_path, train=["0010", "0002"], val=[])
    assert (tmp_path / "exp/train_id.txt").read_text() == "2,10\n"
    assert not (tmp_path / "exp/test_id.txt").exists()
    assert names(read_sysu(tmp_path), tmp_path) == ["cam1/0002/0001.jpg", "cam3/0010/0012.jpg", "cam6/0002/10000.jpg"]


def test_lists_are_what_the_agw_family_reads(tmp_path):
    """As its pre_process_sysu.py does."""
    write_ids(tmp_path, train=["0534", "0533", "12345", "0533"])
    (ids,) = (tmp_path / "exp/train_id.txt").read_text().splitlines()
    assert [f"{int(x):04d}" for x in ids.split(",")] == ["0533", "0534", "12345"]


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "cam1/0001/0001.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"real")
    refused(r"0001\.png exists", new_path, tmp_path, "cam1/0001/0001.png")
    assert path.read_bytes() == b"real"
    (path.parent / "0002.png").symlink_to("nowhere")
    refused("exists", new_path, tmp_path, "cam1/0001/0002.png")


def test_nothing_outside_the_tree(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out/cam1").mkdir(parents=True)
    (tmp_path / "out/cam1/0001").symlink_to(tmp_path / "real")
    refused("out of .*out", new_path, tmp_path / "out", "cam1/0001/0001.jpg")
    refused("out of .*out", new_path, tmp_path / "out", "../elsewhere.jpg")


@pytest.mark.parametrize(
    ("camera", "pid", "number", "suffix", "message"),
    [
        ("7", "0001", 1, ".jpg", "camera '7'"),
        ("cam1/..", "0001", 1, ".jpg", "cam1/"),
        ("cam1", "12", 1, ".jpg", "'0012'"),
        ("cam1", "..", 1, ".jpg", "identity"),
        ("cam1", "a/b", 1, ".jpg", "identity"),
        ("cam1", "", 1, ".jpg", "identity"),
        ("cam1", "0001", 0, ".jpg", "number 0"),
        ("cam1", "0001", 1, ".txt", "suffix '.txt'"),
    ],
)
def test_names_that_no_reader_would_find(camera, pid, number, suffix, message):
    refused(message, sysu_name, camera, pid, number, suffix)


def test_lists_are_written_once(tmp_path):
    write_ids(tmp_path, train=["0001", "0002"], test=["0003"])
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").iterdir()}
    write_ids(tmp_path, train=["0002", "0001"], test=["0003"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").iterdir()} == written
    refused(r"train_id\.txt", write_ids, tmp_path, train=["0001", "0002", "0003"])
    assert (tmp_path / "exp/train_id.txt").read_text() == "1,2\n"


def test_names_that_only_this_project_reads(tmp_path):
    with pytest.warns(UserWarning, match="anna"):
        write_ids(tmp_path, train=["anna", "0002"])
    touch(tmp_path, "cam1/anna/0001.jpg", "cam1/0002/0001.jpg")
    assert [s.pid for s in read_sysu(tmp_path)] == ["0002", "anna"]
