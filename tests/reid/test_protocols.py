"""Gallery draws against AGW's loop, and the rules' names and refusals."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from dive_fast.reid.protocols import Protocol, camera_number, read_permutations, trial_galleries
from dive_fast.types import InputError, Sample


def gallery(people=("0007", "0002", "0011"), cameras=(5, 1, 4, 2), each=12):
    samples = [
        Sample(Path(f"cam{c}/{pid}/{n:04d}.jpg"), pid, f"cam{c}") for pid in people for c in cameras
        for n in range(each, 0, -1) if (pid, c) != ("0002", 4)
    ]  # fmt: skip
    random.Random(5).shuffle(samples)
    return samples


def agw(samples, cameras, trial):
    """`process_gallery_sysu` of mangye16/Cross-Modal-Re-ID-baseline, on a listing instead of a disk."""
    random.seed(trial)
    drawn = []
    for pid in sorted({s.pid for s in samples}):
        for camera in cameras:
            files = sorted(str(s.path) for s in samples if s.pid == pid and s.camera == f"cam{camera}")
            if files:
                drawn.append(random.choice(files))
    return drawn


@pytest.mark.parametrize(("search", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_seeded_single_shot_is_agws_draw(search, cameras):
    samples = gallery()
    trials = trial_galleries(samples, Protocol("sysu", search))
    assert len(trials) == 10
    for trial, rows in enumerate(trials):
        assert [str(samples[r].path) for r in rows] == agw(samples, cameras, trial)


def test_drawing_leaves_the_global_generator_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    trial_galleries(gallery(), Protocol("sysu"))
    assert random.random() == expected


def test_multi_shot_takes_ten_or_what_there_is():
    full = trial_galleries(gallery(), Protocol("sysu", shots=10, trials=2))
    assert [len(rows) for rows in full] == [110, 110] and full[0] != full[1]
    assert all(len(set(rows)) == len(rows) for rows in full)
    assert len(trial_galleries(gallery(each=4), Protocol("sysu", shots=10))[0]) == 44


def test_pocket_searches_everything_once():
    samples = gallery()
    assert trial_galleries(samples, Protocol("pocket")) == [list(range(len(samples)))]
    assert Protocol("pocket").facts()["trials"] == 1


def test_official_draw_takes_the_first_numbers_of_the_permutation():
    samples = gallery(cameras=(1, 2))
    tables = {(c, int(p)): np.array([[3, 1, 2], [12, 5, 1]]) for c in (1, 2) for p in ("0002", "0007", "0011")}
    rows = trial_galleries(samples, Protocol("sysu", "indoor", trials=2, draw="official"), tables)
    assert {samples[r].path.stem for r in rows[0]} == {"0003"} and {samples[r].path.stem for r in rows[1]} == {"0012"}
    assert len(rows[0]) == 6
    with pytest.raises(InputError, match="trial 2"):
        trial_galleries(samples, Protocol("sysu", "indoor", trials=3, draw="official"), tables)
    tables[1, 7] = np.array([[40]])
    with pytest.raises(InputError, match="0040"):
        trial_galleries(samples, Protocol("sysu", "indoor", trials=1, draw="official"), tables)
    with pytest.raises(InputError, match="rand_perm_cam"):
        trial_galleries(samples, Protocol("sysu", draw="official"))


def test_permutations_are_read_from_matlabs_cells(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    cells = np.empty((2, 1), object)
    for camera in range(2):
        cells[camera, 0] = np.empty((3, 1), object)
        for person in range(3):
            cells[camera, 0][person, 0] = np.array([[10 * camera + person + 1, 2], [3, 4]])
    cells[1, 0][0, 0] = np.empty((0, 0))
    savemat(tmp_path / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    tables = read_permutations(tmp_path / "rand_perm_cam.mat")
    assert (2, 1) not in tables and len(tables) == 5
    np.testing.assert_array_equal(tables[2, 3], [[13, 2], [3, 4]])


def test_a_broken_permutation_file_is_named(tmp_path):
    pytest.importorskip("scipy")
    (tmp_path / "rand_perm_cam.mat").write_bytes(b"not a mat file")
    with pytest.raises(InputError, match="rand_perm_cam"):
        read_permutations(tmp_path / "rand_perm_cam.mat")


def test_refusals():
    with pytest.raises(InputError, match="empty"):
        trial_galleries([], Protocol())
    with pytest.raises(InputError, match="searched cameras"):
        trial_galleries(gallery(cameras=(4, 5)), Protocol("sysu", "indoor"))
    with pytest.raises(InputError, match="search"):
        Protocol(search="outdoor")
    with pytest.raises(InputError, match="shots"):
        Protocol(shots=0)
    assert camera_number("cam12") == 12
    with pytest.raises(InputError, match="lobby"):
        camera_number("lobby")
