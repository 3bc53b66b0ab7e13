"""The card: true counts, what it says of origin and privacy, and whose README it never touches."""

import json

from dive_fast.data.sets import read_set
from dive_fast.io import write_json, write_jsonl
from dive_fast.quality.card import write_card
from dive_fast.quality.config import CardConfig, FilterConfig
from dive_fast.quality.filter import filter_dataset
from dive_fast.quality.score import score_dataset
from tests.support.quality import PIDS, make_dataset, rejected, write_engine
from tests.support.refusals import refused


def test_a_bare_dataset(dataset):
    rejected(dataset, 0, 0)
    text = write_card(dataset).read_text()
    plan = json.loads((dataset / "plan.json").read_text())
    pairs = {"cam1 | RGB": 9, "cam2 | RGB": 10, "cam3 | infrared": 9, "cam6 | infrared": 10}
    rows = (
        *(f"| {camera} | {count} | 0 |" for camera, count in pairs.items()),
        f"| plan id | `{plan['plan_id']}` |",
        "| sampling | 4 steps, guidance 2 |",
        "| seed of the run | 3 |",
        "| base and adapter | not stated (dive-fast card --model FOLDER reads them off the engine) |",
        "| engine's fingerprint | `engine-1` (20 pairs) |",
    )
    words = (
        "20 pairs of 5 identities",
        "missing: 0",
        "Recorded as rejected, and of no use: 1 pair",
        "dive_fast:synthetic",
        "Consent",
        "No image here is a photo",
        "not scored",
        "No filter is applied",
        "TO BE FILLED IN",
        "dive-fast verify",
        "Memorisation (images that copy a training photo) was not checked",
    )
    assert [piece for piece in (*rows, *words) if piece not in text] == []


def test_photos_scores_filter_and_origin(tmp_path, real, checkpoint):
    dataset = make_dataset(
        tmp_path / "pairs", mode="real-rgb", photos=read_set(real), photo_root=real.root, pids=PIDS[:3], shards=3
    )
    metadata = score_dataset(dataset, checkpoint, [real], progress=False)
    filter_dataset(dataset, FilterConfig(max=("memorisation=2",)), progress=False)
    engine = write_engine(tmp_path / "engine")
    text = write_card(dataset, CardConfig(engine, "CC BY-NC 4.0", "a@b.c")).read_text()
    made = metadata["made"]["identity"]["ir"]
    for words in (
        "9 pairs of 3 identities",
        "missing: 3",
        "| adapter's fingerprint | `adapter-1` |",
        "`base-1`",
        f"| identity | infrared | high | {made['5%']:.3f}, {made['50%']:.3f}, {made['95%']:.3f} |",
        metadata["net"]["sha256"],
        "A filter drops 0 of 9 pairs",
        "memorisation at most 2",
        "holds real photos",
        "Memorisation check, infrared: 0 of 9 generated",
        "Licence: CC BY-NC 4.0",
        "a@b.c",
    ):
        assert words in text, words
    assert "TO BE FILLED IN" not in text and "earlier state" not in text
    rejected(dataset, 0, 0)
    assert "scores are of an earlier state" in write_card(dataset).read_text()
    write_json(engine / "engine.json", {"model_fingerprint": "model-2"})
    refused("another model", write_card, dataset, CardConfig(engine))


def test_only_its_own_card_is_replaced(dataset):
    path = write_card(dataset)
    write_jsonl(dataset / "dropped.jsonl", [{"pair_id": "0001-00000-cam3", "reasons": ["x"]}])
    assert "Dropped: 1 pair (" in write_card(dataset).read_text()
    edited = path.read_text().replace("TO BE FILLED IN", "mine")
    path.write_text(edited)
    refused(r"README\.md", write_card, dataset)
    assert path.read_text() == edited
    path.write_text("# my notes\n")
    refused(r"README\.md", write_card, dataset)


def test_a_broken_sidecar_is_named(dataset):
    write_json(dataset / "filter.json", {"dropped": 3})
    refused(r"filter\.json", write_card, dataset)
    assert not (dataset / "README.md").exists()


HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) | ![i](http://a/b.png) `c` **d** \n# e \ud800"


def test_every_text_is_shown_and_does_nothing(dataset):
    """Cameras, engines and people come from files that anybody may have written."""
    changed = {"cam3": "cam3|<b>", "0001": HOSTILE.removesuffix("\ud800")}  # half a character is no JSON
    for path in (dataset / "shards").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["spec"].update(ir=changed.get(row["spec"]["ir"], row["spec"]["ir"]))
            row["spec"].update(pid=changed.get(row["spec"]["pid"], row["spec"]["pid"]))
            row["engine_fingerprint"] = "`<i>|\n# x"
        write_jsonl(path, rows)
    text = write_card(dataset, CardConfig(licence=HOSTILE, contact="a_b@c.d")).read_text()
    body = text.split("\n", 1)[1]
    assert "<script" not in body and "<b>" not in body and "<i>" not in body
    assert "](javascript" not in body.replace("\\](", "") and "\n# e" not in body
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \[x\](javascript:alert(1)) \| \!\[i\](http://a/b.png)" in body
    assert r"\`c\` \*\*d\*\*" in body and r"a\_b@c.d" in body
    assert "|---|---|---|---|\n| cam1 | RGB |" in body
    assert r"| cam3\|&lt;b&gt; | infrared |" in body
    assert "| engine's fingerprint | `??i?????x` (20 pairs) |" in body


def test_virtual_people_are_counted_and_not_called_real(tmp_path):
    some = write_card(make_dataset(tmp_path / "some", virtual=PIDS[:2])).read_text()
    assert f"2 of {len(PIDS)} identities are virtual" in some and "The other identities stand for real people" in some
    everyone = write_card(make_dataset(tmp_path / "all", virtual=PIDS)).read_text()
    assert f"{len(PIDS)} of {len(PIDS)} identities are virtual" in everyone
    assert "stand for real people" not in everyone
