"""Sets by layout name, mixtures of them, filters and counts; expected values are counted by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dive_fast.data import sets as photo_sets
from dive_fast.data.config import PrepareConfig
from dive_fast.data.counts import Count, count_sets, table
from dive_fast.data.filters import Dropped, apply_filters
from dive_fast.data.names import free_prefix, prefix_hint
from dive_fast.data.prepare import PreparePlan
from dive_fast.data.sets import PAIRED, READERS, Reader, SetSpec, all_samples, join_sets, parse_set, read_set, read_sets
from dive_fast.types import InputError, Sample
from tests.support.preparing import plan_of, prepare
from tests.support.refusals import refused
from tests.support.trees import mixed_trees, photo, touch, write


def people(*pids: str, camera: str = "cam7", modality: str = "rgb", root: str = "r") -> list[Sample]:
    return [Sample(Path(root) / f"{i}-{pid}.jpg", pid, camera, modality=modality) for i, pid in enumerate(pids)]  # type: ignore[arg-type]


def spec(layout: str, root: str = "r") -> SetSpec:
    return SetSpec(layout, Path(root))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sysu:/data/SYSU-MM01", SetSpec("sysu", Path("/data/SYSU-MM01"))),
        ("regdb:RegDB,trial=3,prefix=2", SetSpec("regdb", Path("RegDB"), "2", trial=3)),
        ("msmt17:C:/sets,of,mine/MSMT17,camera=cam8", SetSpec("msmt17", Path("C:/sets,of,mine/MSMT17"), camera="cam8")),
        ("market-gt-bbox:Market,prefix=", SetSpec("market-gt-bbox", Path("Market"))),
        ("llcm:LLCM,split=test", SetSpec("llcm", Path("LLCM"), split="test")),
        ("market:M/bounding_box_train/,prefix=1", SetSpec("market", Path("M"), "1", split="train")),
        ("market:M/query", SetSpec("market", Path("M"), split="query")),
        ("market:M/query,split=query", SetSpec("market", Path("M"), split="query")),
        ("market:M/query,split=train", SetSpec("market", Path("M/query"), split="train")),  # which there is not
        ("market-gt-bbox:M/gt_bbox", SetSpec("market-gt-bbox", Path("M"))),
        ("sysu:M/query", SetSpec("sysu", Path("M/query"))),
    ],
)
def test_sets_on_the_command_line(text: str, expected: SetSpec) -> None:
    assert parse_set(text) == expected


@pytest.mark.parametrize(
    ("text", "layouts", "message"),
    [
        ("/data/SYSU-MM01", (), "LAYOUT:PATH.* sysu, regdb, llcm, market"),
        ("market:M", PAIRED, "market:M.* sysu, regdb, llcm"),
        ("cuhk03:C", (), "cuhk03:C"),
        ("sysu:", (), "LAYOUT:PATH"),
        ("sysu:S,camera=cam7", (), "camera.* prefix, split"),
        ("sysu:S,trial=2", (), "trial"),
        ("regdb:R,trial=two", (), "trial.*'two'"),
        ("regdb:R,trial=1,trial=2", (), "trial"),
        ("sysu:S,split=", (), "split"),
    ],
)
def test_wrong_sets_on_the_command_line(text: str, layouts: tuple[str, ...], message: str) -> None:
    refused(message, parse_set, text, layouts)
    refused("cuhk03", read_set, spec("cuhk03"))


def test_a_folder_of_market_reads_as_its_root(tmp_path: Path) -> None:
    _, market = mixed_trees(tmp_path)
    assert read_set(parse_set(f"market:{market}/bounding_box_train")) == read_set(parse_set(f"market:{market}"))


def refusal(text: str, layouts: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as raised:
        parse_set(text, layouts)
    return str(raised.value)


def test_a_layout_that_is_missing_or_misspelled_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sysu, market = mixed_trees(Path())
    write(sysu / "exp/test_id.txt", "2")
    (tmp_path / "people/0001").mkdir(parents=True)
    for text, guess in (
        (f"{sysu}", f"sysu:{sysu}"),
        (f"{market},prefix=1", f"market:{market},prefix=1"),
        (f"{market}/bounding_box_train", f"market:{market}/bounding_box_train"),
        ("people", "folder:people"),
        (f"markt:{market}", f"market:{market}"),
    ):
        assert refusal(text).endswith(f"Do you mean {guess}?")
    for text, layouts in (("nowhere", ()), (f"{market}", PAIRED), ("x" * 5000, ()), ("a\0b", ())):
        assert "Do you mean" not in refusal(text, layouts)


def test_a_forgotten_prefix_is_guessed() -> None:
    known = ["10002", "10007", "0012", "20002", "10012"]
    assert "prefix=1?" in prefix_hint(["0002", "0007", "0012"], known)
    assert prefix_hint(["0005"], known) == prefix_hint([], known) == prefix_hint(["10002"], known) == ""
    assert free_prefix(["0002", "0012"], known) == "3"  # 1 and 2 would make 10002 and 20002 of 0002
    assert free_prefix(["0005"], known) == "1"


def test_sets_that_share_names_are_refused_with_a_prefix_that_parts_them(tmp_path: Path) -> None:
    for name in ("a/0002", "a/10002", "b/0002"):
        photo(tmp_path / name / "1.jpg")
    texts = [f"folder:{tmp_path}/a", f"folder:{tmp_path}/b"]
    with pytest.raises(InputError) as raised:
        read_sets(texts)
    guess = re.search(r"as (\S+)\?$", str(raised.value))
    assert guess is not None and guess[1] == f"{texts[1]},prefix=2"
    assert {sample.pid for named in read_sets([texts[0], guess[1]]) for sample in named.samples} == {
        "0002",
        "10002",
        "20002",
    }


def test_a_new_reader_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout is its reader and its row: the grammar, the help, mixtures, filters, counts and preparing follow."""

    def read_flat(root: Path, camera: str, split: str) -> list[Sample]:
        return [Sample(file, file.stem.split("-")[0], camera) for file in sorted(root.glob(f"{split}-*/*.png"))]

    monkeypatch.setitem(READERS, "flat", Reader(read_flat, False, "train", ("camera", "split"), "flat folders"))
    for seed, name in enumerate(("0001-a", "0001-b", "0002-a")):
        photo(tmp_path / "flat/train-1" / f"{name}.png", seed)
    assert "flat (flat folders; takes camera=, split=train)" in photo_sets.set_help()
    sets = read_sets([f"flat:{tmp_path / 'flat'},camera=cam8,prefix=f"])
    assert [(s.pid, s.camera) for s in all_samples(sets)] == [("f0001", "cam8"), ("f0001", "cam8"), ("f0002", "cam8")]
    filters = PrepareConfig(min_images=2)
    left, dropped = apply_filters(sets, filters)
    plan = PreparePlan(tuple(left), tuple(count_sets(sets)), filters, tuple(dropped))
    report = prepare(plan, tmp_path / "out")
    assert (report["images"], report["identities"]) == (2, 1)
    assert report["sets"] == [{"name": "flat", "layout": "flat", "split": "train", "prefix": "f", "camera": "cam8"}]


def test_sets_are_read_by_their_text(tmp_path: Path) -> None:
    sysu, market = mixed_trees(tmp_path)
    assert {s.pid for s in read_set(parse_set(f"market:{market},camera=cam9,prefix=1"))} == {"10002", "10007", "10011"}
    assert len(read_set(parse_set(f"sysu:{sysu}"))) == 8
    write(sysu / "exp/test_id.txt", "2")
    assert {s.pid for s in read_set(parse_set(f"sysu:{sysu},split=test,prefix=5"))} == {"50002"}


def test_people_of_one_modality_are_told(tmp_path: Path) -> None:
    sysu, _ = mixed_trees(tmp_path)
    photo(sysu / "cam3/0003/0001.jpg")
    write(sysu / "exp/train_id.txt", "1,3")
    with pytest.warns(UserWarning, match="0003"):
        assert len(read_set(SetSpec("sysu", sysu))) == 9


def test_a_mixture_keeps_names_and_sources(tmp_path: Path) -> None:
    sysu, market = mixed_trees(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    specs = [SetSpec("sysu", sysu), SetSpec("market", market, "1"), SetSpec("market", market, "2", split="train")]
    refused("market and in set market-2", read_sets, specs)
    sets = read_sets(specs[:2])
    assert [(named.name, len(named.samples)) for named in sets] == [("sysu", 8), ("market", 6)]
    assert {s.pid for s in all_samples(sets)} == {"0001", "0002", "10002", "10007", "10011"}
    assert sets[1].file_name(sets[1].samples[0]) == "bounding_box_train/0002_c1s1_000001_01.jpg"
    assert read_sets(specs[:2]) == sets
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_mixture_never_mixes_people_or_cameras() -> None:
    known, others = people("0001", "0002"), people("0002", "0003", root="f")
    message = r"set sysu and in set folder \(0002\).*folder:f,prefix=1"
    refused(message, join_sets, [(spec("sysu"), known), (spec("folder", "f"), others)])
    infrared, visible = people("1", camera="cam3", modality="ir"), people("2", camera="cam3")
    message = r"'cam3' is ir in set sysu and rgb in set market.*camera="
    refused(message, join_sets, [(spec("sysu"), infrared), (spec("market", "m"), visible)])
    refused("no set", read_sets, [])


def test_a_prefix_leaves_the_samples_of_a_set_alone(tmp_path: Path) -> None:
    _, market = mixed_trees(tmp_path)
    plain, named = (read_set(SetSpec("market", market, prefix)) for prefix in ("", "m-"))
    assert named == [replace(sample, pid=f"m-{sample.pid}") for sample in plain]
    refused("'a,0002'", read_set, SetSpec("market", market, "a,"))


def test_filters_count_people_before_shapes(tmp_path: Path) -> None:
    """As DiVE did: 0002 goes for having two photos; 0003 has three, of which only one is tall; nothing of 0004 is."""
    shapes = {"0002": [(20, 10), (20, 10)], "0003": [(20, 10), (19, 10), (10, 20)], "0004": [(10, 10)] * 3}
    for pid, sizes in shapes.items():
        for i, (height, width) in enumerate(sizes):
            photo(tmp_path / "f" / pid / f"{i}.png", height=height, width=width)
    (tmp_path / "f/0003/broken.png").write_bytes(b"no image")
    photo(tmp_path / "s/cam1/0001/0001.png", height=10)
    specs = (SetSpec("folder", tmp_path / "f"), SetSpec("folder", tmp_path / "s/cam1", "9"))
    sets = join_sets([(s, read_set(s)) for s in specs])
    counted: list[int] = []
    left, dropped = apply_filters(sets[:1], PrepareConfig(min_images=3, tall=True), counted.append)
    assert [left[0].file_name(s) for s in left[0].samples] == ["0003/0.png", "0003/broken.png"]
    flat = ("0003/1.png", "0003/2.png", "0004/0.png", "0004/1.png", "0004/2.png")
    assert dropped == [
        Dropped("folder", "of people with fewer than 3 images", ("0002/0.png", "0002/1.png"), ("0002",)),
        Dropped("folder", "not twice as high as wide", flat, ("0004",)),
    ]
    assert sum(counted) == 7
    assert len(sets[0].samples) == 9
    assert apply_filters(sets, PrepareConfig()) == (sets, [])
    refused("at least 1, got 0", PrepareConfig, min_images=0)


def test_few_images_do_not_drop_paired_people(tmp_path: Path) -> None:
    mixed_trees(tmp_path)
    left = plan_of(tmp_path, min_images=3).sets
    assert {s.pid for s in all_samples(left)} == {"0001", "0002", "10011"}


def test_counts_beside_the_published_ones(tmp_path: Path) -> None:
    sysu, market = mixed_trees(tmp_path)
    touch(sysu, "cam2/0002/0001.jpg")
    rows = count_sets(read_sets([SetSpec("sysu", sysu), SetSpec("market", market, "1")]))
    assert rows == [
        Count("sysu", "trainval", "cam1", "rgb", 2, 4),
        Count("sysu", "trainval", "cam2", "rgb", 1, 1),
        Count("sysu", "trainval", "all", "rgb", 2, 5, 395, 22_258),
        Count("sysu", "trainval", "all", "ir", 2, 4, 395, 11_909),
        Count("market", "train", "all", "rgb", 3, 6, 751, 12_936),
    ]
    assert table(rows[2:4]).splitlines() == [
        "set   split     camera  modality  people  images  published people  images",
        "sysu  trainval  all     rgb            2       5               395  22,258",
        "sysu  trainval  all     ir             2       4               395  11,909",
    ]


def test_published_counts_of_a_test_split_by_camera(tmp_path: Path) -> None:
    touch(tmp_path, "cam3/0001/0001.jpg", "cam6/0001/0001.jpg", "cam1/0001/0001.jpg")
    write(tmp_path / "exp/test_id.txt", "1")
    rows = count_sets(read_sets([SetSpec("sysu", tmp_path, split="test")]))
    assert [(row.camera, row.published_identities, row.published_images) for row in rows] == [
        ("all", 96, 6_775),
        ("cam3", None, 1_883),
        ("cam6", None, 1_920),
        ("all", 96, 3_803),
    ]
