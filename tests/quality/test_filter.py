"""Filters on scores written by hand: what is dropped, why, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dive_fast.io import write_json, write_jsonl
from dive_fast.json_files import read_jsonl
from dive_fast.quality.config import FilterConfig, parse_threshold
from dive_fast.quality.dataset import dataset_hash, read_shard, shard_numbers
from dive_fast.quality.filter import SHOWN, filter_dataset, undo
from dive_fast.quality.filter_page import write_filter_page
from dive_fast.quality.rules import FractionLimits
from dive_fast.quality.sidecar import metadata_path, nearest_path, read_metadata, scores_path
from dive_fast.synth.manifest import read_pairs
from tests.support.quality import PIDS, make_dataset, rejected
from tests.support.refusals import refused


def scored(dataset: Path, real_root: Path, value=lambda n: n / 10) -> Path:
    """Scores for every pair of `dataset`: pair n's infrared has identity `value(n)`, its RGB 5; memorisation -value."""
    n = 0
    for number in shard_numbers(dataset):
        rows, near = [], []
        for pair in read_shard(dataset, number).pairs:
            rgb, ir = ({"identity": a, "memorisation": b} for a, b in ((5.0, 0.1), (value(n), -value(n))))
            rows.append({"pair_id": pair.pair_id, "rgb": rgb, "ir": ir})
            near.append({"pair_id": pair.pair_id, "ir": f"sysu/cam3/{pair.pid}/0001.jpg"})
            n += 1
        write_jsonl(scores_path(dataset, number), rows)
        write_jsonl(nearest_path(dataset, number), near)
    names = {"identity": True, "memorisation": False}
    limit = {"value": -0.25, "percentile": 99.9, "images": 9, "over": 5}
    write_json(
        metadata_path(dataset),
        {
            "version": 1,
            "settings": {},
            "made": {},
            "real": {},
            "probe": None,
            "scores": {name: {"meaning": "m", "high_is_good": good} for name, good in names.items()},
            "records": dataset_hash(dataset),
            "pairs": n,
            "thresholds": {"memorisation": {"ir": limit}},
            "sets": {"train": [{"name": "sysu", "root": str(real_root)}]},
        },
    )
    return dataset


@pytest.fixture
def ready(dataset, real):
    return scored(dataset, real.root)


def ids(dataset: Path) -> list[str]:
    return [pair.pair_id for n in shard_numbers(dataset) for pair in read_shard(dataset, n).pairs]


def dropped(dataset: Path) -> list[dict]:
    return list(read_jsonl(dataset / "dropped.jsonl", ""))


def run(dataset: Path, *wanted: tuple[str, str], **options):
    kinds = {name.replace("-", "_"): tuple(text for kind, text in wanted if kind == name) for name, _ in wanted}
    return filter_dataset(dataset, FilterConfig(**kinds, **options), progress=False)


def test_what_is_dropped_and_why(ready):
    record, _ = run(ready, ("min", "identity=0.15"), ("max", "ir.memorisation=-0.25"))
    assert dropped(ready) == [
        {"pair_id": ids(ready)[0], "reasons": ["identity 0 < 0.15 (ir)", "memorisation -0 > -0.25 (ir)"]},
        {"pair_id": ids(ready)[1], "reasons": ["identity 0.1 < 0.15 (ir)", "memorisation -0.1 > -0.25 (ir)"]},
        {"pair_id": ids(ready)[2], "reasons": ["memorisation -0.2 > -0.25 (ir)"]},
    ]
    assert (record["pairs"], record["dropped"]) == (20, 3)
    assert record["by_threshold"] == {"identity >= 0.15": 2, "ir.memorisation <= -0.25": 3}
    assert record["by_identity"]["0001"] == {"pairs": 4, "dropped": 3} and record["by_identity"]["0002"]["dropped"] == 0
    by_camera = {"cam1": 2, "cam2": 1, "cam3": 2, "cam6": 1}
    assert record["by_camera"] == {camera: {"pairs": 10, "dropped": n} for camera, n in by_camera.items()}
    assert json.loads((ready / "filter.json").read_text()) == record
    assert len(read_pairs(ready)) == 2 * 17


def test_a_limit_itself_is_kept(ready):
    assert run(ready, ("min", "ir.identity=0.2"))[0]["dropped"] == 2


def test_a_filter_replaces_the_one_before_and_can_be_undone(ready):
    run(ready, ("min", "identity=0.15"))
    run(ready, ("max", "memorisation=calibrated"))  # the infrared threshold -0.25
    assert [row["pair_id"] for row in dropped(ready)] == ids(ready)[:3]
    assert undo(ready) == 3
    assert not (ready / "dropped.jsonl").exists() and not (ready / "filter.json").exists()
    assert len(read_pairs(ready)) == 2 * 20
    refused("no filter to undo", undo, ready)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.86, 0.5, 0.05])
def test_a_share_keeps_the_best(ready, share):
    record, _ = run(ready, ("keep-fraction", f"identity={share}"), allow_lost=True)
    gone = 20 - int(np.ceil(round(share * 20, 9)))
    assert [row["pair_id"] for row in dropped(ready)] == ids(ready)[:gone]
    low, _ = run(ready, ("keep-fraction", f"ir.memorisation={share}"), allow_lost=True)  # low is good: the same pairs
    assert low["dropped"] == record["dropped"] == gone


def test_a_share_counts_a_pair_by_its_worse_side_and_keeps_ties():
    metadata = {"scores": {"identity": {"high_is_good": True}}}
    limits = FractionLimits([parse_threshold("keep-fraction", "identity=0.5")], metadata)
    for rgb, ir in ((0.9, 0.1), (0.2, 0.9), (0.3, 0.3), (0.2, 0.2)):
        limits.add({"rgb": {"identity": rgb}, "ir": {"identity": ir}})
    (rule,) = limits.rules()
    assert rule.limit == 0.2 and not rule.breaks(0.2)


def test_identities_may_not_lose_a_modality_unless_allowed(ready):
    run(ready, ("min", "identity=0.05"))
    before = (ready / "dropped.jsonl").read_bytes(), (ready / "filter.json").read_bytes()
    refused(r"8 of 20 pairs .*2 identities .*\(0001, 0002\).*--allow-lost", run, ready, ("min", "identity=0.75"))
    assert before == ((ready / "dropped.jsonl").read_bytes(), (ready / "filter.json").read_bytes())
    record, _ = run(ready, ("min", "identity=0.75"), allow_lost=True)
    assert record["identities_lost"] == {"rgb": ["0001", "0002"], "ir": ["0001", "0002"]}


def test_rejected_pairs_are_not_counted_and_lone_scores_not_needed(tmp_path, real):
    dataset = make_dataset(tmp_path / "pairs")
    rejected(dataset, 0, 0)
    scored(dataset, real.root)
    rows = list(read_jsonl(scores_path(dataset, 1), ""))
    del rows[0]["ir"]["identity"]
    write_jsonl(scores_path(dataset, 1), rows)
    record, _ = run(dataset, ("min", "identity=0.45"), allow_lost=True)
    assert [row["pair_id"] for row in dropped(dataset)] == [ids(dataset)[n] for n in (1, 2, 4)]
    assert record["pairs"] == 19 and record["without_score"] == {"identity": 1}


def test_scores_of_another_state_are_refused(ready, tmp_path, real):
    path = scores_path(ready, 3)
    rows = list(read_jsonl(path, ""))
    write_jsonl(path, rows[::-1])
    refused(r"00003\.jsonl line 1 ", run, ready, ("min", "identity=0"))
    write_jsonl(path, [{**row, "ir": {"identity": "high"}} for row in rows])
    refused("line 1 ir", run, ready, ("min", "identity=0"))
    rejected(ready, 6, 0)
    refused("dive-fast score", run, ready, ("min", "identity=0"))
    assert not (ready / "dropped.jsonl").exists()
    refused("dive-fast score", run, make_dataset(tmp_path / "bare"), ("min", "identity=0"))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("min", "identity", "SCORE=NUMBER"),
        ("min", "ir.identity=high", "SCORE=NUMBER"),
        ("min", "identity=calibrated", "SCORE=NUMBER"),
        ("keep-fraction", "identity=0", "identity=0"),
        ("min", "identiti=0.1", "identity, memorisation, nearest 'identity'"),
        ("max", "rgb.memorisation=calibrated", "memorisation=calibrated"),
    ],
)
def test_thresholds_that_make_no_sense(ready, kind, text, message):
    refused(message, run, ready, (kind, text))


def test_the_page_shows_both_sides_of_a_limit_worst_first(tmp_path, real):
    dataset = scored(make_dataset(tmp_path / "pairs", pairs=4), real.root, value=lambda n: (n * 7 % 40) / 100)
    _, tally = run(dataset, ("min", "ir.identity=0.2"), ("max", "ir.memorisation=-0.1"), allow_lost=True)
    rule = tally.rules[0]
    for kind, lowest in (("worst", 0), ("just dropped", 14), ("just kept", 20)):
        shown = [example.value for example in tally.examples(rule, "ir", kind)]
        assert shown == [n / 100 for n in range(lowest, lowest + 6)]
    page = write_filter_page(dataset, tmp_path / "page.html", tally, read_metadata(dataset)).read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == 2 * 2 * 3 * SHOWN and captions[1] == "its other side"
    assert captions[0].split()[1:] == ["cam3", "0"] or captions[0].split()[1:] == ["cam6", "0"]
    assert captions.count("nearest: sysu") == 3 * SHOWN
    assert f"20 of {len(PIDS) * 8:,} pairs dropped" in page


def test_a_page_survives_missing_pictures(ready, tmp_path):
    _, tally = run(ready, ("max", "ir.memorisation=-0.25"))
    metadata = read_metadata(ready)
    metadata["sets"]["train"][0]["root"] = str(tmp_path / "gone")
    page = write_filter_page(ready, tmp_path / "page.html", tally, metadata).read_text()
    assert "nearest: sysu (cannot be read)" in page
