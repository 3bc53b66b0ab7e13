"""Galleries: their data beside the manifest read with json alone, thumbnails beside the images, resume, and refusals."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dive_fast.report import chunks, gallery
from dive_fast.report.config import ReportConfig
from dive_fast.report.gallery import write_gallery
from tests.support.dataset import add_scores, change_records, drop, make_dataset, raw_records
from tests.support.refusals import refused

CHUNK = re.compile(r'dive\.put\(("[a-z0-9/]+"),("(?:[^"\\\x00-\x1f\x7f-\U0010ffff]|\\.)*")\);\n')
DTYPES = {"pid": "<u4", "rgb": "<u2", "ir": "<u2", "status": "u1", "reasons": "<u4", "flaws": "u1", "packs": "<u4"}


def chunk(out: Path, name: str) -> Any:
    """What the page gets, read by another reader than the room's own; the file is one call with two plain strings."""
    match = CHUNK.fullmatch((out / "data" / f"{name}.js").read_text(encoding="ascii"))
    assert match
    assert json.loads(match[1]) == name
    return json.loads(json.loads(match[2]))


def column(out: Path, name: str, block: int = 0) -> np.ndarray:
    return np.frombuffer(base64.b64decode(chunk(out, f"columns/{name}/{block}")), DTYPES.get(name, "<f4"))


def build(dataset: Path, out: Path, **options: Any) -> gallery.GallerySummary:
    config = ReportConfig(workers=options.pop("workers", 1))
    return write_gallery(dataset, out, config, **{"progress": False, **options})


def files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}


def pack_path(out: Path, number: int) -> Path:
    return out / f"thumbs/0/{number}-{column(out, 'packs')[number]:08x}.jpg"


def test_every_pair_is_there_once_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("dive_fast.report.walk.RECORDS", 7)
    dataset = make_dataset(tmp_path / "set", people=5, pairs=3)
    summary = build(dataset, tmp_path / "out")
    truth = raw_records(dataset)
    assert (summary.pairs, summary.planned, summary.packs, summary.notes) == (30, 30, 2, [])
    records = [record for n in range(5) for record in chunk(tmp_path / "out", f"records/0/{n}")]
    assert [record["spec"]["pair_id"] for record in records] == [record["spec"]["pair_id"] for record in truth]
    for ours, theirs in zip(records, truth, strict=True):
        assert ours["spec"].pop("seed") == str(theirs["spec"].pop("seed"))  # 63 bits: no number of a page
        assert ours["spec"].pop("virtual") is False  # which a record leaves out
        assert ours.pop("scores") == []
        assert ours.pop("reasons") is None
        assert ours == {name: value for name, value in theirs.items() if name != "scores"}
    index = chunk(tmp_path / "out", "index")
    identities = chunk(tmp_path / "out", "identities")
    for name, names in (("pid", identities), ("rgb", index["cameras"]), ("ir", index["cameras"])):
        assert [names[i] for i in column(tmp_path / "out", name)] == [record["spec"][name] for record in truth]
    people = chunk(tmp_path / "out", "people")
    assert people["status"] == [[6, 0, 0]] * 5
    assert np.sum(people["cameras"], axis=0).tolist() == [
        sum(camera in (r["spec"]["rgb"], r["spec"]["ir"]) for r in truth) for camera in index["cameras"]
    ]


def test_columns_in_blocks(tmp_path):
    columns = chunks.Columns(tmp_path / "data", {"status": "B"}, 4)
    values = [0.5, None, None, None, None, None, None, None, None, -2.0]
    for number, value in enumerate(values):
        columns.append({"status": number}, {} if value is None else {"s0": value})
    columns.finish()
    assert columns.blocks == {"status": [0, 1, 2], "s0": [0, 2]}
    assert [column(tmp_path, "status", block).tolist() for block in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_array_equal(column(tmp_path, "s0", 0), np.float32([0.5, np.nan, np.nan, np.nan]))
    np.testing.assert_array_equal(columns.read("s0", 2), np.float32([np.nan, -2]))
    assert set(columns.names()) == {f"columns/status/{n}" for n in range(3)} | {"columns/s0/0", "columns/s0/2"}


def test_scores_and_drops(tmp_path):
    dataset = make_dataset(tmp_path / "set", people=2, pairs=6)
    ids = [record["spec"]["pair_id"] for record in raw_records(dataset)]
    scored = [{"rgb": {}, "ir": {"identity": n / 10} | ({"$x_": n} if n else {})} for n in range(24)]
    add_scores(dataset, lambda n: None if n == 3 else scored[n])
    meanings = {"scores": {"identity": {"meaning": "likeness", "high_is_good": True}}}
    (dataset / "scores/scores.json").write_text(json.dumps(meanings))
    unknown = [("0001-99999-cam3", ["x"]), ("never-planned", ["x"])]
    reasons = ["identity 0.9 > 0.8", "modality 0.1 < 0.5"]
    drop(dataset, [(ids[0], ["identity 0.00 < 0.10"]), (ids[9], reasons), *unknown, (ids[20], [])])
    summary = build(dataset, tmp_path / "out")
    assert summary.notes == ["dropped.jsonl names 2 pairs of another dataset; filter again"]
    index = chunk(tmp_path / "out", "index")
    assert index["statuses"] == [["done", 21], ["dropped", 3], ["rejected", 0]]
    assert index["reasons"] == [["identity", 2], ["modality", 1]]
    assert np.flatnonzero(column(tmp_path / "out", "status")).tolist() == [0, 9, 20]
    assert {n: int(bits) for n, bits in enumerate(column(tmp_path / "out", "reasons")) if bits} == {0: 1, 9: 3}
    scores = {(score["side"], score["name"]): score for score in index["scores"]}
    identity = scores["ir", "identity"]
    truth = np.arange(24) / 10
    truth[3] = np.nan
    np.testing.assert_array_equal(column(tmp_path / "out", identity["column"]), truth.astype(np.float32))
    assert (identity["text"], identity["high_is_good"], identity["count"]) == ("likeness", True, 23)
    assert identity["mean"] == pytest.approx(np.nanmean(truth))
    assert (identity["low"], identity["high"]) == (0.0, 2.3)
    assert scores["ir", "$x_"]["high_is_good"] is None
    record = chunk(tmp_path / "out", "records/0/0")[9]
    assert record["reasons"] == ["identity 0.9 > 0.8", "modality 0.1 < 0.5"]
    assert record["scores"] == [["ir", "identity", 0.9], ["ir", "$x_", 9.0]]


@pytest.mark.slow
def test_thumbnails_show_the_images(tmp_path):
    dataset = make_dataset(tmp_path / "set", people=5, pairs=2)
    build(dataset, tmp_path / "out", workers=2)
    truth = raw_records(dataset)
    for number, record in enumerate(truth):
        sheet = np.asarray(Image.open(pack_path(tmp_path / "out", number // 16)), float)
        row, across = divmod(number % 16, 4)
        for at, side in enumerate(("rgb", "ir")):
            cell = sheet[row * 160 : (row + 1) * 160, (2 * across + at) * 80 : (2 * across + at + 1) * 80]
            colour = np.asarray(Image.open(dataset / record["files"][side]).convert("RGB"), float)[0, 0]
            assert np.abs(cell - colour)[2:-2, 2:-2].max() < 6  # JPEG blurs colours over the very edge


def test_a_rerun_makes_only_what_changed(tmp_path):
    dataset, out = make_dataset(tmp_path / "set", people=4, pairs=5), tmp_path / "out"
    assert build(dataset, out).packs_made == 3
    before = files(out)
    assert build(dataset, out).packs_made == 0
    assert files(out) == before
    pack_path(out, 1).unlink()  # as if the first run had been killed there
    (out / "thumbs/0/.2-0.jpg.abcdefgh.tmp").write_bytes(b"torn")
    assert build(dataset, out).packs_made == 1
    assert files(out).keys() == before.keys()
    assert not list(out.rglob("*.tmp"))
    changed = raw_records(dataset)[39]["files"]["ir"]
    change_records(dataset, lambda r: r["sha256"].update(ir="0" * 64) if r["files"]["ir"] == changed else None)
    assert build(dataset, out).packs_made == 1
    gone = before.keys() - files(out).keys()
    assert len(gone) == 1
    assert gone.pop().startswith("thumbs/0/2-")


def test_images_that_are_missing_or_damaged(tmp_path):
    dataset, out = make_dataset(tmp_path / "set"), tmp_path / "out"
    truth = raw_records(dataset)
    lost, torn = dataset / truth[2]["files"]["rgb"], dataset / truth[5]["files"]["ir"]
    kept = lost.read_bytes(), torn.read_bytes()
    lost.unlink()
    torn.write_bytes(kept[1][:40])
    summary = build(dataset, out)
    assert (summary.missing, summary.damaged) == (1, 1)
    assert [note.split(";")[0] for note in summary.notes] == ["1 image missing", "1 image damaged"]
    assert {n: int(bits) for n, bits in enumerate(column(out, "flaws")) if bits} == {2: 1, 5: 8}
    cell = np.asarray(Image.open(pack_path(out, 0)), float)[20:60, 320 + 35 : 320 + 45]
    assert np.abs(cell - 128).max() < 6  # grey between the strokes of the placeholder's cross
    lost.write_bytes(kept[0])
    torn.write_bytes(kept[1])
    again = build(dataset, out)
    assert (again.missing, again.damaged, again.packs_made) == (0, 0, 1)
    assert not column(out, "flaws").any()


def test_an_unfinished_dataset_says_how_much_there_is(tmp_path):
    summary = build(make_dataset(tmp_path / "set", shards=2), tmp_path / "out")
    assert (summary.pairs, summary.planned) == (16, 24)
    assert summary.notes == ["unfinished: 16 of 24 planned pairs are made; run synth again to finish it"]
    assert chunk(tmp_path / "out", "index")["scores"] == []
    refused("no finished pair yet", build, make_dataset(tmp_path / "empty", shards=0), tmp_path / "none")


def test_what_a_smaller_dataset_leaves_is_removed(tmp_path):
    dataset, out = make_dataset(tmp_path / "set", people=9), tmp_path / "out"
    build(dataset, out)
    for path in sorted((dataset / "shards").iterdir())[1:]:
        path.unlink()
    build(dataset, out)
    assert len(files(out)) == 1
    assert chunk(out, "index")["pairs"] == 8


def test_page_and_data_hold_no_text_as_code(tmp_path):
    """The page is the package's, byte for byte; a name from a manifest stands in strings of the data alone."""
    evil = """<img src=x onerror="alert(1)">');</script>\u2028__proto__"""
    dataset = make_dataset(tmp_path / "set")
    change_records(dataset, lambda record: record["spec"].update(pid=evil, pair_id=evil))
    add_scores(dataset, lambda n: {"ir": {evil: 0.5, "__proto__": 1.0}})
    build(dataset, tmp_path / "out", problems=[evil])
    for name in gallery.PAGE:
        assert (tmp_path / "out" / name).read_bytes() == (Path(gallery.__file__).parent / "page" / name).read_bytes()
    for path in (tmp_path / "out/data").rglob("*.js"):
        chunk(tmp_path / "out", path.relative_to(tmp_path / "out/data").with_suffix("").as_posix())
    assert chunk(tmp_path / "out", "identities") == [evil]
    index = chunk(tmp_path / "out", "index")
    assert index["problems"] == [evil]
    assert {score["name"] for score in index["scores"]} == {evil, "__proto__"}


def test_without_matplotlib_it_says_so(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "set", people=1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    summary = build(dataset, tmp_path / "out")
    assert summary.notes == ["no plots: matplotlib is not installed; pip install 'dive-fast[report]', then rerun"]
    assert chunk(tmp_path / "out", "index")["plots"] == []


def test_refusals(tmp_path):
    dataset = make_dataset(tmp_path / "set", people=1)
    refused("lies in .*--out", build, dataset, dataset / "report")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    refused("other files.*--out", build, dataset, tmp_path / "other")
    build(dataset, tmp_path / "out")
    refused("another report", build, make_dataset(tmp_path / "set2", people=2), tmp_path / "out")
    refused("workers.* 0", build, dataset, tmp_path / "out", workers=0)
    (tmp_path / "file").write_text("x")
    refused("is a file", build, dataset, tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("scores/00000.jsonl", '{"pair_id": "a", "ir": {"x": NaN}}', "line 1 is not valid JSON"),
        ("scores/00000.jsonl", '{"pair_id": "a", "ir": {"x": "1"}}', "line 1 ir x is '1', which is no finite number"),
        ("scores/00000.jsonl", '{"pair_id": "a", "ir": 3}', "line 1 ir: expected an object of scores"),
        ("scores/00000.jsonl", '{"ir": {}}', "line 1 names no pair_id"),
        ("scores/scores.json", "[]", "names no scores"),
        ("dropped.jsonl", '{"pair_id": "a", "reasons": "low"}', "needs a pair_id and a list of reasons"),
        ("times.jsonl", '{"at": 1e300, "images": 3}', "line 1 needs at"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, message):
    dataset = make_dataset(tmp_path / "set", people=1, pairs=1)
    (dataset / "scores").mkdir()
    (dataset / name).write_text(text + "\n")
    refused(message, build, dataset, tmp_path / "out")
