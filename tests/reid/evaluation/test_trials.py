"""RegDB's trials with a model each, on a toy RegDB: training, resuming, both directions, leaks."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from dive_fast.commands import reid_inputs
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sets import SetSpec, parse_set
from dive_fast.options import Changes
from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.evaluation import trials as module
from dive_fast.reid.evaluation.evaluate import evaluate_reid
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.evaluation.trials import run_trials
from dive_fast.reid.training.checkpoint import load_model
from tests.support.city import TINY, photo
from tests.support.refusals import refused


@pytest.fixture(scope="module")
def regdb(tmp_path_factory):
    """Eight people; trial 1 trains on the first four and trial 2 on the last, and tests on the others."""
    root = tmp_path_factory.mktemp("regdb") / "RegDB"
    lists = {}
    for pid in range(1, 9):
        for kind, folder, camera in (("visible", "Visible", 1), ("thermal", "Thermal", 3)):
            for number in range(3):
                name = f"{folder}/{pid}/person_{folder[0].lower()}_{number:05d}_{pid}.bmp"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                photo(pid, camera, number).save(root / name)
                for trial in (1, 2):
                    part = "train" if (pid <= 4) == (trial == 1) else "test"
                    lists.setdefault(f"{part}_{kind}_{trial}", []).append(f"{name} {(pid - 1) % 4}")
    (root / "idx").mkdir()
    for name, lines in lists.items():
        (root / "idx" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


CONFIG = replace(TINY, augment=AugmentConfig(), steps=4)


@pytest.fixture(scope="module")
def trials(regdb):
    return partial(run_trials, SetSpec("regdb", regdb), progress=False)


@pytest.fixture(scope="module")
def report(trials, tmp_path_factory):
    out = tmp_path_factory.mktemp("trials")
    return out, trials(CONFIG, out, trials=(1, 2))


@pytest.mark.slow
def test_each_trial_has_its_model_and_both_directions(regdb, report):
    out, found = report
    assert [r.direction for r in found.results] == ["infrared to visible", "visible to infrared"]
    for number in (1, 2):
        model = load_model(out / f"trial-{number}")[2]
        assert model["pids"] == sorted({s.pid for s in read_regdb(regdb, "train", number)})
        assert model["sha256"] == found.checkpoints[number - 1]
    for row, direction in enumerate(("ir-to-visible", "visible-to-ir")):
        maps = []
        for number in (1, 2):
            samples = read_regdb(regdb, "test", number)
            sides = {kind: [s for s in samples if s.modality == kind] for kind in ("ir", "rgb")}
            protocol = Protocol("regdb", direction=direction, trial=number)
            query, gallery = sides[protocol.query_modality], sides[protocol.gallery_modality]
            one = evaluate_reid(out / f"trial-{number}", query, gallery, protocol=protocol, progress=False)
            assert (one.rule, one.queries, one.gallery) == ("regdb", 12, 12)
            maps.append(one.map)
        result = found.results[row]
        assert result.per_trial["map"] == pytest.approx(maps)
        assert (result.map, result.map_deviation) == pytest.approx((np.mean(maps), np.std(maps, ddof=1)))
        assert result.protocol["models"] == 2 and "trial" not in result.protocol
    assert "trials 2, draw none, models 2), visible to infrared" in found.describe()
    assert f"2 checkpoints {result.checkpoint[:12]}; no re-ranking" in found.describe()
    assert json.loads((out / "trials.json").read_text())["trials"] == [1, 2]


def test_a_second_start_neither_trains_nor_embeds(trials, report, monkeypatch):
    out, found = report
    monkeypatch.setattr(module, "extract", None)
    monkeypatch.setattr("dive_fast.reid.training.train.fit", None)
    assert trials(CONFIG, out, trials=(1, 2)) == found
    one = trials(CONFIG, out, trials=(2,))
    assert one.results[0].map == found.results[0].per_trial["map"][1] and one.results[0].map_deviation == 0


def test_other_settings_are_refused(trials, report):
    refused("trial-1", trials, replace(CONFIG, lr=1e-4), report[0], trials=(1,))


def test_a_model_of_another_trial_is_refused(regdb, report):
    out, _ = report
    data = reid_inputs.test_set(parse_set(f"regdb:{regdb},trial=2"))
    protocol, _ = reid_inputs.protocol_from(data, "regdb", Changes({}))
    assert protocol.trial == 2
    query, gallery = reid_inputs.test_sides(data, protocol)
    refused("4 identities .*0001", evaluate_reid, out / "trial-1", query, gallery, protocol=protocol, progress=False)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (SetSpec("sysu", "x"), {}, "'sysu'"),
        (SetSpec("regdb", "x"), {"trials": (1, 1)}, "different numbers from 1 to 10"),
        (SetSpec("regdb", "x"), {"trials": (0,)}, "different numbers from 1 to 10"),
        (SetSpec("regdb", "x"), {"trials": ()}, "different numbers from 1 to 10"),
        (SetSpec("regdb", "x"), {"directions": ()}, "one or both of"),
    ],
)
def test_bad_settings_are_named(spec, settings, message, tmp_path):
    refused(message, run_trials, spec, CONFIG, tmp_path, **settings)


def test_a_missing_list_is_said_before_any_training(trials, tmp_path):
    refused(r"train_visible_3\.txt", trials, CONFIG, tmp_path, trials=(1, 3))
    assert not (tmp_path / "trial-1").exists()


@pytest.mark.filterwarnings("ignore:.*seen in one modality only")
def test_people_in_both_halves_are_refused(regdb, tmp_path):
    copy = shutil.copytree(regdb, tmp_path / "RegDB")
    train = (copy / "idx/train_visible_1.txt").read_text()
    with open(copy / "idx/test_visible_1.txt", "a") as stream:
        stream.write(train.splitlines()[0].rsplit(" ", 1)[0] + " 9\n")
    refused("1 identities of trial 1 .*0001", run_trials, SetSpec("regdb", copy), CONFIG, tmp_path / "out", trials=(1,))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_commands(regdb, tmp_path, run, step):
    """Train and test a trial, score its checkpoint again, export the features and score those."""
    small = "--steps 2 --identities 4 --per-modality 1 --device cpu"
    forth, back = step(f"reid trials --real regdb:{regdb} --out {tmp_path}/t --trials 2 {small}")["results"]

    def score(options):
        code, out, error = run(f"reid eval {options} --test regdb:{regdb},trial=2 --protocol regdb --json")
        assert code == 0, error
        assert "12 " in error and "2,060" in error  # not all test images: scores are not comparable
        return json.loads(out.splitlines()[-1])

    checkpoint = f"--checkpoint {tmp_path}/t/trial-2 --device cpu"
    again = score(f"{checkpoint} --export {tmp_path}/f.mat --out {tmp_path}/result.json")
    assert again["per_trial"] == forth["per_trial"] and again["protocol"]["trial"] == 2
    assert json.loads((tmp_path / "result.json").read_text())["map"] == again["map"]
    assert score(f"{checkpoint} --direction visible-to-ir")["per_trial"] == back["per_trial"]
    for source in ("features", "distances"):
        assert score(f"--{source} {tmp_path}/f.mat")["map"] == pytest.approx(again["map"])
    assert score(f"{checkpoint} --rerank")["rerank"] == {"k1": 20, "k2": 6, "share": 0.3}
    for options, words in (
        (f"{checkpoint} --protocol regdb", ["4 identities of the test set"]),
        (f"{checkpoint} --protocol pocket", ["--protocol pocket", "regdb"]),
        ("--protocol regdb", ["--checkpoint", "--features", "--distances"]),
    ):
        code, _, error = run(f"reid eval {options} --test regdb:{regdb}")
        assert code == 2 and all(word in error for word in words), error


def test_training_reads_sets_by_their_spec(regdb):
    samples = reid_inputs.join_training([parse_set(f"regdb:{regdb},trial=2")], [], [], False)
    assert samples == read_regdb(regdb, "train", 2)
