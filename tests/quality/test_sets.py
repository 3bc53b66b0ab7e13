"""Distances between sets: which images are compared, by which features."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.data.sets import read_set
from dive_fast.quality import sets
from dive_fast.quality.config import CompareConfig
from dive_fast.quality.distances import frechet, kid, moments
from dive_fast.quality.extractor import ReidFeatures, open_script
from dive_fast.quality.sets import compare_sets, table
from dive_fast.synth.manifest import read_pairs
from dive_fast.types import DiveError
from tests.support.dataset import drop
from tests.support.quality import PIDS, make_dataset
from tests.support.refusals import refused


@dataclass
class Recorder:
    """Features are three numbers of the file's name; remembers what it was asked for."""

    metadata: dict = field(default_factory=lambda: {"kind": "fake"})
    asked: list = field(default_factory=list)

    def features(self, wanted, progress=None):
        self.asked.append(list(wanted))
        return self.of(wanted)

    @staticmethod
    def of(wanted):
        seeds = [[int(s.pid), int(s.camera[3:]), int(s.path.stem), s.source == "real"] for s in wanted]
        return np.array([np.random.default_rng(seed).normal(size=3) for seed in seeds], np.float32)


def test_rows_are_cameras_and_all_of_a_modality(dataset, real):
    rows, lacking = compare_sets(dataset, [real], Recorder(), progress=False)
    cameras = ("cam1", "rgb"), ("cam2", "rgb"), ("cam3", "ir"), ("cam6", "ir")
    expected = [*((*camera, 10, 15) for camera in cameras), ("all", "rgb", 20, 30), ("all", "ir", 20, 30)]
    assert [(row.camera, row.side, row.made, row.real) for row in rows] == expected
    assert not lacking
    by_camera = [
        [Recorder.of([s for s in side if s.camera == camera]) for camera in ("cam3", "cam6")]
        for side in (read_pairs(dataset), read_set(real))
    ]
    made, known = (np.concatenate(parts) for parts in by_camera)
    assert rows[5].fid == pytest.approx(frechet(moments(made), moments(known)))
    assert rows[5].kid == kid(made, known).value and rows[5].kid_error == kid(made, known).error
    stored = json.loads((dataset / "scores" / "sets.json").read_text())
    assert [row["fid"] for row in stored["rows"]] == [row.fid for row in rows]
    assert stored["extractor"] == {"kind": "fake"}


def test_the_floor_is_between_different_people(dataset, real, monkeypatch):
    halves, real_halves = [], sets._halves
    monkeypatch.setattr(sets, "_halves", lambda *a: halves.append((a[1], real_halves(*a))) or halves[-1][1])
    rows, _ = compare_sets(dataset, [real], Recorder(), progress=False)
    pids, (first, second) = halves[0]
    features = Recorder.of([s for s in read_set(real) if s.camera == "cam1"])
    owner = {tuple(row): pid for row, pid in zip(features.tolist(), pids, strict=True)}
    people = [{owner[tuple(row)] for row in half.tolist()} for half in (first, second)]
    assert not people[0] & people[1] and people[0] | people[1] == set(PIDS)
    assert rows[0].real_kid == kid(first, second).value


def test_images_are_drawn_where_there_are_many_and_dropped_ones_left_out(dataset, real):
    few, again, other = (Recorder() for _ in range(3))
    for recorder, seed in ((few, 0), (again, 0), (other, 1)):
        rows, _ = compare_sets(dataset, [real], recorder, CompareConfig(most=6, seed=seed), progress=False)
        assert [(row.made, row.real) for row in rows[:4]] == [(6, 6)] * 4
    assert few.asked == again.asked != other.asked
    gone = [s for s in read_pairs(dataset) if s.pid == "0001"]
    drop(dataset, [(f"0001-{n:05d}-{c}", []) for n, c in enumerate(("cam3", "cam6", "cam3", "cam6"))])
    kept = Recorder()
    rows, _ = compare_sets(dataset, [real], kept, CompareConfig(kept_only=True), progress=False)
    assert rows[0].made == 8 and not any(s in gone for asked in kept.asked for s in asked)


def test_cameras_without_real_images_are_named(dataset, only_rgb):
    rows, lacking = compare_sets(dataset, [replace(only_rgb, camera="cam1")], Recorder(), progress=False)
    assert [row.camera for row in rows] == ["cam1"] and lacking == ["cam2", "cam3", "cam6"]
    refused("cam1, cam2, cam3, cam6", compare_sets, dataset, [only_rgb], Recorder(), progress=False)


def test_the_models_features_and_the_table(tmp_path, real, extractor):
    dataset = make_dataset(tmp_path / "pairs", pids=PIDS[:4])
    rows, _ = compare_sets(dataset, [real], ReidFeatures(extractor), progress=False)
    found = ReidFeatures(extractor).features(read_pairs(dataset))
    np.testing.assert_allclose(np.square(found).mean(1), 1, rtol=1e-5)  # entries of about 1, whatever D
    assert rows[0].dims == extractor.dims and rows[0].rank_deficient
    text = table(rows)
    assert f"{rows[0].fid:.2f}*" in text and "FID is biased" in text and "full rank" in text
    assert f"{1000 * rows[0].kid:.2f}" in text.splitlines()[1]


class Means(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


class Flat(torch.nn.Module):
    def forward(self, x):
        return x.mean()


def test_a_script_is_an_extractor(tmp_path, real, dataset):
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    script = open_script(tmp_path / "means.pt", 64, 32, batch=7)
    photos = read_set(real)[:10]
    expected = [np.asarray(Image.open(s.path).convert("RGB"), np.float64) / 255 for s in photos]
    found = script.features(photos)
    np.testing.assert_allclose(found[:, :3], [image.mean((0, 1)) for image in expected], atol=1e-5)
    np.testing.assert_allclose(found[:, 3:], [image.max((0, 1)) for image in expected], atol=1e-5)
    assert compare_sets(dataset, [real], script, progress=False)[0][0].dims == 6
    torch.jit.script(Flat()).save(str(tmp_path / "flat.pt"))
    refused("must give .B, D.", open_script(tmp_path / "flat.pt", 64, 32).features, photos, error=DiveError)
    (tmp_path / "bad.pt").write_bytes(b"no script")
    refused("no TorchScript file", open_script, tmp_path / "bad.pt", 64, 32)
