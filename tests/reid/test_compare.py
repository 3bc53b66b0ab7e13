"""Comparison: every arm and seed once, gap closed by its formula, nothing invented."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.io import read_json
from dive_fast.reid import compare as comparing
from dive_fast.reid import train as training
from dive_fast.reid.compare import compare
from dive_fast.reid.table import as_text
from dive_fast.types import InputError


@pytest.fixture
def arms(city):
    return {
        "baseline": city["train"] + city["external"],
        "ours": city["train"] + city["external"] + city["external_ir"],
        "oracle": city["train"] + city["external"] + [replace(s, source="real") for s in city["external_ir"]],
    }


@pytest.fixture
def config(tiny):
    return replace(tiny, steps=3, missing="visible")


def run(arms, city, config, out, seeds=(0, 1), **options):
    return compare(arms, city["query"], city["gallery"], config, seeds, out, progress=False, **options)


def test_everything_is_written_and_a_rerun_only_reads(arms, city, config, tmp_path, monkeypatch):
    first = run(arms, city, config, tmp_path)
    assert [arm.name for arm in first.arms] == ["baseline", "ours", "oracle"]
    ours = first.arm("ours")
    assert (ours.identities, ours.without_infrared, ours.synthetic) == (12, 0, 24)
    assert first.arm("baseline").without_infrared == 4 and first.arm("oracle").synthetic == 0
    assert read_json(tmp_path / "compare.json", "")["arms"][1]["map"] == ours.map
    assert Image.open(tmp_path / "compare.png").size[0] > 600
    table = (tmp_path / "table.md").read_text()
    assert table.count("|\n") == 5 and "infrared to visible" in table and "seeds 0, 1" in table
    monkeypatch.setattr(comparing, "fit", None)
    monkeypatch.setattr(comparing, "load_images", None)
    assert run(arms, city, config, tmp_path) == first


def test_runs_side_by_side_give_what_runs_in_a_row_give(arms, city, config, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as each of two workers; sums depend on it
    try:
        row = run(arms, city, config, tmp_path / "row", seeds=(0,))
    finally:
        torch.set_num_threads(threads)
    assert run(arms, city, config, tmp_path / "side", seeds=(0,), workers=2) == row


def test_an_error_of_a_worker_is_the_error_of_the_comparison(arms, city, config, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(city["train"][0].path.read_bytes()[:60])
    worse = {**arms, "ours": [*arms["ours"], replace(arms["ours"][0], path=broken)]}
    with pytest.raises(InputError, match=r"broken\.png"):
        run(worse, city, config, tmp_path / "out", seeds=(0,), workers=2)
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_result_of_other_data_is_not_taken_over(arms, city, config, tmp_path):
    run({"ours": arms["ours"]}, city, config, tmp_path, seeds=(0,))
    for changed in ({"ours": arms["ours"][:-1]}, {"ours": arms["baseline"]}):
        with pytest.raises(InputError, match="choose another out"):
            run(changed, city, config, tmp_path, seeds=(0,))
    with pytest.raises(InputError, match="choose another out"):
        run({"ours": arms["ours"]}, city, replace(config, lr=1e-4), tmp_path, seeds=(0,))


def fake(maps):
    """`_comparison` on made-up results."""
    from dive_fast.reid.evaluate import ReidResult
    from dive_fast.reid.protocols import Protocol
    from dive_fast.reid.train import ReidConfig
    from dive_fast.types import Sample

    def result(value):
        return ReidResult("x", Protocol().facts(), "sysu", "ir", 1, 1, 1, value, 0, 0, 0, value, 0, 0, 0, True, "")

    def build(baseline="baseline", oracle="oracle"):
        arms = {name: [Sample("a", "1", "cam3", modality="ir")] for name in maps}
        results = {name: [result(v) for v in values] for name, values in maps.items()}
        return comparing._comparison(
            arms, results, range(len(next(iter(maps.values())))), baseline, oracle, ReidConfig()
        )

    return build


def test_gap_closed_is_paired_by_seed():
    found = fake({"baseline": [10.0, 12.0, 11.0], "ours": [16.0, 18.0, 21.0], "oracle": [30.0, 24.0, 31.0]})()
    ours = found.arm("ours")
    shares = [6 / 20, 6 / 12, 10 / 20]
    assert ours.difference == [6, 6, 10] and ours.gap_closed == pytest.approx(shares)
    assert ours.gap_closed_mean == pytest.approx(np.mean(shares))
    assert ours.gap_closed_deviation == pytest.approx(np.std(shares, ddof=1))
    assert found.arm("oracle").gap_closed is None and found.arm("oracle").difference == [20, 12, 20]
    assert found.arm("baseline").difference is None


def test_the_stronger_baseline_is_the_one_of_record():
    maps = {"paired": [15.0, 16.0], "rgb-only": [9.0, 8.0], "grey": [5.0, 6.0], "oracle": [30.0, 30.0]}
    found = fake(maps)(baseline=("paired", "rgb-only"))
    assert found.baseline == "paired"
    assert found.arm("rgb-only").difference == [-6, -8] and found.arm("rgb-only").gap_closed is None
    assert found.arm("grey").gap_closed_mean < 0
    assert "Worse than the baseline: rgb-only, grey." in as_text(found)


def test_the_gap_is_also_told_from_the_other_baseline():
    maps = {"paired": [15.0, 16.0], "rgb-only": [10.0, 8.0], "ours": [20.0, 13.5], "oracle": [30.0, 30.0]}
    found = fake(maps)(baseline=("rgb-only", "paired"))
    assert found.baseline == "paired"
    assert found.other_gaps == {"rgb-only": {"ours": [10 / 20, 5.5 / 22]}}
    assert "Of the gap from rgb-only, closed: ours 38 ± 18 %." in as_text(found)
    assert (
        fake({**maps, "oracle": [9.0, 30.0]})(baseline=("rgb-only", "paired")).other_gaps["rgb-only"]["ours"][0] is None
    )
    del maps["oracle"]
    assert fake(maps)(baseline=("rgb-only", "paired")).other_gaps == {}


@pytest.mark.parametrize("lacking", ["baseline", "oracle"])
def test_no_baseline_or_no_oracle_means_no_gap_closed(lacking):
    maps = {"baseline": [10.0, 12.0], "ours": [16.0, 18.0], "oracle": [30.0, 24.0]}
    del maps[lacking]
    found = fake(maps)()
    assert all(arm.gap_closed is None and arm.gap_closed_mean is None for arm in found.arms)
    assert "needs a baseline and an oracle" in as_text(found)


def test_an_oracle_below_the_baseline_closes_nothing():
    found = fake({"baseline": [10.0, 12.0], "ours": [16.0, 18.0], "oracle": [9.0, 24.0]})()
    assert found.arm("ours").gap_closed == [None, 0.5] and found.arm("ours").gap_closed_mean is None
    assert "no gap to close" in as_text(found)


def test_one_seed_has_no_deviation():
    found = fake({"baseline": [10.0], "ours": [16.0], "oracle": [30.0]})()
    assert found.arm("ours").map_deviation is None and found.arm("ours").gap_closed_mean == 0.3
    assert "±" not in as_text(found).split("Mean")[0]


def test_refusals(arms, city, config, tmp_path):
    with pytest.raises(InputError, match="no arms"):
        run({}, city, config, tmp_path)
    with pytest.raises(InputError, match="seeds"):
        run(arms, city, config, tmp_path, seeds=(0, 0))
    with pytest.raises(InputError, match="no samples"):
        run({"ours": []}, city, config, tmp_path)
    with pytest.raises(InputError, match=r"\.\./ours"):
        run({"../ours": arms["ours"]}, city, config, tmp_path)
    with pytest.raises(InputError, match="people of the test set"):
        run({"ours": arms["ours"] + city["gallery"]}, city, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_arm_spends_as_many_places_on_the_people_common_to_all(arms, city, config, tmp_path, monkeypatch):
    arms = {"paired-only": city["train"], **arms}
    shares, batches = {}, {}
    real = comparing.fit

    def watched(images, config, out, **options):
        shares[out.parent.name] = (config.synthetic_share, options["added"])
        return real(images, config, out, **options)

    class Watched(training.PairSampler):
        def batch(self, step):
            rows = super().batch(step)
            batches.setdefault(len(self._visible), []).append({self._name(int(i)) for i in self._labels_of(rows)})
            return rows

        def _labels_of(self, rows):
            return [label for label, own in self._visible.items() if np.isin(rows, own).any()]

    monkeypatch.setattr(comparing, "fit", watched)
    monkeypatch.setattr(training, "PairSampler", Watched)
    config = replace(config, identities=4, synthetic_share=0.5)
    first = run(arms, city, config, tmp_path, seeds=(0,))
    common = {s.pid for s in city["train"]}
    others = tuple(sorted({s.pid for s in city["external"]}))
    assert shares == {"paired-only": (None, ()), **dict.fromkeys(("baseline", "ours", "oracle"), (0.5, others))}
    assert all(len(people & common) == 2 for people in batches[len(common) + len(others)])
    monkeypatch.setattr(comparing, "fit", None)
    assert run(arms, city, config, tmp_path, seeds=(0,)) == first
