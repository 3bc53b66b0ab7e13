"""Gallery draws against AGW's loop, and the rules' names and refusals."""

import random
from pathlib import Path

import numpy as np
import pytest

from dive_fast.reid.evaluation.protocols import Protocol, Trial, camera_number, describe, draw_trials, read_permutations
from dive_fast.types import Sample
from tests.support.refusals import refused


def gallery(people=("0007", "0002", "0011"), cameras=(5, 1, 4, 2), each=12):
    samples = [
        Sample(Path(f"cam{c}/{pid}/{n:04d}.jpg"), pid, f"cam{c}")
        for pid in people
        for c in cameras
        for n in range(each, 0, -1)
        if (pid, c) != ("0002", 4)
    ]
    random.Random(5).shuffle(samples)
    return samples


def drawn(samples, protocol, tables=None):
    """Rows of each trial, from the side that the protocol draws."""
    return [getattr(trial, protocol.drawn_side) for trial in draw_trials(samples, samples, protocol, tables)]


def drawn_by_loop(samples, cameras, trial):
    """`process_gallery_sysu` of mangye16/Cross-Modal-Re-ID-baseline, and its LLCM version, on a listing, not a disk."""
    random.seed(trial)
    found = []
    for pid in sorted({s.pid for s in samples}):
        for camera in cameras:
            files = sorted(str(s.path) for s in samples if s.pid == pid and s.camera == camera)
            if files:
                found.append(random.choice(files))
    return found


@pytest.mark.parametrize(("search", "cameras"), [("all", (1, 2, 4, 5)), ("indoor", (1, 2))])
def test_seeded_single_shot_is_agws_draw(search, cameras):
    samples = gallery()
    trials = drawn(samples, Protocol("sysu", search))
    assert len(trials) == 10
    for trial, rows in enumerate(trials):
        assert [str(samples[r].path) for r in rows] == drawn_by_loop(samples, [f"cam{c}" for c in cameras], trial)


def test_drawing_leaves_the_global_generator_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    drawn(gallery(), Protocol("sysu"))
    assert random.random() == expected


def test_multi_shot_takes_ten_or_what_there_is():
    full = drawn(gallery(), Protocol("sysu", shots=10, trials=2))
    assert [len(rows) for rows in full] == [110, 110] and full[0] != full[1]
    assert all(len(set(rows)) == len(rows) for rows in full)
    assert len(drawn(gallery(each=4), Protocol("sysu", shots=10))[0]) == 44


def test_pocket_searches_everything_once():
    samples = gallery()
    assert draw_trials(samples, samples, Protocol("pocket")) == [Trial()]
    assert Protocol("pocket").metadata()["trials"] == 1


def test_official_draw_takes_the_first_numbers_of_the_permutation():
    samples = gallery(cameras=(1, 2))
    tables = {(c, int(p)): np.array([[3, 1, 2], [12, 5, 1]]) for c in (1, 2) for p in ("0002", "0007", "0011")}
    rows = drawn(samples, Protocol("sysu", "indoor", trials=2, draw="official"), tables)
    assert {samples[r].path.stem for r in rows[0]} == {"0003"} and {samples[r].path.stem for r in rows[1]} == {"0012"}
    assert len(rows[0]) == 6
    refused("trial 2", drawn, samples, Protocol("sysu", "indoor", trials=3, draw="official"), tables)
    tables[1, 7] = np.array([[40]])
    refused("0040", drawn, samples, Protocol("sysu", "indoor", trials=1, draw="official"), tables)
    refused("rand_perm_cam", drawn, samples, Protocol("sysu", draw="official"))


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
    (tmp_path / "rand_perm_cam.mat").write_bytes(b"not a mat file")
    refused("rand_perm_cam", read_permutations, tmp_path / "rand_perm_cam.mat")


def test_refusals():
    refused("searched cameras", drawn, gallery(cameras=(4, 5)), Protocol("sysu", "indoor"))
    samples = [Sample(Path("cam1/0001/front.jpg"), "0001", "cam1")]
    refused("'front'", drawn, samples, Protocol("sysu", trials=1, draw="official"), {(1, 1): np.array([[1]])})
    assert camera_number("cam12") == 12
    refused("lobby", camera_number, "lobby")


def llcm(people=("0003", "0001"), each=5):
    """Both modalities by cameras 1, 2 and 9; camera 3 films in visible light only."""
    samples = [
        Sample(Path(f"test_{kind}/cam{c}/{pid}/{pid}_c{c:02d}_f{n}.jpg"), pid, f"llcm-{kind}{c}", modality=modality)
        for kind, modality in (("vis", "rgb"), ("nir", "ir"))
        for c in (9, 1, 3, 2)
        for pid in people
        for n in range(each, 0, -1)
        if (kind, c) != ("nir", 3)
    ]
    random.Random(6).shuffle(samples)
    return [s for s in samples if s.modality == "ir"], [s for s in samples if s.modality == "rgb"]


@pytest.mark.parametrize(
    ("direction", "mode", "kind", "drawn_side", "asks"),
    [
        ("ir-to-visible", "standard", "vis", "gallery", "ir"),
        ("visible-to-ir", "standard", "nir", "gallery", "rgb"),
        ("visible-to-ir", "legacy", "nir", "query", "ir"),
    ],
)
def test_llcm_draws(direction, mode, kind, drawn_side, asks):
    protocol = Protocol("llcm", direction=direction, mode=mode)
    assert (protocol.drawn_side, protocol.query_modality, protocol.rule) == (drawn_side, asks, "llcm")
    infrared, visible = llcm()
    query, gallery = (infrared, visible) if asks == "ir" else (visible, infrared)
    samples = query if drawn_side == "query" else gallery
    trials = [getattr(trial, drawn_side) for trial in draw_trials(query, gallery, protocol)]
    cameras = (1, 2, 3, 9) if kind == "vis" else (1, 2, 9)
    assert len(trials) == 10 and len(trials[0]) == 2 * len(cameras)
    for trial, rows in enumerate(trials):
        expected = drawn_by_loop(samples, [f"llcm-{kind}{c}" for c in cameras], trial)
        assert [str(samples[r].path) for r in rows] == expected


def test_regdb_searches_all_of_its_trial():
    samples = [Sample(Path(f"Visible/{p}/{n}.bmp"), f"{p:04d}", "regdb-visible1") for p in (3, 9) for n in range(4)]
    assert draw_trials(samples, samples, Protocol("regdb", trial=7)) == [Trial()]
    assert Protocol("regdb", trial=7).metadata()["trial"] == 7 and Protocol("regdb").rule == "regdb"


def test_facts_say_what_ran_and_what_it_was_published_as():
    found = Protocol("sysu", "indoor", shots=10, draw="official").metadata()
    assert found.pop("mode") == "standard" and found.pop("direction") == "ir-to-visible"
    assert found == {"protocol": "sysu", "search": "indoor", "shots": 10, "trials": 10, "draw": "official"}
    legacy = Protocol("llcm", direction="visible-to-ir", mode="legacy")
    assert legacy.metadata()["direction"] == "ir-to-visible" and legacy.metadata()["published_as"] == "visible-to-ir"
    assert describe(legacy.metadata()) == (
        "protocol llcm (all search, shots 1 query, whole gallery, trials 10, draw seeded), infrared to visible, mode legacy "
        "(published as visible to infrared)"
    )


def test_official_multi_shot_is_camera_by_camera_then_person_by_person():
    samples = gallery(people=("0011", "0002"), cameras=(2, 1))
    numbers = np.array([[4, 2, 9, 1, 3, 5, 6, 7, 8, 10, 11, 12], np.arange(12, 0, -1)])
    tables = {(c, int(p)): numbers for c in (1, 2) for p in ("0002", "0011")}
    rows = drawn(samples, Protocol("sysu", "indoor", shots=10, trials=2, draw="official"), tables)
    expected = [f"cam{c}/{p}/{n:04d}.jpg" for c in (1, 2) for p in ("0002", "0011") for n in numbers[1][:10]]
    assert [samples[r].path.as_posix() for r in rows[1]] == expected
