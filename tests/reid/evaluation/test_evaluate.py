"""Evaluation: right features to right metrics, every number with its circumstances."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from dive_fast.commands import reid_inputs
from dive_fast.data.sets import parse_set
from dive_fast.options import Changes
from dive_fast.reid.data.dataset import load_images
from dive_fast.reid.evaluation.evaluate import check_unseen, embed, evaluate_reid, extract
from dive_fast.reid.evaluation.metrics import evaluate
from dive_fast.reid.evaluation.protocols import Protocol, draw_trials
from dive_fast.reid.evaluation.rerank import RerankConfig, Reranked
from dive_fast.reid.evaluation.task import check_sides
from dive_fast.reid.training.checkpoint import load_model
from tests.support.refusals import refused
from tests.support.trees import touch, write


@pytest.fixture
def score(city, checkpoint):
    return partial(evaluate_reid, checkpoint, city["query"], city["gallery"], progress=False)


def test_result_says_how_it_came_about(score, checkpoint):
    result = score(dataset="city")
    assert result.dataset == "city" and result.direction == "infrared to visible" and result.rule == "sysu"
    assert result.protocol == Protocol().metadata()
    assert (result.queries, result.gallery, result.valid_queries) == (24, 48, 24)
    assert result.checkpoint == load_model(checkpoint)[2]["sha256"]
    assert 0 < result.minp <= 100 and 0 < result.map <= 100 and result.rank1 <= result.rank5 <= result.rank20 <= 100
    assert result.map_deviation == 0


def test_pocket_equals_features_and_metrics_by_hand(city, checkpoint, score):
    result = score(flip=False, batch=7)
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


def test_sysu_trials_are_averaged(score):
    one, three = (score(protocol=Protocol("sysu", "indoor", trials=trials)) for trials in (1, 3))
    assert one.gallery == three.gallery == 12  # 6 people, 2 cameras, 1 shot
    assert one.map_deviation == 0 < three.map_deviation
    assert three.protocol["trials"] == 3 and three.protocol["search"] == "indoor"
    assert set(three.per_trial) == {"rank1", "rank5", "rank10", "rank20", "map", "minp"}
    for name in ("rank1", "map", "minp"):
        values = three.per_trial[name]
        assert len(values) == 3 and getattr(three, name) == pytest.approx(np.mean(values))
        assert getattr(three, f"{name}_deviation") == pytest.approx(np.std(values, ddof=1))


def test_line_says_all_that_the_numbers_are_of(score):
    protocol = Protocol("sysu", "indoor", trials=2)
    result = score(protocol=protocol, dataset="city", rerank=RerankConfig(k1=5, k2=2))
    scores, facts = result.describe().split("\n")
    assert scores.startswith(f"mAP {result.map:.2f} ± {result.map_deviation:.2f}, rank-1 {result.rank1:.2f} ± ")
    assert facts == (
        "city; protocol sysu (indoor search, shots 1, trials 2, draw seeded), infrared to visible; 24 queries (24 valid), "
        f"12 gallery images; checkpoint {result.checkpoint[:12]}; re-ranked (k1 5, k2 2, lambda 0.3)"
    )
    assert result.rerank == {"k1": 5, "k2": 2, "share": 0.3}
    assert "no re-ranking" in replace(result, rerank=None).describe()


def test_reranking_looks_at_one_trial_at_a_time(city, checkpoint, score):
    protocol, config = Protocol("sysu", trials=2), RerankConfig(k1=5, k2=2)
    result = score(protocol=protocol, rerank=config)
    found = extract(checkpoint, city["query"], city["gallery"], progress=False)
    ids, cams = (
        [np.array([part(s) for s in city[side]]) for side in ("query", "gallery")]
        for part in (lambda s: s.pid, lambda s: int(s.camera[3:]))
    )
    for trial, drawn in enumerate(draw_trials(city["query"], city["gallery"], protocol)):
        rows = drawn.gallery
        distances = Reranked(found.query, found.gallery[rows], config).rows(slice(None))
        expected = evaluate(distances, ids[0], ids[1][rows], cams[0], cams[1][rows])
        assert result.per_trial["map"][trial] == pytest.approx(100 * expected.map)


def test_a_checkpoint_that_knows_test_people_is_refused(city, checkpoint):
    people = {"0003", "0104"}
    seen = [s for s in city["train"] if s.pid in people] + [s for s in city["query"] if s.pid in people]
    query, gallery = [s for s in seen if s.modality == "ir"], [s for s in city["train"] if s.modality == "rgb"]
    refused("8 identities .*0001, 0002, 0003", evaluate_reid, checkpoint, query, gallery, progress=False)
    result = evaluate_reid(checkpoint, query, gallery, progress=False, other_people=True)
    assert result.other_people and "as declared" in result.describe()
    assert (result.queries, result.valid_queries) == (10, 6)  # nobody in the gallery is 0104


def test_both_directions_and_the_legacy_one(city, checkpoint):
    """LLCM's names on the toy city's images: the queries' modality, the sides' sizes and what the result says."""
    names = {"cam1": "llcm-vis1", "cam2": "llcm-vis2", "cam3": "llcm-nir1", "cam6": "llcm-nir6"}
    renamed = [replace(s, camera=names[s.camera]) for s in city["query"] + city["gallery"] if s.camera in names]
    infrared, visible = ([s for s in renamed if s.modality == kind] for kind in ("ir", "rgb"))

    def run(*sides, **settings):
        return evaluate_reid(checkpoint, *sides, protocol=Protocol("llcm", trials=2, **settings), progress=False)

    forth = run(infrared, visible)
    assert (forth.direction, forth.queries, forth.gallery) == ("infrared to visible", 24, 12)
    back = run(visible, infrared, direction="visible-to-ir")
    assert (back.direction, back.queries, back.gallery) == ("visible to infrared", 24, 12)
    legacy = run(infrared, visible, direction="visible-to-ir", mode="legacy")
    assert legacy.direction == "infrared to visible (legacy: published as visible to infrared)"
    assert (legacy.queries, legacy.gallery) == (12, 24)
    refused("expected rgb", run, infrared, visible, direction="visible-to-ir")


def test_sides_are_checked_before_any_image_is_opened(city, checkpoint):
    query, gallery = city["query"], city["gallery"]
    for sides, protocol, message in (
        (([], gallery), Protocol(), "query"),
        ((query, []), Protocol(), "gallery"),
        ((gallery, query), Protocol(), "expected ir"),
        ((query, [replace(gallery[0], source="synthetic"), *gallery[1:]]), Protocol(), "synthetic"),
        ((query, [*gallery, gallery[0]]), Protocol(), "query and gallery list 1 file"),
        ((query, [replace(gallery[0], pid=""), *gallery[1:]]), Protocol(), "without an identity"),
        ((query, gallery), Protocol("regdb"), "protocol 'regdb' is for RegDB"),
        ((query, gallery), Protocol("llcm"), "protocol 'llcm' is for LLCM"),
        (([replace(query[0], camera="regdb-thermal2")], gallery), Protocol("sysu"), "for SYSU-MM01"),
        (([replace(query[0], camera="llcm-nir1")], gallery), Protocol("pocket"), "for a tree like .*llcm-nir1"),
    ):
        refused(message, evaluate_reid, "no/checkpoint", *sides, protocol=protocol, progress=False)
    gallery = [replace(s, pid="0999") for s in gallery]
    refused("no valid query", evaluate_reid, checkpoint, query, gallery, progress=False)


def test_people_that_weights_were_chosen_on_are_no_strangers(city):
    record = {"pids": ["0001"], "validation": {"people": ["0101"]}}
    refused("1 identities .*0101", check_unseen, record, city["query"], city["gallery"])
    check_unseen({"pids": ["0001"]}, city["query"], city["gallery"])


def _protocol(data, name, permutations=None, **settings):
    spec = None if data is None else reid_inputs.test_set(parse_set(data))
    changes = Changes({(key,): value for key, value in settings.items()})
    return reid_inputs.protocol_from(spec, name, changes, permutations)


def test_what_commands_take_for_a_test_set(tmp_path):
    assert reid_inputs.test_set(parse_set("sysu:SYSU")).split == "test"
    assert reid_inputs.test_set(parse_set("sysu:SYSU,split=val")).split == "val"
    for data, name, settings, message in (
        ("market:Market", "pocket", {}, "market:Market has no infrared images"),
        ("sysu:SYSU,split=train", "sysu", {}, "split train"),
        ("llcm:LLCM", "sysu", {}, "--protocol sysu is not for llcm"),
        ("sysu:SYSU", "regdb", {}, "--protocol regdb is not for sysu"),
        (None, "sysu", {"draw": "official"}, "--test"),
        (f"sysu:{tmp_path}", "sysu", {"draw": "official"}, r"rand_perm_cam\.mat cannot be read"),
    ):
        refused(message, _protocol, data, name, **settings)
    assert _protocol("regdb:R,trial=2", "regdb")[0].trial == 2


def test_a_protocol_that_is_not_named_is_guessed_with_a_note(tmp_path, capsys):
    """SYSU-MM01's layout is that of a pocket world too, whose world.json lies beside its tree."""
    (tmp_path / "world.json").write_text("{}")
    for data, name in (
        (f"sysu:{tmp_path}/sysu", "pocket"),
        ("sysu:SYSU", "sysu"),
        ("regdb:R,trial=2", "regdb"),
        ("llcm:L", "llcm"),
        (None, "pocket"),
    ):
        protocol, _ = _protocol(data, None)
        assert protocol.name == name
        assert (f"--protocol {name}" in capsys.readouterr().err) == (data is not None)
        assert _protocol(data, name)[0] == protocol and not capsys.readouterr().err


@pytest.mark.parametrize(("protocol", "warned"), [("sysu", True), ("regdb", True), ("llcm", True), ("pocket", False)])
def test_the_pocket_recipe_under_a_real_protocol_is_warned_of(protocol, warned, capsys):
    reid_inputs.warn_of_pocket("recipe pocket", protocol)
    assert ("--recipe agw" in capsys.readouterr().err) == warned


def test_official_draws_are_found_beside_the_data(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    cells = np.empty((1, 1), object)
    cells[0, 0] = np.empty((1, 1), object)
    cells[0, 0][0, 0] = np.array([[2, 1]])
    (tmp_path / "exp").mkdir()
    savemat(tmp_path / "exp/rand_perm_cam.mat", {"rand_perm_cam": cells})
    protocol, tables = _protocol(f"sysu:{tmp_path}", "sysu", draw="official")
    assert protocol.draw == "official" and tables[1, 1].tolist() == [[2, 1]]
    protocol, tables = _protocol(None, "sysu", permutations=tmp_path / "exp/rand_perm_cam.mat")
    assert protocol.draw == "official" and tables


@pytest.mark.parametrize(
    ("settings", "asked", "searched"),
    [
        ({}, "nir", "vis"),
        ({"direction": "visible-to-ir"}, "vis", "nir"),
        ({"direction": "visible-to-ir", "mode": "legacy"}, "nir", "vis"),
    ],
)
def test_llcm_s_sides_are_read_by_direction(tmp_path, settings, asked, searched):
    files = [f"test_{kind}/cam{c}/0002/{n}_c{c:02d}.jpg" for kind in ("vis", "nir") for c in (1, 2) for n in range(3)]
    write(touch(tmp_path, *files) / "idx/test_id.txt", "2")
    protocol, _ = _protocol(f"llcm:{tmp_path}", "llcm", **settings)
    query, gallery = reid_inputs.test_sides(reid_inputs.test_set(parse_set(f"llcm:{tmp_path}")), protocol)
    assert {s.camera for s in query} == {f"llcm-{asked}1", f"llcm-{asked}2"} and len(query) == 6
    assert {s.camera for s in gallery} == {f"llcm-{searched}1", f"llcm-{searched}2"}
    check_sides(query, gallery, protocol)
