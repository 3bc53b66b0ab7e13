"""Scoring a dataset: the numbers, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dive_fast.data.sets import SetSpec, read_set
from dive_fast.io import locked, write_json
from dive_fast.quality import score
from dive_fast.quality.config import ScoreConfig
from dive_fast.quality.dataset import read_shard, shard_numbers
from dive_fast.quality.reid_extractor import ReidExtractor
from dive_fast.quality.score import score_dataset
from dive_fast.quality.sidecar import metadata_path
from dive_fast.quality.store import FeatureStore
from dive_fast.reid.data.augment import normalise
from dive_fast.reid.data.dataset import load_images
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.synth.manifest import read_manifest
from dive_fast.types import DiveError, Sample
from tests.support.quality import PIDS, make_dataset, photo, rejected
from tests.support.refusals import refused

pytestmark = pytest.mark.slow


def run(dataset: Path, checkpoint: Path, real: SetSpec, train: tuple = (), **options):
    return score_dataset(dataset, checkpoint, [real], train, progress=False, **options)


def lines(dataset: Path, folder: str = "") -> dict[str, dict]:
    files = sorted((dataset / "scores" / folder).glob("*.jsonl"))
    return {row["pair_id"]: row for file in files for row in map(json.loads, file.read_text().splitlines())}


def files(dataset: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((dataset / "scores").glob("*.json*"))}


def embedded(checkpoint, samples):
    """Features without any of the room's code: the mean direction of an image's and its mirror image's."""
    model, _, _ = load_model(checkpoint)
    images = load_images(samples, 64, 32)
    pixels = normalise(images.images)
    with torch.inference_mode():
        both = model.embed(pixels, images.infrared) + model.embed(pixels.flip(3), images.infrared)
    rows = both.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_scores_are_what_they_say(dataset, checkpoint, real):
    metadata = run(dataset, checkpoint, real)
    found, nearest = lines(dataset), lines(dataset, "nearest")
    photos = read_set(real)
    known = embedded(checkpoint, photos)
    records = list(read_manifest(dataset))
    sides = [(record, side) for record in records for side in ("rgb", "ir")]
    made = embedded(
        checkpoint, [Sample(dataset / r.files[s], r.spec.pid, getattr(r.spec, s), "synthetic", s) for r, s in sides]
    )
    assert list(found) == [record.spec.pair_id for record in records]
    for row, (record, side) in enumerate(sides):
        scores = found[record.spec.pair_id][side]
        centre = {}
        for pid in PIDS:
            mean = known[[s.pid == pid and s.modality == "rgb" for s in photos]].sum(0)
            centre[pid] = made[row] @ mean / np.linalg.norm(mean)
        own = centre.pop(record.spec.pid)
        assert scores["identity"] == pytest.approx(own - max(centre.values()), abs=2e-5)
        keys = [(side, r.spec.pid, getattr(r.spec, side)) for r, side in sides]
        closest = max(made[n] @ made[row] for n, key in enumerate(keys) if n != row and key == keys[row])
        assert scores["diversity"] == pytest.approx(1 - closest, abs=1e-3)  # half precision
        alike = {
            f"sysu/{s.path.relative_to(real.root)}": f @ made[row]
            for s, f in zip(photos, known, strict=True)
            if s.modality == side
        }
        assert scores["memorisation"] == pytest.approx(max(alike.values()), abs=2e-5)
        assert alike[nearest[record.spec.pair_id][side]] == pytest.approx(max(alike.values()), abs=2e-5)
    for side in ("rgb", "ir"):
        rows = [n for n, photo in enumerate(photos) if photo.modality == side]
        others = [[m for m in rows if m != n and photos[m].pid == photos[n].pid] for n in rows]
        similar = [max(known[n] @ known[m] for m in same) for n, same in zip(rows, others, strict=True)]
        value = metadata["thresholds"]["memorisation"][side]["value"]
        assert value == pytest.approx(np.quantile(similar, 0.999), abs=2e-5)


def test_modality_is_about_tone_and_not_about_colour(tmp_path, checkpoint, real):
    """A photo made grey is no infrared image, though it comes as one."""
    dataset = make_dataset(tmp_path / "pairs")
    grey = next(read_manifest(dataset))
    photo(grey.spec.pid, "cam1", 50).convert("L").save(dataset / grey.files["ir"])
    metadata = run(dataset, checkpoint, real)
    found = lines(dataset)
    fake = found.pop(grey.spec.pair_id)["ir"]["modality"]
    assert fake < 0.5 < min(row["ir"]["modality"] for row in found.values())
    assert min(row["rgb"]["modality"] for row in found.values()) > 0.5
    assert metadata["probe"]["auc"] > 0.95 and metadata["real"]["modality"]["ir"]["50%"] > 0.5


def test_a_copy_of_a_training_image_is_above_the_threshold(dataset, checkpoint, real):
    record = next(read_manifest(dataset))
    stolen = next(s for s in read_set(real) if s.modality == "ir" and s.pid == record.spec.pid)
    shutil.copy(stolen.path, dataset / record.files["ir"])
    metadata = run(dataset, checkpoint, real)
    limit = metadata["thresholds"]["memorisation"]["ir"]
    over = [p for p, row in lines(dataset).items() if row["ir"]["memorisation"] > limit["value"]]
    assert over == [record.spec.pair_id] and limit["over"] == 1


def test_photo_sides_rejected_pairs_and_lone_images(tmp_path, checkpoint, real):
    photos = read_set(real)
    dataset = make_dataset(
        tmp_path / "pairs", mode="real-rgb", pairs=1, photos=photos, photo_root=real.root, pids=PIDS[:3]
    )
    rejected(dataset, 0, 1)
    metadata = run(dataset, checkpoint, real)
    rows = list(lines(dataset).values())
    assert all(row["rgb"] == {} for row in rows)
    assert rows[1]["ir"] == {}
    assert all(set(row["ir"]) == {"identity", "modality", "memorisation"} for n, row in enumerate(rows) if n != 1)
    assert "diversity" not in metadata["made"] and metadata["pairs"] == 6


class Stop:
    """Wraps `ReidExtractor.features`: counts images of the dataset that it sees, and interrupts after some calls."""

    def __init__(self, monkeypatch, after: int = 10**9):
        self.images, self.left, self.real = 0, after, ReidExtractor.features
        monkeypatch.setattr(ReidExtractor, "features", lambda *arguments: self(*arguments))

    def __call__(self, extractor, samples, *rest):
        if samples[0].source == "synthetic":
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.images += len(samples)
        return self.real(extractor, samples, *rest)


def test_a_stopped_run_goes_on_and_ends_alike(dataset, tmp_path, checkpoint, real, monkeypatch):
    undisturbed = shutil.copytree(dataset, tmp_path / "undisturbed")
    run(undisturbed, checkpoint, real)
    Stop(monkeypatch, after=3)
    refused("run the same command again", run, dataset, checkpoint, real, error=DiveError)
    assert "scores.json" not in files(dataset)
    monkeypatch.undo()
    rest = Stop(monkeypatch)
    run(dataset, checkpoint, real)
    assert rest.images == 40 - 3 * 6
    assert files(dataset) == files(undisturbed)
    assert run(dataset, checkpoint, real) == json.loads(files(dataset)["scores.json"])
    (dataset / "scores" / "00002.jsonl").unlink()
    run(dataset, checkpoint, real)
    assert files(dataset) == files(undisturbed) and rest.images == 40 - 3 * 6


def test_a_dataset_that_grew_or_changed_is_scored_where_it_did(tmp_path, checkpoint, real, monkeypatch):
    whole = make_dataset(tmp_path / "whole")
    dataset = make_dataset(tmp_path / "pairs", shards=4)
    run(dataset, checkpoint, real)
    shutil.copytree(whole, dataset, dirs_exist_ok=True)
    FeatureStore(dataset).path(2).write_bytes(b"damaged")
    seen = Stop(monkeypatch)
    run(dataset, checkpoint, real)
    assert seen.images == 3 * 6 - 2 + 6  # three new shards, the last one shorter, and the damaged one
    monkeypatch.undo()
    run(whole, checkpoint, real)
    assert lines(dataset) == lines(whole)


def test_other_settings_need_overwrite(dataset, checkpoint, real, make_net):
    run(dataset, checkpoint, real)
    before = files(dataset)
    other = make_net(seed=1)
    refused("another ReID model.*--overwrite", run, dataset, other, real)
    refused("another percentile", run, dataset, checkpoint, real, config=ScoreConfig(percentile=99))
    assert files(dataset) == before
    shutil.rmtree(FeatureStore(dataset).folder)
    refused("another ReID model", run, dataset, other, real)
    assert run(dataset, checkpoint, real) == json.loads(before["scores.json"])
    metadata = run(dataset, other, real, overwrite=True)
    assert metadata["net"]["sha256"] != json.loads(before["scores.json"])["net"]["sha256"]
    assert files(dataset)["00000.jsonl"] != before["00000.jsonl"]


def test_scores_can_be_left_out(dataset, checkpoint, real):
    metadata = run(dataset, checkpoint, real, config=ScoreConfig(("diversity",)))
    assert set(metadata["scores"]) == set(metadata["made"]) == {"diversity"}
    assert all(set(row[side]) == {"diversity"} for row in lines(dataset).values() for side in ("rgb", "ir"))
    assert metadata["probe"] is None and metadata["thresholds"] == {"memorisation": {}}
    refused("must be some of identity", ScoreConfig, ("beauty",))


def test_refusals(dataset, checkpoint, real, only_rgb, make_net, tmp_path):
    generated = SetSpec("folder", shutil.copytree(dataset / "cam1", tmp_path / "generated"))
    for net, sets, message in (
        (make_net(synthetic=3), [real], "trained on 3 synthetic images"),
        (make_net(synthetic=None), [real], "reid.json"),
        (checkpoint, [replace(real, split="val")], "4 of 5 identities"),
        (checkpoint, [only_rgb], "modality"),
        (checkpoint, [real, (only_rgb,)], "no training image is ir.*--train"),
        (checkpoint, [generated], "generated image"),
    ):
        refused(message, run, dataset, net, *sets)
        assert not list((dataset / "scores").glob("*.jsonl"))
    refused("no synthesized dataset", run, tmp_path, checkpoint, real)


@pytest.mark.parametrize(
    "change",
    [{"pairs": "x"}, {"made": []}, {"real": {"identity": {"ir": {}}}}, {"probe": {"auc": None}}, {"version": 9}],
)
def test_a_description_of_another_kind_is_refused(dataset, checkpoint, real, change):
    metadata = run(dataset, checkpoint, real)
    write_json(metadata_path(dataset), {**metadata, **change})
    refused(r"scores\.json", run, dataset, checkpoint, real)


def test_two_runs_at_once_are_refused(dataset, checkpoint, real):
    folder = FeatureStore(dataset).folder
    folder.mkdir(parents=True)
    with locked(folder / ".lock", folder):
        refused("another run is writing", run, dataset, checkpoint, real)


def test_memory_holds_one_group_at_a_time(tmp_path, checkpoint, real, monkeypatch):
    """A plan has person after person: features of one are let go before the next but one comes."""
    alive, most, stored = [0], [0], score._Run.stored
    dataset = make_dataset(tmp_path / "pairs", pairs=3)

    class Tracked(np.ndarray):
        def __array_finalize__(self, _):
            alive[0] += len(self)
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= len(self)

    def tracked(run, shard):
        kept = stored(run, shard)
        return replace(kept, features=kept.features.view(Tracked))

    monkeypatch.setattr(score._Run, "stored", tracked)
    run(dataset, checkpoint, real, config=ScoreConfig(("diversity",)))
    rows = [len(read_shard(dataset, number).made) for number in shard_numbers(dataset)]
    assert len(rows) == 10
    assert 0 < most[0] <= 3 * max(rows)
