"""Throughput against numbers worked out by hand, histograms against numpy, and plots of names that are no formulas."""

import os
from collections import Counter

import numpy as np
import pytest

from dive_fast.report import plots
from dive_fast.report.chunks import Columns
from dive_fast.report.rows import DatasetRows, Row, ScoreKey
from dive_fast.report.tally import ScoreTally, Tally, reason_kind
from dive_fast.report.throughput import Event, read_times, throughput
from dive_fast.report.walk import Walk
from dive_fast.types import PairRecord, PairSpec
from tests.support.dataset import make_dataset


def test_throughput_by_hand():
    # Nothing is known of the first event's start. A pause of 20 s lowers the rate where it lies: 8 events make 2 spans.
    events = [Event(100 + second, 30) for second in (0, 10, 20, 30, 60, 70, 80, 80)]
    rates = throughput(list(reversed(events)))
    assert rates is not None
    assert rates.edges.tolist() == [100, 140, 180]
    assert rates.rate.tolist() == [3 * 30 / 40, 4 * 30 / 40]
    assert rates.mean == pytest.approx(7 * 30 / 80)
    assert throughput(events[:1]) is None
    assert throughput([Event(5.0, 1), Event(5.5, 1)]) is None


def test_times_come_from_shards_or_from_their_own_file(tmp_path):
    dataset = make_dataset(tmp_path / "set")  # three shards of 8 pairs, both sides generated
    for number, path in enumerate(sorted((dataset / "shards").iterdir())):
        os.utime(path, (1000 + 8 * number, 1000 + 8 * number))
    walk = Walk(DatasetRows(dataset), tmp_path / "out")
    assert sum(len(job.pairs) for job in walk.jobs()) == 24
    assert walk.events == [(1000, 16), (1008, 16), (1016, 16)]
    assert throughput(walk.events).mean == pytest.approx(2.0)
    assert read_times(dataset) is None
    (dataset / "times.jsonl").write_text('{"at": 3, "images": 5}\n{"at": 4.5, "images": 6}\n')
    assert read_times(dataset) == [(3.0, 5), (4.5, 6)]


def test_histograms_by_camera(tmp_path):
    rng = np.random.default_rng(3)
    values, cameras = rng.normal(size=100).astype(np.float32), rng.integers(0, 3, 100)
    columns = Columns(tmp_path, {"rgb": "H", "ir": "H"}, 16)
    score = ScoreTally("s0")
    for value, camera in zip(values, cameras, strict=True):
        columns.append({"rgb": 2 - camera, "ir": camera}, {"s0": float(value)})
        score.add(float(value))
    columns.append({"rgb": 0, "ir": 0})  # a pair without a score
    columns.finish()
    edges = np.linspace(values.min(), values.max(), 11)
    for side, of in (("ir", cameras), ("rgb", 2 - cameras)):
        counts = plots.camera_histograms(ScoreKey(side, "x"), score, edges, 3, columns)
        assert counts.tolist() == [np.histogram(values[of == camera], edges)[0].tolist() for camera in range(3)]


@pytest.mark.parametrize("name", ["$\\frac{", "_hidden", "a\nb\x00\ud800", "<&>"])
def test_plots_take_any_name(tmp_path, name):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    columns = Columns(tmp_path / "data", {"rgb": "H", "ir": "H"}, 4)
    columns.append({"rgb": 0, "ir": 1}, {"s0": 0.5})
    columns.finish()
    score = ScoreTally("s0")
    score.add(0.5)
    (entry,) = plots.plot_scores(tmp_path, {ScoreKey("ir", name): score}, [name, name], columns)
    assert name in entry["alt"]
    light, dark = ((tmp_path / f"s0-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert light.rstrip().endswith("</svg>")
    assert "#22272e" in light
    assert "#d6dbe1" in dark


def test_reasons_are_counted_by_kind():
    assert reason_kind("identity 0.31 < 0.50") == "identity"
    assert reason_kind("dino2 -3.1e-05 > 0.9 (ir)") == "dino2 (ir)"
    assert reason_kind("no face") == "no face"
    assert reason_kind("0.5") == "other reasons"
    tally = Tally()
    reasons = [[f"kind{letter} 1"] for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"]
    spec = PairSpec("0001-00000-cam3", "0001", 0, "cam1", "cam3", 1)
    bits = [tally.add(Row(PairRecord(spec, {}, {}, {}, "engine", {}), {}, why))["reasons"] for why in reasons]
    assert Counter(bits) == Counter([1 << n for n in range(31)] + [1 << 31] * 5)  # what a column of uint32 can hold
    assert tally.kind_counts["other reasons"] == 5
