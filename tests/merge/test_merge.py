"""Merged trees read back by our readers, and by small readings as the trainers do; what is refused; runs that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dive_fast.data.folder import read_folder
from dive_fast.data.llcm import read_llcm
from dive_fast.data.market import read_market
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sysu import read_sysu
from dive_fast.io import write_json
from dive_fast.synth.manifest import read_manifest
from dive_fast.types import DiveError, Sample
from tests.support.merging import agw_arrays, agw_lines, dataset, drop, joined, provenance, save_records, sysu
from tests.support.refusals import refused
from tests.support.trees import contents, names, photo
from tests.support.trees import write as write_lines

pytestmark = pytest.mark.filterwarnings("ignore:.*seen in one modality")


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return sysu(tmp_path / "SYSU")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two pairs each of a person of the real set and of one beside it."""
    return dataset(tmp_path / "pairs", ["0001", "0005"])


def test_sysu_tree(tmp_path: Path, real: Path, pairs: Path) -> None:
    before = contents(real), contents(pairs)
    out = joined(tmp_path / "new", "sysu", [f"sysu:{real}"], [str(pairs)], same_people=True)
    assert (contents(real), contents(pairs)) == before
    assert names(read_sysu(out, "trainval"), out) == [
        f"{camera}/{pid}/000{file}"
        for camera in ("cam1", "cam3")
        for pid, files in (("0001", "1.jpg 7.jpg 8.png 9.png"), ("0002", "1.jpg 7.jpg"), ("0005", "1.png 2.png"))
        for file in files.split()
    ]
    lists = [(out / "exp" / f"{name}_id.txt").read_text() for name in ("train", "val", "test")]
    assert lists == ["1,5\n", "2\n", "3\n"]
    assert len(read_sysu(out, "test")) == 4
    for name, data in before[0].items():
        if name.endswith(".jpg"):
            assert (out / name).read_bytes() == data
    rows = {row["file"]: row for row in provenance(out)}
    assert len(rows) == 16 + 4
    name = "cam3/0003/0007.jpg"
    assert rows[name] == {"file": name, "part": "test", "kind": "real", "set": "sysu", "source": name}
    made = rows["cam3/0001/0009.png"]
    expected = ("synthetic", "synthetic", "cam3/0001/0002.png", "0001-00001-cam3", True)
    assert tuple(made[key] for key in ("kind", "set", "source", "pair_id", "converted")) == expected
    assert made["sha256"] == sha256(before[1]["cam3/0001/0002.png"]).hexdigest()
    with Image.open(out / made["file"]) as image, Image.open(pairs / made["source"]) as source:
        assert (image.mode, source.mode) == ("RGB", "L")
        assert (np.asarray(image) == np.asarray(source)[..., None]).all()
        assert image.info == source.info
    assert (out / "cam1/0001/0008.png").read_bytes() == before[1]["cam1/0001/0001.png"]


def test_dropped_and_rejected_pairs_are_left_out(tmp_path: Path, pairs: Path) -> None:
    records = list(read_manifest(pairs))
    save_records(pairs, [replace(records[0], status="rejected"), *records[1:]])
    drop(pairs, records[3].spec.pair_id)
    out = joined(tmp_path / "new", "sysu", [], [str(pairs)])
    assert [row["pair_id"] for row in provenance(out)] == [r.spec.pair_id for r in records[1:3] for _ in "12"]
    # no set lists val people, and AGW scripts read no empty list
    assert [(out / f"exp/{split}_id.txt").read_text() for split in ("train", "val")] == ["1\n", "5\n"]
    assert not (out / "exp/test_id.txt").exists()


@pytest.mark.parametrize(
    ("own", "given", "advice"),
    [("1", "", "Market,prefix=1"), ("", ",prefix=2", "pairs,prefix=2"), ("1", ",prefix=2", "prefix")],
)
def test_one_person_under_two_names_is_refused(tmp_path: Path, own: str, given: str, advice: str) -> None:
    """The plan names the people of `photos` with the prefix `own`, the merge with `given`."""
    photos = [photo(tmp_path / f"Market/bounding_box_train/000{n}_c1s1_000001_00.jpg", n) for n in (2, 7)]
    planned = [Sample(path, f"{own}000{n}", "cam7") for path, n in zip(photos, (2, 7), strict=True)]
    pairs = dataset(tmp_path / "pairs", [sample.pid for sample in planned], photos=planned)
    market = f"market:{tmp_path / 'Market'}"
    options = {"same_people": True, "layout": "llcm"}
    refused(advice, joined, tmp_path / "new", real=[market + given], synthetic=[str(pairs)], **options)
    right = {"real": [f"{market},prefix={own}"], "synthetic": [str(pairs)]}
    people = {row["pid"]: row["label"] for row in provenance(joined(tmp_path / "new", **right, **options))}
    assert people == {f"{own}0002": 0, f"{own}0007": 1}


def test_one_photo_of_two_people_in_one_set_is_its_own_affair(tmp_path: Path) -> None:
    for pid in ("0001", "0002"):
        photo(tmp_path / f"photos/{pid}/1.jpg", seed=3)
    out = joined(tmp_path / "new", "sysu", [f"folder:{tmp_path / 'photos'},camera=cam1"])
    assert {row["pid"] for row in provenance(out)} == {"0001", "0002"}


LYING = np.rot90(
    np.arange(24 * 12 * 3, dtype=np.uint8).reshape(24, 12, 3), 1
)  # stored so, Orientation 6 shows it upright


@pytest.mark.parametrize("how", ["copy", "symlink"])
@pytest.mark.parametrize("layout", ["sysu", "market", "agw"])
def test_photos_are_merged_upright(tmp_path: Path, layout: str, how: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    stored = Image.fromarray(np.ascontiguousarray(LYING))
    path = tmp_path / "SYSU/cam1/0001/0001.png"
    path.parent.mkdir(parents=True)
    stored.save(path, exif=exif)
    write_lines(tmp_path / "SYSU/exp/train_id.txt", "1")
    write_lines(tmp_path / "SYSU/exp/val_id.txt", "1")
    out = joined(tmp_path / "new", layout, [f"sysu:{tmp_path / 'SYSU'}"], how=how, size=(24, 12))
    upright = np.rot90(LYING, -1)
    (row,) = provenance(out)
    if layout == "agw":
        np.testing.assert_array_equal(np.load(out / row["file"])[row["row"]], upright)
    else:
        with Image.open(out / row["file"]) as image:
            assert (image.size, image.getexif().get(274, 1), row["converted"]) == ((12, 24), 1, True)
            np.testing.assert_allclose(np.asarray(image).astype(int), upright, atol=0 if layout == "sysu" else 40)
    assert path.read_bytes() and Image.open(path).size == (24, 12)  # the source is unchanged


@pytest.mark.parametrize("suffix", ["tif", "webp", "gif"])
def test_formats_that_trainers_do_not_read_become_jpeg(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"SYSU/cam1/0001/0001.{suffix}"
    photo(path)
    write_lines(tmp_path / "SYSU/exp/train_id.txt", "1")
    write_lines(tmp_path / "SYSU/exp/val_id.txt", "1")
    out = joined(tmp_path / "new", "sysu", [f"sysu:{tmp_path / 'SYSU'}"])
    with Image.open(out / "cam1/0001/0001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (12, 24))


@pytest.mark.parametrize("how", ["copy", "symlink", "link"])
def test_ways_to_bring_a_file(tmp_path: Path, real: Path, pairs: Path, how: str) -> None:
    out = joined(tmp_path / "new", "sysu", [f"sysu:{real}"], [str(pairs)], same_people=True, how=how)
    origins = {"cam1/0001/0001.jpg": real, "cam3/0003/0001.jpg": real, "cam1/0005/0001.png": pairs}
    for name, source in ((name, root / name) for name, root in origins.items()):
        assert (out / name).is_symlink() == (how == "symlink")
        assert os.path.samefile(out / name, source) == (how != "copy")
        assert (out / name).read_bytes() == source.read_bytes()
    for name in ("cam3/0005/0001.png", "exp/test_id.txt"):  # converted images and lists are always files of their own
        assert (out / name).lstat().st_nlink == 1
        assert not (out / name).is_symlink()
    if how == "copy":
        (out / "cam1/0001/0001.jpg").write_bytes(b"changed")
        assert (real / "cam1/0001/0001.jpg").read_bytes() != b"changed"


def test_links_between_file_systems(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    refused("--how symlink", joined, tmp_path / "new", "sysu", [f"sysu:{real}"], how="link", error=DiveError)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=8 * 48 * 24 * 3 - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refused("free space.*--out", joined, tmp_path / "new", "agw", [], [str(pairs)], size=(48, 24), error=DiveError)
    assert contents(tmp_path / "new.merging").keys() == {"merge.json"}
    joined(tmp_path / "small", "agw", [], [str(pairs)], size=(24, 24))


def test_arrays_are_what_the_agw_family_makes_of_the_tree(tmp_path: Path, real: Path, pairs: Path) -> None:
    """Oracle: the merged SYSU tree, walked and resized as pre_process_sysu.py does."""
    sources = ([f"sysu:{real}"], [str(pairs)])
    tree = joined(tmp_path / "tree", "sysu", *sources, same_people=True)
    out = joined(tmp_path / "agw", "agw", *sources, same_people=True, size=(48, 24))
    arrays = agw_arrays(out)
    assert list(arrays) == [f"train_{side}_resized_{part}" for side in ("ir", "rgb") for part in ("img", "label")]
    label = {"0001": 0, "0002": 1, "0005": 2}
    for side, camera in (("rgb", "cam1"), ("ir", "cam3")):
        images, labels = (arrays[f"train_{side}_resized_{part}"] for part in ("img", "label"))
        assert (images.dtype, images.shape, labels.dtype, labels.shape) == (np.uint8, (8, 48, 24, 3), np.int64, (8,))
        assert sorted(set(labels)) == list(range(3))
        expected = [
            (label[pid], np.array(Image.open(path).resize((24, 48), Image.Resampling.LANCZOS)).tobytes())
            for pid in label
            for path in sorted((tree / camera / pid).iterdir())
        ]
        assert sorted(zip(labels.tolist(), (image.tobytes() for image in images), strict=True)) == sorted(expected)
    assert len(read_sysu(out, "test")) == 4  # for the family's own evaluation
    row = next(row for row in provenance(out) if row["source"] == "cam3/0005/0002.png")
    assert arrays["train_ir_resized_label"][row["row"]] == row["label"] == 2
    grey = arrays["train_ir_resized_img"][row["row"]]
    assert (grey.max(-1) == grey.min(-1)).all()


def regdb(root: Path) -> Path:
    """Trial 2 trains on 285 and 9 and tests on 7."""
    for kind, letter in (("Visible", "v"), ("Thermal", "t")):
        for split, people in (("train", (285, 9)), ("test", (7,))):
            files = [f"{kind}/{pid}/male_back_{letter}_0001_{pid}.bmp" for pid in people]
            for name in files:
                photo(root / name, len(name))
            write_lines(root / f"idx/{split}_{kind.lower()}_2.txt", *(f"{n} {i}" for i, n in enumerate(files)))
    return root


def test_regdb(tmp_path: Path) -> None:
    real, made = regdb(tmp_path / "RegDB"), dataset(tmp_path / "pairs", ["0285", "0300"], pairs=1)
    out = joined(tmp_path / "new", "regdb", [f"regdb:{real},trial=2"], [str(made)], same_people=True)
    for kind, letter in (("visible", "v"), ("thermal", "t")):
        files, labels = agw_lines(out / f"idx/train_{kind}_2.txt")
        folder = kind.capitalize()
        assert dict(zip(files, labels, strict=True)) == {
            f"{folder}/9/male_back_{letter}_0001_9.bmp": 0,
            f"{folder}/285/male_back_{letter}_0001_285.bmp": 1,
            f"{folder}/285/new_{letter}_00001_0285.png": 1,
            f"{folder}/0300/new_{letter}_00001_0300.png": 2,
        }
        stacked = np.array([np.array(Image.open(out / name).resize((144, 288))) for name in files])
        assert stacked.shape == (4, 288, 144, 3)
    assert [s.pid for s in read_regdb(out, "train", 2)] == ["0009", "0285", "0285", "0300"] * 2
    assert names(read_regdb(out, "test", 2), out) == names(read_regdb(real, "test", 2), real)


def test_llcm(tmp_path: Path) -> None:
    real = tmp_path / "LLCM"
    shown = product(("vis", "nir"), ("0001", "0003"), (1, 2))
    trained = [f"{kind}/{pid}/{pid}_c0{camera}_s1_f1_{kind}.jpg" for kind, pid, camera in shown]
    for name in [*trained, *(f"test_{kind}/cam1/0002/0002_c01_s1_f1_{kind}.jpg" for kind in ("vis", "nir"))]:
        photo(real / name)
    for kind in ("vis", "nir"):
        listed = [name for name in trained if name.startswith(kind)]
        write_lines(real / f"idx/train_{kind}.txt", *(f"{n} {int('0003' in n)}" for n in listed))
    write_lines(real / "idx/test_id.txt", "2")
    made = dataset(tmp_path / "pairs", ["0001", "0004"], pairs=1)
    cameras = {"cam3": "llcm-nir9"}
    out = joined(tmp_path / "new", "llcm", [f"llcm:{real}"], [str(made)], same_people=True, cameras=cameras)
    files, labels = agw_lines(out / "idx/train_nir.txt")
    assert files[-2:] == ["nir/0001/0001_c09_s000001_f0001_nir.png", "nir/0004/0004_c09_s000001_f0001_nir.png"]
    assert labels == [0, 1, 0, 1, 0, 2]  # the reader's order: camera, then person
    samples = read_llcm(out)
    assert {s.camera for s in samples} == {"llcm-vis1", "llcm-vis2", "llcm-nir1", "llcm-nir2", "llcm-nir9"}
    assert sorted(s.pid for s in samples) == sorted(2 * (2 * ["0001", "0003"] + ["0001", "0004"]))
    assert len(read_llcm(out, "test")) == 2


def market(root: Path) -> Path:
    for folder, stems in (
        ("bounding_box_train", "0002_c1s1_000451_03 0002_c1s2_000007_01 0007_c3s1_000001_01"),
        ("query", "0003_c1s1_000001_00"),
        ("bounding_box_test", "0003_c2s1_000001_00 -1_c2s1_000002_00"),
    ):
        for name in stems.split():
            photo(root / folder / f"{name}.jpg", len(folder))
    return root


def test_market(tmp_path: Path) -> None:
    real, made = market(tmp_path / "Market"), dataset(tmp_path / "pairs", ["0002", "0009"], pairs=1)
    out = joined(tmp_path / "new", "market", [f"market:{real}"], [str(made)], same_people=True)
    found = sorted(path.name for path in (out / "bounding_box_train").glob("*.jpg"))  # as torchreid and fast-reid look
    expected = "0002_c1s1_000451_03 0002_c1s1_000452_00 0002_c1s2_000007_01 0002_c3s1_000001_00 0007_c3s1_000001_01 "
    assert [Path(name).stem for name in found] == (expected + "0009_c1s1_000001_00 0009_c3s1_000001_00").split()
    assert [s.path.name for s in read_market(out)] == found
    for folder in ("query", "bounding_box_test"):
        assert contents(out / folder) == contents(real / folder)
    with Image.open(out / "bounding_box_train/0009_c1s1_000001_00.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (16, 32))
        difference = np.asarray(image).astype(int) - np.asarray(Image.open(made / "cam1/0009/0001.png"))
        assert 0 < np.abs(difference).mean() < 8
        assert '"pair_id":"0009-00000-cam3"' in image.getexif()[0x010E]


def test_the_test_half_comes_with_a_prefixed_set(tmp_path: Path) -> None:
    """Its files keep their names; people of the tree must not have those."""
    real, made = market(tmp_path / "Market"), dataset(tmp_path / "pairs", ["10002", "10009"], pairs=1)
    sources = {"real": [f"market:{real},prefix=1"], "same_people": True}
    out = joined(tmp_path / "new", "market", synthetic=[str(made)], **sources)
    people = {row["pid"] for row in provenance(out) if row["part"] == "train"}
    assert people == {"10002", "10007", "10009"}
    for folder in ("query", "bounding_box_test"):
        assert contents(out / folder) == contents(real / folder)
    tested = min(s.pid for s in read_market(real, "query"))
    other = dataset(tmp_path / "others", [tested], pairs=1)
    refused("test half", joined, tmp_path / "bad", "market", synthetic=[str(other)], **sources)


def test_photos_come_once(tmp_path: Path) -> None:
    """The real RGB sides of pairs are the external set's photos; a photo in two pairs is one, too."""
    for number in range(2):
        photo(tmp_path / "photos/0001" / f"{number}.jpg", number)
    photos = read_folder(tmp_path / "photos", "cam7")
    made = dataset(tmp_path / "pairs", ["0001"], pairs=4, photos=photos)
    alone = provenance(joined(tmp_path / "alone", "agw", [], [str(made)]))
    photo_side, made_side = ("real", "rgb"), ("synthetic", "ir")
    expected = [photo_side, made_side, photo_side, *[made_side] * 3]
    assert [(row["kind"], row["modality"]) for row in alone] == expected
    sources = ([f"folder:{tmp_path / 'photos'}"], [str(made)])
    both = provenance(joined(tmp_path / "both", "agw", *sources, same_people=True))
    assert [(row["set"], row["modality"]) for row in both] == [("folder", "rgb")] * 2 + [("synthetic", "ir")] * 4


def test_people_get_four_digits(tmp_path: Path, real: Path) -> None:
    made = dataset(tmp_path / "pairs", ["0001", "anna"], pairs=1)
    sources = ([f"sysu:{real}"], [f"{made},prefix=1"])
    with (
        pytest.warns(UserWarning, match="1anna are no numbers"),
        pytest.warns(UserWarning, match=r"1anna, 10001.*--number-people"),
    ):
        joined(tmp_path / "plain", "sysu", *sources)
    out = joined(tmp_path / "new", "sysu", *sources, number_people=True)
    assert {s.pid for s in read_sysu(out, "trainval")} == {"0001", "0002", "0004", "0005"}  # 0003 is a test person
    last = {row["pid"] for row in provenance(out) if row["file"].startswith("cam1/0005")}
    assert last == {"10001"}  # naturally after 1anna


def test_people_of_one_modality(tmp_path: Path, pairs: Path) -> None:
    for folder in ("0006", "0007"):
        photo(tmp_path / "external" / folder / "1.jpg", int(folder))
    sources = ([f"folder:{tmp_path / 'external'},camera=cam2"], [str(pairs)])
    with pytest.warns(UserWarning, match=r"2 of 4 .*\(0006, 0007\).*--missing drop"):
        kept = joined(tmp_path / "kept", "agw", *sources)
    assert set(agw_arrays(kept)["train_rgb_resized_label"]) == {0, 1, 2, 3}
    out = joined(tmp_path / "dropped", "agw", *sources, missing="drop")
    assert {tuple(set(labels)) for name, labels in agw_arrays(out).items() if name.endswith("label")} == {(0, 1)}
    refused("one modality", joined, tmp_path / "refused", "agw", *sources, missing="refuse")


def test_refused(tmp_path: Path, real: Path, pairs: Path) -> None:
    tested = dataset(tmp_path / "tested", ["0003"])
    out = tmp_path / "new"
    refused(r"1 people .*set sysu .*\(0003\)", joined, out, "sysu", [f"sysu:{real}"], [str(tested)], same_people=True)
    refused("3 people of the test half|1 people of the test half", joined, out, "agw", [f"sysu:{real},split=all"])
    refused(r"synthetic, sysu \(0001\).*--same-people", joined, out, "sysu", [f"sysu:{real}"], [str(pairs)])
    refused("prefix=1", joined, out, "sysu", [f"sysu:{real}", f"folder:{real / 'cam1'},camera=cam2"])
    refused("'cam9'", joined, out, "sysu", [], [str(pairs)], cameras={"cam3": "cam9"})
    refused("more than once", joined, out, "sysu", [], [str(pairs), str(pairs / "../pairs")])
    refused("nothing to merge", joined, out, "sysu")
    refused("lies in .*SYSU", joined, real / "new", "sysu", [f"sysu:{real}"])
    (real / "cam1/0002/0007.jpg").write_bytes((real / "cam1/0002/0007.jpg").read_bytes()[:400])
    refused(r"1 of 8 .*0002/0007\.jpg is damaged", joined, out, "sysu", [f"sysu:{real}"])
    assert not out.exists()
    assert not (tmp_path / "new.merging").exists()
    out.mkdir()  # an empty folder may be there
    assert len(read_sysu(joined(out, "sysu", [], [str(pairs)]), "trainval")) == 8
    shutil.rmtree(out)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused("exists", joined, out, "sysu", [], [str(pairs)])
    assert contents(out) == {"mine.txt": b"mine"}


def test_a_finished_tree_is_kept_unless_its_report_is_damaged(tmp_path: Path, pairs: Path) -> None:
    out = tmp_path / "new"
    again = partial(joined, out, "sysu", [], [str(pairs)])
    again()
    whole = json.loads((out / "merged.json").read_text())
    assert again() == out
    for odd in ({"people": "x"}, {"test_of": [5]}, {"train": {}}, {"train": [{**whole["train"][0], "images": "x"}]}):
        write_json(out / "merged.json", whole | odd)
        refused(r"merged\.json", again)


def test_what_the_manifest_promises_is_checked(tmp_path: Path, pairs: Path) -> None:
    records = list(read_manifest(pairs))
    twice = replace(records[1], files={**records[1].files, "ir": records[0].files["ir"]})
    save_records(pairs, [records[0], twice, *records[2:]])
    refused(r"0001\.png .*0001-00000-cam3 .*0001-00001-cam3", joined, tmp_path / "new", "sysu", [], [str(pairs)])
    save_records(pairs, records)
    Image.new("L", (16, 32)).save(pairs / "cam3/0005/0002.png")
    refused(r"cam3/0005/0002\.png", joined, tmp_path / "new", "sysu", [], [str(pairs)])
    (pairs / "cam3/0005/0002.png").unlink()
    refused("0005-00001-cam3.*dive-fast verify", joined, tmp_path / "other", "sysu", [], [str(pairs)])


@pytest.mark.parametrize("layout", ["sysu", "agw"])
def test_a_killed_merge_is_continued(tmp_path: Path, real: Path, pairs: Path, layout: str) -> None:
    options = {"same_people": True, "size": (32, 16)}
    sources = (layout, [f"sysu:{real}"], [str(pairs)])
    whole = joined(tmp_path / "whole", *sources, **options)
    out, work = tmp_path / "new", tmp_path / "new.merging"
    code = f"""
import os, signal
from dive_fast.merge import write
from tests.support.merging import joined
origin, calls = write._origin, []
def dies(placed):
    calls.append(placed)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return origin(placed)
write._origin = dies
joined(__import__("pathlib").Path({str(out)!r}), *{sources!r}, **{options!r})
"""
    here = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=here, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    assert not {"provenance.jsonl", "merged.json", "exp/train_id.txt"} & contents(work).keys()
    assert list(work.glob(".*.dive-tmp"))
    refused("unfinished merge.*--out", joined, out, *sources, **{**options, "how": "symlink"})
    joined(out, *sources, **options)
    assert contents(out) == contents(whole)
    assert not work.exists()
    (out / "merge.json").write_text("{}")  # as a kill after the rename leaves it
    joined(out, *sources, **options)
    assert contents(out) == contents(whole)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    joined(out, *sources, **options)  # the same again changes nothing
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    refused("other sets or .*--out", joined, out, *sources, **{**options, "how": "symlink"})
