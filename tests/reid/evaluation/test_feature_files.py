"""Features and distances in and out: what other code reads, what it may send, and what is refused."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dive_fast.reid.evaluation.evaluate import Extracted
from dive_fast.reid.evaluation.feature_files import KEYS, check_target, read_features, write_features
from dive_fast.reid.evaluation.interop import aligned, score_feature_file
from dive_fast.reid.evaluation.metrics import evaluate
from dive_fast.reid.evaluation.protocols import Protocol, draw_trials
from dive_fast.reid.evaluation.rerank import RerankConfig, Reranked
from dive_fast.types import Sample
from tests.support.refusals import refused

scipy_io = pytest.importorskip("scipy.io")


def world(people=("0007", "0002", "0011"), each=3):
    """SYSU-like names on no files at all, in the readers' order, with features of our own."""
    root = Path("root")

    def side(cameras, modality):
        return [
            Sample(root / f"cam{c}" / pid / f"{n:04d}.jpg", pid, f"cam{c}", modality=modality)
            for c in cameras
            for pid in sorted(people)
            for n in range(1, each + 1)
        ]

    query, gallery = side((3, 6), "ir"), side((1, 2, 4, 5), "rgb")
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(len(samples), 8)).astype(np.float32) for samples in (query, gallery)]
    units = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in features)
    return query, gallery, Extracted(*units, "0" * 64), root


QUERY, GALLERY, FEATURES, ROOT = world()
DISTANCES = 1 - FEATURES.query @ FEATURES.gallery.T
PIDS = [np.array([int(s.pid) for s in side]) for side in (QUERY, GALLERY)]
CAMERAS = [np.array([int(s.camera[3:]) for s in side]) for side in (QUERY, GALLERY)]


def score(found, kind="features", protocol=Protocol("sysu"), **options):  # noqa: B008
    return score_feature_file(found, kind, protocol, dataset="x", **options)


@pytest.mark.parametrize("target", ["out.mat", "folder"])
def test_what_is_written_is_read_back(tmp_path, target):
    write_features(tmp_path / target, QUERY, GALLERY, FEATURES, ROOT, {"dataset": "toy"})
    found = read_features(tmp_path / target)
    for side, samples, cameras in zip(("query", "gallery"), (QUERY, GALLERY), CAMERAS, strict=True):
        np.testing.assert_array_equal(found.arrays[f"{side}_f"], getattr(FEATURES, side))
        assert found.arrays[f"{side}_label"].tolist() == [s.pid for s in samples]
        assert found.arrays[f"{side}_cam"].tolist() == cameras.tolist()
        assert found.arrays[f"{side}_name"].tolist() == [s.path.relative_to(ROOT).as_posix() for s in samples]
    np.testing.assert_allclose(found.arrays["distance"], DISTANCES, atol=1e-6)


def test_mat_is_what_the_agw_family_reads(tmp_path):
    write_features(tmp_path / "out.mat", QUERY, GALLERY, FEATURES, ROOT, {})
    found = scipy_io.loadmat(tmp_path / "out.mat")
    assert found["query_f"].shape == (18, 8) and found["gallery_f"].dtype == np.float32
    for name, ids, cams in zip(("query", "gallery"), PIDS, CAMERAS, strict=True):
        np.testing.assert_array_equal(found[f"{name}_label"][0], ids)
        np.testing.assert_array_equal(found[f"{name}_cam"][0], cams)


def test_folder_holds_plain_arrays_and_a_record(tmp_path):
    query, gallery, features, root = world(people=("a", "b c"))
    write_features(tmp_path / "out", query, gallery, features, root, {"dataset": "toy"})
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*(f"{k}.npy" for k in KEYS), "exchange.json"}
    names = np.load(tmp_path / "out" / "query_label.npy")
    assert names.dtype.kind == "U" and set(names) == {"a", "b c"}
    write_features(tmp_path / "out.mat", query, gallery, features, root, {})
    for found in (read_features(tmp_path / "out"), read_features(tmp_path / "out.mat")):
        assert found.labels().query_ids.tolist() == [s.pid for s in query]
        aligned(found, query, gallery, root)


def theirs(folder, features=FEATURES, **changes):
    """What the AGW family's test code saves, as MATLAB's doubles, and what is read of it; None leaves a field out."""
    content = {}
    for side, ids, cams in zip(("query", "gallery"), PIDS, CAMERAS, strict=True):
        content |= {f"{side}_f": getattr(features, side), f"{side}_label": ids.astype(float), f"{side}_cam": cams}
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    scipy_io.savemat(folder / "f.mat", content)
    return read_features(folder / "f.mat")


def test_features_of_other_code_as_given(tmp_path):
    scaled = replace(FEATURES, query=5 * FEATURES.query)  # cosine does not care
    found = theirs(tmp_path, scaled)
    result = score(found)
    assert result.map == pytest.approx(100 * evaluate(DISTANCES, *PIDS, *CAMERAS).map)
    assert (result.source, result.checkpoint) == ("features", found.sha256)
    assert (result.protocol["draw"], result.protocol["trials"], result.gallery) == ("as given", 1, 36)
    assert "draw as given" in result.describe() and "features " + found.sha256[:12] in result.describe()


@pytest.mark.parametrize("scale", [1e30, 1e-30, 3e38, np.float64(1e300), np.float64(1e-300)])
def test_features_of_any_size_have_the_same_directions(tmp_path, scale):
    scaled = FEATURES.query.astype(np.float64) / np.abs(FEATURES.query).max() * scale
    kind = np.float64 if isinstance(scale, np.float64) else np.float32
    (tmp_path / "f").mkdir()
    for side, values in (("query", scaled.astype(kind)), ("gallery", FEATURES.gallery)):
        np.save(tmp_path / "f" / f"{side}_f.npy", values)
    query, _ = read_features(tmp_path / "f").unit_features()
    np.testing.assert_allclose(query, FEATURES.query, rtol=0, atol=1e-6)


def test_features_are_drawn_from_under_a_protocol(tmp_path):
    protocol = Protocol("sysu", trials=4)
    result = score(theirs(tmp_path), protocol=protocol, sides=(QUERY, GALLERY), root=ROOT)
    maps = [
        100 * evaluate(DISTANCES[:, rows], PIDS[0], PIDS[1][rows], CAMERAS[0], CAMERAS[1][rows]).map
        for rows in (trial.gallery for trial in draw_trials(QUERY, GALLERY, protocol))
    ]
    np.testing.assert_allclose(result.per_trial["map"], maps)
    assert result.protocol == protocol.metadata()


def test_reranking_of_other_code_s_features(tmp_path):
    config = RerankConfig(5, 2)
    result = score(theirs(tmp_path), protocol=Protocol("regdb"), rerank=config)
    distances = Reranked(FEATURES.query, FEATURES.gallery, config).rows(slice(None))
    assert result.map == pytest.approx(100 * evaluate(distances, *PIDS, protocol="regdb").map)


def test_distances_of_other_code(tmp_path):
    distances = np.random.default_rng(1).random((18, 36))
    np.save(tmp_path / "d.npy", distances)
    found, sides = read_features(tmp_path / "d.npy"), (QUERY, GALLERY)
    result = score(found, "distances", Protocol(), sides=sides, root=ROOT)
    assert result.map == pytest.approx(100 * evaluate(distances, *PIDS, *CAMERAS).map)
    assert result.source == "distances"
    refused("query_label", score, found, "distances", Protocol())
    refused("give --features", score, found, "distances", Protocol(), sides=sides, rerank=RerankConfig())
    refused("query_f", score, found, "features", Protocol(), sides=sides)


def test_named_files_may_stand_in_any_order(tmp_path):
    order = np.random.default_rng(2).permutation(18), np.random.default_rng(3).permutation(36)
    shuffled = Extracted(FEATURES.query[order[0]], FEATURES.gallery[order[1]], "")
    sides = [[samples[i] for i in rows] for samples, rows in zip((QUERY, GALLERY), order, strict=True)]
    write_features(tmp_path / "f.mat", *sides, shuffled, ROOT, {})
    got = aligned(read_features(tmp_path / "f.mat"), QUERY, GALLERY, ROOT)
    np.testing.assert_array_equal(got.arrays["query_f"], FEATURES.query)
    np.testing.assert_array_equal(got.arrays["gallery_f"], FEATURES.gallery)
    np.testing.assert_allclose(got.arrays["distance"], DISTANCES, atol=1e-6)
    assert got.arrays["query_label"].tolist() == [s.pid for s in QUERY]
    other = [replace(QUERY[0], path=ROOT / "cam3/0002/0099.jpg"), *QUERY[1:]]
    refused(r"1 .*cam3/0002/0099\.jpg", aligned, read_features(tmp_path / "f.mat"), other, GALLERY, ROOT)


def test_other_labels_that_stand_for_one_person_each_are_fine(tmp_path):
    """RegDB's lists count people anew in every trial."""
    anew = {"query_label": PIDS[0] // 4, "gallery_label": PIDS[1] // 4}  # 0, 1 and 2 for 2, 7 and 11
    aligned(theirs(tmp_path, **anew), QUERY, GALLERY, ROOT)
    anew["gallery_label"] = np.roll(anew["gallery_label"], 1)
    refused("gallery_label", aligned, theirs(tmp_path, **anew), QUERY, GALLERY, ROOT)


def test_other_cameras_are_told(tmp_path):
    found = theirs(tmp_path, query_cam=np.roll(CAMERAS[0], 9))
    refused("query_cam says 6 for row 0", aligned, found, QUERY, GALLERY, ROOT)
    refused("18 query .* 17", aligned, found, QUERY[1:], GALLERY, ROOT)


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("query_f", np.ones((18, 7)), "query_f has 7 .*gallery_f 8"),
        ("query_f", np.full((18, 8), np.nan), "query_f .*NaN.* 0 to 17"),
        ("query_f", np.full((18, 8), np.inf), "query_f .*infinity"),
        ("query_f", np.ones((18, 2, 4)), r"query_f .*float64.* \[18, 2, 4\]"),
        ("query_label", np.ones(17), "query_f 18, query_label 17, query_cam 18"),
        ("query_label", np.full(18, 1.5), "query_label .*float64"),
        ("query_label", np.full(18, -1), "query_label .*below 0"),
        ("query_cam", np.ones((18, 2)), r"query_cam .*\[18, 2\]"),
        ("query_cam", np.array(["a"] * 18), "query_cam .*U1"),
        ("distance", np.ones((18, 35)), r"gallery_cam 36, distance \(columns\) 35"),
        ("distance", np.full((18, 36), np.nan), "distance .*NaN.* 0 to 17"),
    ],
)
def test_bad_contents_are_named(tmp_path, key, array, message):
    refused(message, theirs, tmp_path, **{key: array})


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("query_label", None, "query_label"),
        ("gallery_cam", None, "gallery_cam"),
        ("query_f", np.zeros((18, 8)), "query_f .*zeros"),
    ],
)
def test_missing_lists_and_features_without_a_direction_are_named(tmp_path, key, array, message):
    refused(message, score, theirs(tmp_path, **{key: array}))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_untrusted_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.mat").write_bytes(b"not a matlab file")
    (tmp_path / "v73.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 64)
    np.save(tmp_path / "objects.npy", np.array([Bomb()], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Bomb()))
    stream = io.BytesIO()
    np.save(stream, np.zeros((100, 100)))
    (tmp_path / "short.npy").write_bytes(stream.getvalue()[:-8])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    for name in ["noise.mat", "v73.mat", "objects.npy", "pickle.npy", "short.npy", "empty", "text.txt", "nowhere"]:
        refused(name, read_features, tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_targets(tmp_path):
    check_target(tmp_path / "new.mat")
    check_target(tmp_path / "new")
    for bad in ("one.npy", "one.npz"):
        refused(bad, check_target, tmp_path / bad)
