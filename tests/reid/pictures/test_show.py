"""Retrieval pictures: what is shown is what was found, and numbers beside pictures are those of plain loops."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive_fast.reid.evaluation.metrics import RULES
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.pictures.config import ShowConfig
from dive_fast.reid.pictures.features import GROUPS, neighbour_shares, people_in_turn, sample_people, tsne
from dive_fast.reid.pictures.page import RIGHT, THUMB, WRONG, Section, split_pages
from dive_fast.reid.pictures.rank import choose, retrieve
from dive_fast.reid.pictures.show import show_retrieval
from dive_fast.types import DiveError, InputError, Sample
from tests.support.refusals import refused

EVIL = '<img src=x onerror="alert(1)">'


def unit(rng, rows, dims=6):
    values = rng.normal(size=(rows, dims))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def sides(rng, people=6, rule="sysu"):
    """Queries by cameras 3 and 6, a gallery by cameras 1 to 4, the last query's person not in it."""
    pids = [f"{i % (people + 1):03d}" for i in range(20)]
    query = [Sample(Path(f"q{i}"), pid, f"cam{3 + 3 * (i % 2)}", modality="ir") for i, pid in enumerate(pids)]
    gallery = [Sample(Path(f"g{i}"), f"{rng.integers(people):03d}", f"cam{i % 4 + 1}") for i in range(60)]
    return query, gallery, (unit(rng, 20), unit(rng, 60))


@pytest.mark.parametrize("rule", RULES)
def test_a_ranking_is_the_plain_one_without_what_the_rule_ignores(rule):
    query, gallery, features = sides(np.random.default_rng(3))
    found = retrieve(query, gallery, features, rule)
    for row, asked in enumerate(query):
        seen = []
        for column, there in enumerate(gallery):
            same = (asked.pid, asked.camera) == (there.pid, there.camera)
            blind = (asked.camera, there.camera) == ("cam3", "cam2")
            if not ((rule == "sysu" and blind) or (rule == "llcm" and same)):
                seen.append((1 - float(features[0][row] @ features[1][column]), column))
        order = [column for _, column in sorted(seen)]
        places = [i + 1 for i, column in enumerate(order) if gallery[column].pid == asked.pid]
        if not places:
            assert np.isnan(found.aps[row]) and row not in found.rows_of(asked.camera)
            continue
        ranking = found.ranking(row, 10)
        assert [hit.row for hit in ranking.top] == order[:10]
        assert [hit.right for hit in ranking.top] == [gallery[c].pid == asked.pid for c in order[:10]]
        assert [hit.rank for hit in ranking.top] == list(range(1, 11))
        assert (ranking.first.rank, ranking.matches) == (places[0], len(places))
        assert found.hits[row] == (places[0] == 1)
        assert ranking.ap == pytest.approx(np.mean([(i + 1) / p for i, p in enumerate(places)]))


def test_who_is_chosen():
    rng = np.random.default_rng(0)
    query, gallery, features = sides(rng)
    found = retrieve(query, gallery, features, "sysu")
    valid = found.rows_of("cam3")
    worst = choose(found, "cam3", "worst", 4)
    assert worst[0] == valid[np.argmin(found.aps[valid])]
    assert choose(found, "cam3", "best", 4)[0] == valid[np.argmax(found.aps[valid])]
    assert len({query[row].pid for row in worst}) == 4  # nobody twice while others wait
    everyone = choose(found, "cam3", "worst", 99)
    assert sorted(everyone) == valid.tolist()
    random = choose(found, "cam3", "random", 5, seed=1)
    assert random == choose(found, "cam3", "random", 5, seed=1) and set(random) <= set(valid)
    assert any(choose(found, "cam3", "random", 5, seed=s) != random for s in range(2, 6))


def test_sections_go_on_on_the_next_page():
    sections = [Section("cam3", "worst", "a", tuple(range(5))), Section("cam6", "worst", "b", tuple(range(10, 13)))]
    pages = split_pages(sections, 4)
    assert [[(s.name, s.rankings) for s in page] for page in pages] == [
        [("a", (0, 1, 2, 3))],
        [("a", (4,)), ("b", (10, 11, 12))],
    ]


def plain_shares(features, samples, wanted, pool, neighbours):
    """`GroupShares` of one group by loops: (images counted, share, chance)."""
    shares, chances = [], []
    for i in wanted:
        near = []
        for j in pool:
            own = (samples[i].pid, samples[i].camera) == (samples[j].pid, samples[j].camera)
            if samples[j].source == "real" and not own:
                near.append((-float(features[i] @ features[j]), j))
        right = [j for _, j in near if samples[j].pid == samples[i].pid]
        if right:
            most = min(neighbours, len(right))
            shares.append(sum(j in right for _, j in sorted(near)[:most]) / most)
            chances.append(len(right) / len(near))
    return len(shares), np.mean(shares), np.mean(chances)


def test_shares_of_neighbours_are_those_of_plain_loops():
    rng = np.random.default_rng(5)
    samples = [
        Sample(Path(str(i)), f"{i % 7}", f"cam{rng.integers(1, 5)}", source, modality)
        for i, (source, modality) in enumerate(
            [("real", "rgb")] * 40 + [("real", "ir")] * 20 + [("synthetic", "ir")] * 15 + [("synthetic", "rgb")] * 4
        )
    ]
    samples[-1] = replace(samples[-1], pid="nobody else")
    features = unit(rng, len(samples))
    kinds = {"visible": [i for i, s in enumerate(samples) if s.modality == "rgb"]}
    kinds["infrared"] = [i for i, s in enumerate(samples) if s.modality == "ir"]
    trained = {"0", "1", "2"}
    found = neighbour_shares(features, samples, trained, 4)
    assert [(g.group, g.trained) for g in found] == [(g, t) for g in GROUPS for t in (True, False)]
    for group in found:
        source, kind = group.group.split()
        own = [i for i in kinds[kind] if samples[i].source == source and (samples[i].pid in trained) == group.trained]
        assert group.images == len(own)
        for name in kinds:
            count, share, chance = plain_shares(features, samples, own, kinds[name], 4)
            share_found = getattr(group, name)
            assert (share_found.images, share_found.share, share_found.chance) == pytest.approx((count, share, chance))
    assert (found[5].images, found[5].visible.images) == (3, 2)  # who has no real image is not counted


def test_the_modality_of_neighbours():
    """Two clusters, by modality; one synthetic infrared image lies among the visible ones."""
    samples = [Sample(Path(f"v{i}"), str(i), "cam1") for i in range(10)]
    samples += [Sample(Path(f"r{i}"), str(i), "cam3", "real", "ir") for i in range(10)]
    samples += [Sample(Path(f"s{i}"), str(i), "cam3", "synthetic", "ir") for i in range(2)]
    features = np.repeat(np.float32([[1, 0], [0, 1], [0, 1], [1, 0]]), [10, 10, 1, 1], axis=0)
    shares = {g.group: g.modality for g in neighbour_shares(features, samples, neighbours=5)}
    assert shares["real visible"].share == shares["real infrared"].share == 1
    assert shares["synthetic infrared"].share == 0.5
    assert shares["synthetic infrared"].chance == pytest.approx(9 / 19)


def test_people_are_sampled_whole_and_of_all_kinds():
    samples = [Sample(Path(f"{p}-{i}"), str(p), "cam1") for p in range(6) for i in range(4)]
    samples += [Sample(Path(f"s{i}"), "3", "cam3", "synthetic", "ir") for i in range(4)]
    people = people_in_turn(samples, {"5"}, seed=2)
    assert sorted(people) == list("012345") and people[0] == "3"  # of most groups; then one of each kind
    assert people[2 if people[1] == "5" else 1] in "0124" and "5" in people[1:3]
    assert people == people_in_turn(samples, {"5"}, seed=2)
    assert any(people_in_turn(samples, {"5"}, seed=s) != people for s in range(3, 9))
    rows = sample_people(samples, people, 13)
    assert {samples[i].pid for i in rows} == set(people[:2]) and len(rows) == 12 and rows == sorted(rows)
    assert sample_people(samples, people, 3) == []


@pytest.mark.slow
def test_tsne_is_seeded_and_keeps_clusters_apart():
    pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn (extra: reid)")
    rng = np.random.default_rng(0)
    centres = unit(rng, 3, 16)
    features = np.concatenate([c + 0.01 * rng.normal(size=(15, 16)) for c in centres]).astype(np.float32)
    points = tsne(features, 4)
    assert points.shape == (45, 2) and np.array_equal(points, tsne(features, 4))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 15 == np.arange(45) // 15).all()
    refused("--images 0", tsne, features[:5], error=DiveError)


class Seen(HTMLParser):
    """Figures of a page: (kind, source, description) in order; every tag; every text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.figures: list[tuple[str, str, str]] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self._kind = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "figure":
            self._kind = given.get("class") or "query"
        if tag == "img" and given.get("class") != "plot":
            self.figures.append((self._kind, given["src"], given["alt"]))
        if tag == "a":
            self.links.append(given["href"])
        assert not any(name.startswith("on") for name in given)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def shown(city, checkpoint, tmp_path_factory):
    """Pages without a picture of features, of a test half in which a person has an evil name."""
    out = tmp_path_factory.mktemp("shown") / "out"
    query, gallery = (
        [replace(s, pid=EVIL if s.pid == "0103" else s.pid) for s in city[k]] for k in ("query", "gallery")
    )
    config = ShowConfig(queries=4, orders=("worst", "best"), top=5, per_page=10, images=0)
    page = show_retrieval(checkpoint, query, gallery, out, config, dataset="city", progress=False)
    return page, json.loads((out / "show.json").read_text())


@pytest.mark.slow
def test_pages_show_what_the_record_says(shown, city):
    page, record = shown
    pages = [Seen(page.parent / name) for name in ("index.html", "page-2.html")]
    figures = [figure for seen in pages for figure in seen.figures]
    names = {str(s.path): s.pid for s in [*city["query"], *city["gallery"]]}
    expected = []
    for section in record["sections"]:
        assert len(section["queries"]) == 4 and section["camera"] in ("cam3", "cam6")
        for query in section["queries"]:
            expected.append("query")
            for hit in query["top"]:
                assert hit["right"] == (names[hit["file"]] == names[query["file"]])
                expected.append("right" if hit["right"] else "wrong")
                assert section["camera"] == "cam6" or "/cam2/" not in hit["file"]
            distances = [hit["distance"] for hit in query["top"]]
            assert distances == sorted(distances)
            if query["first_right"] > 5:
                expected.append("right")
    assert [kind for kind, _, _ in figures] == expected
    assert {"right", "wrong"} <= set(expected)
    for kind, source, description in figures:
        assert kind == "query" or f", {kind}, " in description
        image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        assert image.width <= THUMB[0] and image.height <= THUMB[1]
    marks = [text for seen in pages for text in seen.texts if text in "\u2713\u2717" and text.strip()]
    assert marks == ["\u2713" if kind == "right" else "\u2717" for kind in expected if kind != "query"]
    # Every camera and order is linked to from every page, and what is linked to exists.
    for seen in pages:
        assert {"index.html#cam3-worst", "page-2.html#cam6-best"} <= set(seen.links)
        assert all((page.parent / link.split("#")[0]).is_file() for link in seen.links)
        assert "script" not in seen.tags
    assert any(EVIL in text for seen in pages for text in seen.texts)


@pytest.mark.slow
def test_worst_comes_first(shown):
    for section in shown[1]["sections"]:
        aps = [query["ap"] for query in section["queries"]]
        assert aps == sorted(aps, reverse=section["order"] == "best")


@pytest.mark.slow
def test_sheets_have_frames_of_both_kinds(shown):
    page, record = shown
    rgb = {tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)): colour for colour in (RIGHT, WRONG)}
    seen = set()
    for section in record["sections"]:
        sheet = Image.open(page.parent / section["sheet"]).convert("RGB")
        counts = {colour: count for count, colour in sheet.getcolors(maxcolors=2**24)}
        hits = [hit["right"] for query in section["queries"] for hit in query["top"]]
        first = [query["first_right"] > 5 for query in section["queries"]]
        for colour, wanted in ((RIGHT, any(hits) or any(first)), (WRONG, not all(hits))):
            own = next(key for key, value in rgb.items() if value == colour)
            assert (counts.get(own, 0) > 100) == wanted
            seen |= {colour} if wanted else set()
        assert sheet.width < 1200 and sheet.height < 1200
    assert seen == {RIGHT, WRONG}


@pytest.mark.slow
def test_features_are_pictured_with_numbers_beside(city, checkpoint, tmp_path):
    pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn (extra: reid)")
    everything = [*city["train"], *city["external"], *city["external_ir"]]
    config = ShowConfig(queries=1, orders=("random",), images=120, people=3)
    page = show_retrieval(
        checkpoint, city["query"], city["gallery"], tmp_path / "out", config, features_of=everything, progress=False
    )
    record = json.loads((tmp_path / "out" / "show.json").read_text())["features"]
    groups = {(group["group"], group["trained"]): group for group in record["shares"]}
    assert {key: group["images"] for key, group in groups.items()} == {
        ("real visible", True): 48,
        ("real visible", False): 72,
        ("real infrared", True): 48,
        ("real infrared", False): 24,
        ("synthetic infrared", False): 24,
    }
    made = groups["synthetic infrared", False]
    assert made["infrared"]["share"] is None  # external people have no real infrared
    share = made["visible"]
    assert share["images"] == 24
    text = page.read_text()
    assert f"{100 * share['share']:.0f} % ({100 * share['chance']:.1f} %)" in text
    assert text.count('class="plot"') == 2 and "real images only" in text
    sizes = [Image.open(tmp_path / "out" / f"features-{kind}.png").size for kind in ("groups", "people")]
    assert sizes == [(1148, 896)] * 2
    kinds = [{s.pid for s in city[name]} for name in ("train", "external", "query")]
    assert record["shown"] <= 120 and all(set(record["people"]) & kind for kind in kinds)  # one of each


@pytest.mark.slow
def test_a_folder_belongs_to_one_choice(city, checkpoint, tmp_path):
    config = ShowConfig(queries=1, orders=("worst",), images=0)

    def run(out, config=config, query=city["query"], **options):
        return show_retrieval(checkpoint, query, city["gallery"], out, config, progress=False, **options)

    page = run(tmp_path / "a")
    before = page.read_bytes()
    record = json.loads((page.parent / "show.json").read_text())
    (page.parent / "show.json").write_text(json.dumps({**record, "finished": False}))
    page.unlink()
    assert run(tmp_path / "a").read_bytes() == before  # an interrupted one is made again
    for change in ({"config": replace(config, top=3)}, {"query": city["query"][:-1]}, {"dataset": "other"}):
        refused("choose another --out", run, tmp_path / "a", **change)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    refused("other files", run, tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_another_trial_shows_another_gallery(city, checkpoint, tmp_path):
    def show(trial):
        config = ShowConfig(queries=1, orders=("worst",), images=0, shown_trial=trial)
        options = {"protocol": Protocol("sysu", "indoor", trials=3), "progress": False}
        page = show_retrieval(checkpoint, city["query"], city["gallery"], tmp_path / str(trial), config, **options)
        record = json.loads((page.parent / "show.json").read_text())
        assert record["gallery"] == 12
        return {hit["file"] for s in record["sections"] for q in s["queries"] for hit in q["top"]}

    assert show(1) != show(3)
    refused("3 trials, got trial 4", show, 4)


def test_refusals(city, checkpoint, tmp_path):
    with pytest.raises(InputError, match="0001"):
        train = city["train"]
        sides = ([s for s in train if s.modality == kind] for kind in ("ir", "rgb"))
        show_retrieval(checkpoint, *sides, tmp_path / "out", ShowConfig(images=0), progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command_hands_its_options_on(tmp_path, monkeypatch, run):
    from dive_fast.commands import reid_show
    from dive_fast.reid.pictures import show

    seen = {}

    def show_retrieval(checkpoint, query, gallery, out, config, **options):
        seen.update(config=config, **options)
        return out / "index.html"

    monkeypatch.setattr(show, "show_retrieval", show_retrieval)
    monkeypatch.setattr(reid_show, "join_training", lambda real, sets, datasets, same: [*sets, *datasets])
    monkeypatch.setattr(reid_show, "test_sides", lambda data, protocol: ([], []))
    line = f"reid show --checkpoint c --test sysu:s --out {tmp_path} --device cpu"
    assert run(line)[0] == 0
    assert seen["config"] == ShowConfig() and seen["features_of"] is None
    assert seen["protocol"].name == "sysu"  # no world.json lies beside the set
    changed = "--queries 2 --orders worst,random --top 5 --shown-trial 3 --per-page 9 --seed 7"
    assert run(f"{line} {changed} --images 0 --no-flip --protocol pocket --synthetic pairs")[0] == 0
    assert seen["config"] == ShowConfig(2, ("worst", "random"), 5, 3, 9, images=0, seed=7, flip=False)
    assert seen["features_of"] == [Path("pairs")] and seen["protocol"] == Protocol()
