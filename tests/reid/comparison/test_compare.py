"""Comparison: every arm and seed once, gap closed by its formula, nothing invented."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from dive_fast.data.sets import SetSpec
from dive_fast.json_files import read_json
from dive_fast.reid.comparison import compare as comparing
from dive_fast.reid.comparison import runs as running
from dive_fast.reid.comparison.compare import compare
from dive_fast.reid.comparison.lengths import train_lengths
from dive_fast.reid.comparison.plots import plot_lengths
from dive_fast.reid.comparison.records import PeopleTest, Rate, SeedTest, Significance
from dive_fast.reid.comparison.table import as_text, header, rows
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.evaluation.results import ReidResult
from dive_fast.reid.training import train as training
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import Sample
from tests.support.city import TINY
from tests.support.refusals import refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arms(city):
    return {
        "baseline": city["train"] + city["external"],
        "ours": city["train"] + city["external"] + city["external_ir"],
        "oracle": city["train"] + city["external"] + [replace(s, source="real") for s in city["external_ir"]],
    }


CONFIG = replace(TINY, steps=3, missing="visible")


@pytest.fixture
def config():
    return CONFIG


def run(arms, city, config, out, seeds=(0, 1), **options):
    return compare(arms, city["query"], city["gallery"], config, seeds, out, progress=False, **options)


@pytest.fixture(scope="module")
def made(arms, city, tmp_path_factory):
    """A comparison of all arms, and the folder that it left; copy that before changing it."""
    out = tmp_path_factory.mktemp("made") / "out"
    return run(arms, city, CONFIG, out), out


@pytest.fixture
def copied(made, tmp_path):
    """That comparison in a folder of one's own."""
    return made[0], Path(shutil.copytree(made[1], tmp_path / "copy"))


def test_everything_is_written_and_a_rerun_only_reads(arms, city, config, copied, monkeypatch):
    first, tmp_path = copied
    assert [arm.name for arm in first.arms] == ["baseline", "ours", "oracle"]
    ours = first.arm("ours")
    assert (ours.identities, ours.without_infrared, ours.synthetic) == (12, 0, 24)
    assert first.arm("baseline").without_infrared == 4 and first.arm("oracle").synthetic == 0
    assert read_json(tmp_path / "compare.json", "")["arms"][1]["map"] == ours.map
    assert Image.open(tmp_path / "compare.png").size[0] > 600
    table = (tmp_path / "table.md").read_text()
    assert table.count("|\n") == 5 and "infrared to visible" in table and "seeds 0, 1" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert Image.open(tmp_path / "differences.png").size[0] > 600
    monkeypatch.setattr(running, "fit", None)
    monkeypatch.setattr(running, "load_images", None)
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
    refused(r"broken\.png", run, worse, city, config, tmp_path / "out", seeds=(0,), workers=2)
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_result_of_other_data_is_not_taken_over(arms, city, config, tmp_path):
    run({"ours": arms["ours"]}, city, config, tmp_path, seeds=(0,))
    for changed in ({"ours": arms["ours"][:-1]}, {"ours": arms["baseline"]}):
        refused("result.json", run, changed, city, config, tmp_path, seeds=(0,))
    refused("result.json", run, {"ours": arms["ours"]}, city, replace(config, lr=1e-4), tmp_path, seeds=(0,))


def fake(maps):
    """`_comparison` on made-up results of one query."""

    def result(value):
        return ReidResult("x", Protocol().metadata(), "sysu", "ir", 1, 1, 1, value, 0, 0, 0, value, 0, 0, 0, True, "")

    def build(baseline="baseline", oracle="oracle"):
        arms = {name: [Sample("a", "1", "cam3", modality="ir")] for name in maps}
        results = {name: [result(v) for v in values] for name, values in maps.items()}
        seeds, aps = range(len(next(iter(maps.values())))), {name: np.zeros(1) for name in maps}
        return comparing._comparison(arms, results, seeds, baseline, oracle, ReidConfig(), (), aps, ["1"])

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


def test_the_baseline_stays_the_one_that_was_named():
    maps = {"paired-only": [9.0, 8.0], "rgb-only": [15.0, 16.0], "grey": [5.0, 6.0], "oracle": [19.0, 24.0]}
    found = fake(maps)(baseline="paired-only")
    assert found.baseline == "paired-only"
    assert found.arm("rgb-only").difference == [6, 8] and found.arm("rgb-only").gap_closed == [0.6, 0.5]
    assert found.arm("grey").gap_closed_mean < 0


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
    refused("seeds", run, arms, city, config, tmp_path, seeds=(0, 0))
    refused("no samples", run, {"ours": []}, city, config, tmp_path)
    refused(r"\.\./ours", run, {"../ours": arms["ours"]}, city, config, tmp_path)
    refused("'ours'.*0101", run, {"ours": arms["ours"] + city["gallery"]}, city, config, tmp_path)
    refused("dive-fast reid trials", run, arms, city, config, tmp_path, protocol=Protocol("regdb"))
    refused("theirs", run, arms, city, config, tmp_path, kept={"theirs": Rate(0.5, 0.4, 0.6)})
    for shares in ({"synthetic_fraction": 0.5}, {"synthetic_schedule": ((0.0, 0.5), (1.0, 0.2))}):
        refused("all arms have the same", run, arms, city, replace(config, **shares), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shares(monkeypatch):
    """The synthetic share and the added identities that each arm is trained with."""
    found, real = {}, running.fit

    def watched(images, config, out, **options):
        found[out.parent.name] = (config.synthetic_fraction, options["added"])
        return real(images, config, out, **options)

    monkeypatch.setattr(running, "fit", watched)
    return found


def test_every_arm_spends_as_many_places_on_the_people_common_to_all(arms, city, config, tmp_path, monkeypatch, shares):
    arms = {"paired-only": city["train"], **arms}
    batches = {}

    class Watched(training.PairSampler):
        def batch(self, step):
            rows = super().batch(step)
            people = {pid for pid, own in zip(self._pids, self._visible, strict=True) if np.isin(rows, own).any()}
            batches.setdefault(len(self._visible), []).append(people)
            return rows

    monkeypatch.setattr(training, "PairSampler", Watched)
    config = replace(config, identities=4, synthetic_fraction=0.5)
    first = run(arms, city, config, tmp_path, seeds=(0,))
    common = {s.pid for s in city["train"]}
    others = tuple(sorted({s.pid for s in city["external"]}))
    assert shares == {"paired-only": (None, ()), **dict.fromkeys(("baseline", "ours", "oracle"), (0.5, others))}
    assert all(len(people & common) == 2 for people in batches[len(common) + len(others)])
    monkeypatch.setattr(running, "fit", None)
    assert run(arms, city, config, tmp_path, seeds=(0,)) == first


def test_every_arm_is_tested_against_the_baseline(made):
    """Over people the test is made of the very APs whose mean is the mAP."""
    found, tmp_path = made
    assert found.arm("baseline").significance is None
    stored = read_json(tmp_path / "compare.json", "")["arms"]
    for number, name in ((1, "ours"), (2, "oracle")):
        arm = found.arm(name)
        people = arm.significance.people
        assert (people.queries, people.people, people.exact) == (24, 6, True)
        assert people.mean == pytest.approx(arm.difference_mean, abs=1e-4)
        assert people.low <= people.mean <= people.high
        assert arm.significance.seeds.mean == pytest.approx(arm.difference_mean)
        assert stored[number]["significance"]["verdict"] == arm.significance.verdict
    text = (tmp_path / "table.txt").read_text()
    assert "Tested over 24 queries of 6 people" in text
    assert f"oracle {found.arm('oracle').significance.seeds.visible:.1f} and " in text
    assert "Holm-corrected for 2 arms" in text


def test_the_table_says_what_was_found_and_what_was_not():
    def found(p_seeds, p_people, sign, verdict):
        seeds = SeedTest(3, sign, sign - 1, sign + 1, p_seeds, p_seeds, 7.25)
        people = PeopleTest(800, 40, sign, sign - 2, sign + 2, p_people, p_people, 2.5, False)
        return Significance(seeds, people, verdict)

    maps = {"up": [16.0, 18.0, 17.5], "down": [5.0, 6.0, 5.5], "even": [10.0, 12.5, 11.5]}
    made = fake({"baseline": [10.0, 12.0, 11.0], **maps})()
    tests = {
        "up": found(0.012, 0.0002, 6, "better"),
        "down": found(0.03, 0.04, -5, "worse"),
        "even": found(0.2, 0.01, 0.3, "not significant"),
    }
    text = as_text(replace(made, arms=[replace(a, significance=tests.get(a.name)) for a in made.arms]))
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "better (0.012 / <0.001)" in rows["up"] and "worse (0.030 / 0.040)" in rows["down"]
    assert "no (0.200 / 0.010)" in rows["even"]
    assert "up 5.0 to 7.0 and 4.0 to 8.0" in text
    assert "up 7.2 and 2.5" in text and "power 0.8" in text
    assert "Worse than" not in text and "Not significant" not in text  # the column alone has the verdict


def test_identity_kept_is_a_column_of_those_that_have_it():
    made = fake({"baseline": [10.0, 12.0], "ours": [16.0, 18.0]})()
    assert len({len(row) for row in [header(made), *rows(made)]}) == 1 and "identity kept" not in header(made)
    rate = Rate(0.406, 0.382, 0.43)
    arms = [replace(arm, kept=rate if arm.name == "ours" else None) for arm in made.arms]
    found = replace(made, arms=arms)
    assert header(found)[-1] == "identity kept"
    assert [row[-1] for row in rows(found)] == ["-", "40.6 % (38.2 to 43.0)"]
    assert "nearest true infrared" in as_text(found)


def test_lengths_have_their_own_schedules_and_share_the_run_of_the_comparison(
    arms, city, config, copied, tmp_path, monkeypatch
):
    _, folder = copied
    fits, real = [], running.fit

    def watched(images, config, out, **options):
        fits.append((out.name, config.steps))
        return real(images, config, out, **options)

    monkeypatch.setattr(running, "fit", watched)
    sides = city["query"], city["gallery"]
    run({"paired-only": city["train"]}, city, config, folder, seeds=(0,), baseline="paired-only")
    options = {"progress": False}
    maps = train_lengths("paired-only", city["train"], *sides, config, (2, 3, 5), folder, **options)
    assert fits == [("seed-0", 3), ("seed-0-steps-2", 2), ("seed-0-steps-5", 5)]
    own = replace(config, steps=5)
    alone = run({"paired-only": city["train"]}, city, own, tmp_path / "alone", seeds=(0,))
    assert maps[5] == alone.arms[0].map[0] and maps[3] == read_json(folder / "compare.json", "")["arms"][0]["map"][0]
    plot_lengths(maps, "paired-only", 3, tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 600
    monkeypatch.setattr(running, "fit", None)
    assert train_lengths("paired-only", city["train"], *sides, config, (2, 3, 5), folder, **options) == maps


def test_damaged_aps_are_named(arms, city, config, copied):
    _, tmp_path = copied
    path = tmp_path / "ours" / "seed-0" / "queries.safetensors"
    path.write_bytes(path.read_bytes()[:30])
    refused("queries.safetensors", run, {"ours": arms["ours"]}, city, config, tmp_path, seeds=(0,))
    shutil.copy(tmp_path / "ours" / "seed-0" / "model.safetensors", path)
    refused(r"queries.safetensors", run, {"ours": arms["ours"]}, city, config, tmp_path, seeds=(0,))


def pairs_of(samples):
    """Both sides of some people as generated ones."""
    return [replace(s, source="synthetic") for s in samples]


def test_an_arm_without_the_shared_set(arms, city, config, tmp_path, shares):
    """Its people are others, and those whom the other arms share stay the same."""
    only = pairs_of(city["external"] + city["external_ir"])
    config = replace(config, synthetic_fraction=0.5)
    arms = {"paired-only": city["train"], **arms, "synthetic-only": only}
    found = run(arms, city, config, tmp_path, seeds=(0,), apart=["synthetic-only"])
    others = tuple(sorted({s.pid for s in city["external"]}))
    alike = dict.fromkeys(("paired-only", "synthetic-only"), (None, ()))
    assert shares == {**alike, **dict.fromkeys(("baseline", "ours", "oracle"), (0.5, others))}
    arm = found.arm("synthetic-only")
    assert arm.apart and not found.arm("ours").apart and (arm.identities, arm.synthetic) == (4, 48)
    assert "Trained without the set that the other arms share: synthetic-only." in (tmp_path / "table.md").read_text()


def test_people_whom_an_arm_cannot_train_on_are_said_before_any_training(arms, city, config, tmp_path):
    strict = replace(config, missing="refuse")
    two = {name: arms[name] for name in ("ours", "baseline")}
    refused(r"arm 'baseline': 4 of 12 .*\(no infrared: 0021", run, two, city, strict, tmp_path)
    only = {"synthetic-only": pairs_of(city["external"])}
    refused("'synthetic-only'.* 4 identities", run, {**arms, **only}, city, config, tmp_path, apart=["synthetic-only"])
    few = {"synthetic-only": [s for s in pairs_of(city["external"] + city["external_ir"]) if s.pid != "0021"]}
    refused("'synthetic-only'.* 4 identities, got 3", run, {**arms, **few}, city, config, tmp_path, apart=[*few])
    assert not list(tmp_path.iterdir())


def test_draws_of_sysu_are_averaged_for_each_query(arms, city, config, tmp_path):
    found = run({"ours": arms["ours"]}, city, config, tmp_path, seeds=(0,), protocol=Protocol("sysu", trials=3))
    aps = load_file(tmp_path / "ours" / "seed-0" / "queries.safetensors")["ap"]
    assert aps.shape == (3, 24)
    assert 100 * aps.mean() == pytest.approx(found.arm("ours").map[0], abs=1e-4)


def test_arms_of_the_command_line():
    from dive_fast.commands import reid_compare

    assert reid_compare._arm("baseline") == ("baseline", [], [], False)
    ours = reid_compare._arm("ours=pairs,market:m,prefix=1")
    assert ours == ("ours", [SetSpec("market", Path("m"), prefix="1")], [Path("pairs")], False)
    assert reid_compare._arm("synthetic-only=only:pairs") == ("synthetic-only", [], [Path("pairs")], True)
    for bad in ("a=only:", "a=b,", "=b", "a=market:m,prefix=1,"):
        refused(bad, reid_compare._arm, bad)


def test_the_command_hands_recipe_and_settings_on(tmp_path, monkeypatch, run):
    """Only what is given changes the recipe, and arms without --real are named."""
    from dive_fast.commands import reid_compare
    from dive_fast.reid.training.recipes import recipe

    seen = {}

    def compare(arms, query, gallery, config, seeds, out, **options):
        seen.update(config=config, seeds=seeds, **options)

    monkeypatch.setattr(comparing, "compare", compare)
    monkeypatch.setattr(reid_compare, "join_training", lambda *sources: [])
    monkeypatch.setattr(reid_compare, "test_sides", lambda data, protocol: ([], []))
    monkeypatch.setattr(reid_compare, "show_comparison", lambda *shown: None)
    line = f"reid compare --real sysu:s --arm a --arm b=only:pairs --baseline a --out {tmp_path} --device cpu"
    code, _, error = run(line)
    assert code == 0
    assert "recipe pocket" in error and "--recipe agw" in error and "no --protocol" in error
    assert seen["config"] == recipe("pocket") == ReidConfig()
    assert (seen["apart"], seen["seeds"], seen["protocol"].name) == (["b"], (0, 1, 2), "sysu")
    code, _, error = run(f"{line} --protocol pocket")
    assert (code, "recipe pocket" in error, "no --protocol" in error) == (0, False, False)
    assert run(f"{line} --recipe caj --backbone pocket --precision bf16 --lr 0.01 --erase 0 --protocol sysu")[0] == 0
    assert seen["config"] == recipe("caj", backbone="pocket", precision="bf16", lr=0.01, erase=0)
    assert seen["protocol"].name == "sysu"
    assert run(f"{line} --arm a")[0] == 2
