"""MATLAB files that crash their reader, never end, or are no files."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from dive_fast.reid.evaluation import mat
from dive_fast.reid.evaluation.mat import read_mat
from dive_fast.reid.evaluation.protocols import read_permutations
from tests.support.refusals import refused

io = pytest.importorskip("scipy.io")


def crash(*_: object) -> None:
    os.abort()


def sleep(*_: object) -> None:
    time.sleep(600)


@pytest.fixture
def good(tmp_path):
    io.savemat(tmp_path / "good.mat", {"a": np.arange(6).reshape(2, 3), "b": np.ones((1, 4)), "c": "text"})
    return tmp_path / "good.mat"


def test_variables(good):
    found = read_mat(good, ["a", "b", "d"])
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])


def test_a_crash_stays_in_its_process(good, monkeypatch):
    monkeypatch.setattr(mat, "_load", crash)
    refused(r"good\.mat is no readable MATLAB", read_mat, good, ["a"])


def test_reading_that_does_not_end(good, monkeypatch):
    monkeypatch.setattr(mat, "_load", sleep)
    monkeypatch.setattr(mat, "SECONDS", 0.1)
    refused(r"good\.mat is no readable MATLAB.*did not end", read_mat, good, ["a"])


def test_a_small_file_of_a_large_array(tmp_path):
    """200 MB of zeros in a file of 0.2 MB, where 50 MB are allowed."""
    io.savemat(tmp_path / "bomb.mat", {"a": np.zeros((5000, 5000))}, do_compression=True)
    assert (tmp_path / "bomb.mat").stat().st_size < 300_000
    assert read_mat(tmp_path / "bomb.mat", ["a"])["a"].nbytes == 200_000_000
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    share = ((50 << 20) - (mat.MEGABYTES << 20)) // 4
    process = spawn.Process(target=mat._load, args=(sender, str(tmp_path / "bomb.mat"), ["a"], share), daemon=True)
    process.start()
    assert isinstance(receiver.recv(), str)
    process.join()


@pytest.mark.parametrize("name", ["pipe", "folder", "endless", "loop", "nowhere"])
def test_what_is_no_file(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    refused(f"{name} cannot be read", read_mat, tmp_path / name, ["a"])


def test_damaged_anywhere(good):
    whole = good.read_bytes()
    random = np.random.default_rng(0)
    for length in (0, 4, 100, 127, 140, len(whole) - 8):
        good.write_bytes(whole[:length])
        refused("good.mat", read_mat, good, ["a", "b", "c"])
    data = bytearray(whole)
    data[130:160] = random.bytes(30)
    good.write_bytes(data)
    refused("good.mat", read_mat, good, ["a", "b", "c"])


def test_draws_that_are_no_numbers(tmp_path):
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.empty((1, 1), object)
    for draw in (np.array([[np.nan, 1.0]]), "text", np.array([[1j]])):
        cells[0, 0][0, 0] = draw
        io.savemat(tmp_path / "rand_perm_cam.mat", {"rand_perm_cam": cells})
        refused("rand_perm_cam", read_permutations, tmp_path / "rand_perm_cam.mat")
