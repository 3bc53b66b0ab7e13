"""Evaluation: right features to right metrics, every number with its circumstances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dive_fast.reid.checkpoint import load_model
from dive_fast.reid.dataset import load_images
from dive_fast.reid.evaluate import embed, evaluate_reid
from dive_fast.reid.metrics import evaluate
from dive_fast.reid.protocols import Protocol
from dive_fast.reid.train import train_reid
from dive_fast.types import InputError


@pytest.fixture(scope="module")
def checkpoint(city, tmp_path_factory):
    from dive_fast.reid.model import ModelConfig
    from dive_fast.reid.train import ReidConfig

    config = ReidConfig(model=ModelConfig(height=64, width=32, stripes=2), identities=4, per_modality=2, steps=10)
    return train_reid(city["train"], config, tmp_path_factory.mktemp("reid"), progress=False)


def test_result_says_how_it_came_about(city, checkpoint):
    result = evaluate_reid(checkpoint, city["query"], city["gallery"], dataset="city", progress=False)
    assert result.dataset == "city" and result.direction == "infrared to visible" and result.rule == "sysu"
    assert result.protocol == {
        "protocol": "pocket", "search": "all", "shots": "whole gallery", "trials": 1, "draw": "none"
    }  # fmt: skip
    assert (result.queries, result.gallery, result.valid_queries) == (24, 48, 24)
    assert result.checkpoint == load_model(checkpoint)[2]["sha256"]
    assert 0 < result.minp <= 100 and 0 < result.map <= 100 and result.rank1 <= result.rank5 <= result.rank20 <= 100
    assert result.map_deviation == 0


def test_pocket_equals_features_and_metrics_by_hand(city, checkpoint):
    result = evaluate_reid(checkpoint, city["query"], city["gallery"], flip=False, batch=7, progress=False)
    model, _, _ = load_model(checkpoint)
    query, gallery = (embed(model, load_images(city[side], 64, 32), flip=False) for side in ("query", "gallery"))
    distances = np.linalg.norm(query[:, None].astype(np.float64) - gallery[None], axis=2)
    names = [[s.pid for s in city[side]] for side in ("query", "gallery")]
    cams = [[int(s.camera[3:]) for s in city[side]] for side in ("query", "gallery")]
    expected = evaluate(distances, *names, *cams, protocol="sysu")
    assert result.map == pytest.approx(100 * expected.map, abs=1e-3)
    assert result.rank1 == pytest.approx(100 * expected.cmc[0])


def test_flip_average_ignores_mirroring(city, checkpoint):
    model, _, _ = load_model(checkpoint)
    images = load_images(city["query"], 64, 32)
    mirrored = replace(images, images=images.images.flip(3))
    np.testing.assert_allclose(embed(model, images), embed(model, mirrored), atol=1e-5)
    assert np.abs(embed(model, images, flip=False) - embed(model, mirrored, flip=False)).max() > 1e-4


def test_sysu_trials_are_averaged(city, checkpoint):
    def run(trials):
        protocol = Protocol("sysu", "indoor", trials=trials)
        return evaluate_reid(checkpoint, city["query"], city["gallery"], protocol=protocol, progress=False)

    one, three = run(1), run(3)
    assert one.gallery == three.gallery == 12  # 6 people, 2 cameras, 1 shot
    assert one.map_deviation == 0 < three.map_deviation
    assert three.protocol["trials"] == 3 and three.protocol["search"] == "indoor"


def test_refusals(city, checkpoint):
    query, gallery = city["query"], city["gallery"]
    for sides, message in (
        (([], gallery), "query is empty"),
        ((query, []), "gallery is empty"),
        ((gallery, query), "queries are infrared"),
        ((query, [replace(gallery[0], source="synthetic"), *gallery[1:]]), "synthetic"),
        ((query, [s for s in city["train"] if s.modality == "rgb"]), "no valid query"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_reid(checkpoint, *sides, progress=False)
