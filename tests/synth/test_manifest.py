"""The manifest of finished datasets: what readers are told, what `verify` finds, and files nobody should trust."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dive_fast.synth import load_plan
from dive_fast.synth.manifest import read_manifest, read_pairs
from dive_fast.synth.provenance import content_hash, jpeg_tags, png_tags
from dive_fast.synth.verify import verify_dataset
from tests.support.fake_engine import FakeEngine, contents, make, photo_plan, plan_of
from tests.support.refusals import refused


@pytest.fixture
def out(tmp_path) -> Path:
    make(photo_plan(tmp_path / "photos", {"0001": 2, "0002": 2}, shard_size=5), tmp_path / "out")
    return tmp_path / "out"


def edit_first_record(out: Path, change) -> None:
    shard = out / "shards/00000.jsonl"
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    change(rows[0])
    shard.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_whole_dataset(out):
    assert verify_dataset(out).problems == []
    assert [record.spec.index for record in read_manifest(str(out))] == [0, 1, 2, 3, 4, 5] * 2


def test_verify_finds_everything(out):
    (out / "cam3/0001/0001.png").unlink()
    changed = out / "cam6/0002/0003.png"
    changed.write_bytes(changed.read_bytes() + b"x")
    (out / "cam7/0001/0099.jpg").write_bytes(b"extra")
    (out / "notes.txt").write_text("extra")
    health = verify_dataset(out)
    assert health.problems == [
        "cam3/0001/0001.png is missing; run synth again with --check",
        "cam6/0002/0003.png was changed after it was made; run synth again with --check",
        "notes.txt is in no record",
        "cam7/0001/0099.jpg is in no record",
    ]
    assert (health.damaged, health.files, health.whole) == ({0, 2}, ["cam6/0002/0003.png"], False)


def test_repair_makes_anew_just_what_is_damaged(out):
    before = contents(out)
    (out / "cam3/0001/0001.png").unlink()
    (out / "cam6/0002/0003.png").write_bytes(before["cam6/0002/0003.png"][:-9])
    (out / "cam7/0002/0001.jpg").write_bytes(b"")
    assert make(load_plan(out / "plan.json"), out, check=True).images == 2
    assert contents(out) == before
    assert verify_dataset(out).whole


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_the_same_image_twice_is_found(tmp_path, image_format):
    """An engine that gives every pair of a batch the same pixels: the files differ by the pair that they name."""

    class Stuck(FakeEngine):
        def decode(self, latents):
            return super().decode(latents[:1]).repeat(len(latents), 1, 1, 1)

    make(plan_of(image_format=image_format), tmp_path / "out", Stuck(), rows=8)  # 36 images, 4 a batch, with both sides
    found = [path.read_bytes() for path in (tmp_path / "out").rglob(f"*.{image_format}")]
    pixels = {Image.open(path).convert("RGB").tobytes() for path in (tmp_path / "out").rglob(f"*.{image_format}")}
    assert (len(found), len(set(found))) == (36, 36)
    assert verify_dataset(tmp_path / "out").problems == [
        f"{36 - len(pixels)} generated images have the very pixels of another one; look at the engine and its seeds"
    ]
    assert len(pixels) <= 18


def test_a_file_that_is_as_recorded_and_no_image(out):
    name = next(read_manifest(out)).files["ir"]
    (out / name).write_bytes(b"no image")
    digest = hashlib.sha256(b"no image").hexdigest()
    edit_first_record(out, lambda row: (row["sha256"].update(ir=digest), row["sizes"].update(ir=8)))
    assert verify_dataset(out).problems == [f"{name} is no image; run synth again with --check"]


def png(colour: int, **notes: str) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), colour).save(stream, "PNG", pnginfo=png_tags(notes))
    return stream.getvalue()


def jpeg(colour: int, **notes: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(stream, "JPEG", quality=95, exif=jpeg_tags(notes))
    return stream.getvalue()


@pytest.mark.parametrize("encoded", [png, jpeg])
def test_content_is_equal_for_equal_pixels_under_other_tags(encoded: Callable[..., bytes]):
    first, same, other = encoded(9, pair_id="a"), encoded(9, pair_id="another pair"), encoded(90, pair_id="a")
    assert first != same and content_hash(first) == content_hash(same) != content_hash(other)


@pytest.mark.parametrize("end", [0, 1, 2, 3, 9, 40, -1])
def test_content_of_a_torn_image_is_none(end: int):
    assert [content_hash(encoded(9)[:end]) for encoded in (png, jpeg)] == [None, None]


def test_content_of_damaged_lengths_is_found_without_an_end():
    data = bytearray(jpeg(9))
    for at in range(2, len(data) - 2):
        assert content_hash(bytes(data[:at]) + b"\xff\xff" + data[at + 2 :]) is not None


def test_a_flipped_bit_in_a_recorded_hash_is_found_and_repaired(out):
    before = contents(out)
    for bit in range(8):
        edit_first_record(out, lambda row, bit=bit: row["sha256"].update(ir=flipped(row["sha256"]["ir"], bit)))
        assert not verify_dataset(out).whole
        assert make(load_plan(out / "plan.json"), out, check=True).images <= 1
        assert contents(out) == before and verify_dataset(out).whole


def flipped(text: str, bit: int) -> str:
    return chr(ord(text[0]) ^ 1 << bit) + text[1:]


def test_litter_and_unfinished_files_are_no_problem(out):
    for name in (".DS_Store", "cam3/0001/Thumbs.db", "exp/desktop.ini", "@eaDir/x.jpg", "cam3/._0001.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("litter")
    (out / ".README.md.abcdefgh.dive-tmp").write_text("half a card")
    assert verify_dataset(out).whole


def test_verify_counts_what_is_not_made(out):
    (out / "shards/00002.jsonl").unlink()
    health = verify_dataset(out)
    assert (health.problems, health.recorded) == (["2 planned pairs are not made yet; run synth again"], 10)
    assert health.incomplete == {"0002": {"rgb": (4, 6), "ir": (4, 6)}}


def test_verify_finds_pairs_that_are_not_planned(out):
    shard = out / "shards/00002.jsonl"
    shard.write_text(shard.read_text().replace("0002-00004-cam3", "0002-00099-cam3"))
    (out / "shards/00003.jsonl").write_text(shard.read_text())
    assert verify_dataset(out).problems == [
        "shards/00002.jsonl does not hold the 2 pairs that are planned for it; run synth again with --check",
        "shards/00003.jsonl is in no record",
    ]


def sampled(out: Path) -> set[str]:
    return {sample.path.relative_to(out).as_posix() for sample in read_pairs(out)}


def test_dropped_and_rejected_pairs_are_no_samples(out):
    """The first pair's photo stands in other pairs, too."""
    before = sampled(out)
    (out / "dropped.jsonl").write_text('{"pair_id":"0001-00000-cam3","reasons":["identity 0.1 < 0.5"]}\n')
    assert before - sampled(out) == {"cam3/0001/0001.png"}
    (out / "dropped.jsonl").write_text("{}\n")
    refused(r"dropped\.jsonl line 1", read_pairs, out)
    (out / "dropped.jsonl").unlink()
    edit_first_record(out, lambda row: row.update(status="rejected"))
    assert before - sampled(out) == {"cam3/0001/0001.png"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("spec"), "PairRecord is incomplete"),
        (lambda row: row["spec"].pop("pid"), " spec: PairSpec is incomplete"),
        (lambda row: row["spec"].update(pid=1), " spec: pid is 1, which is no"),
        (lambda row: row.update(spec="x"), "expected a JSON object for PairSpec, got str"),
        (lambda row: row.update(files={"rgb": "a.png"}), "needs file, hash and size of both sides"),
        (lambda row: row["files"].update(rgb="../../secret.png"), "a file lies outside the dataset"),
        (lambda row: row["files"].update(ir="/etc/passwd"), "a file lies outside the dataset"),
        (lambda row: row["files"].update(ir=5), "files is .* which is no"),
        (lambda row: row.update(scores={"ssim": "high"}), "scores is .* which is no"),
        (lambda row: row.update(status="maybe"), "status is 'maybe', which is no"),
        (lambda row: row.update(secret=1), "unknown field"),
    ],
)
def test_untrusted_records(out, change, message):
    edit_first_record(out, change)
    refused(rf"00000\.jsonl line 1.*{message}", list, read_manifest(out))
    refused(message, read_pairs, out)
    assert any("00000.jsonl line 1" in problem for problem in verify_dataset(out).problems)


def test_broken_shard(out):
    for text, message in (('{"spec": ', "ends in the middle of a line"), ('{"spec": \n', "line 1 is not valid JSON")):
        (out / "shards/00001.jsonl").write_text(text)
        refused(rf"00001\.jsonl {message}", list, read_manifest(out))
        assert any(message in problem for problem in verify_dataset(out).problems)
    make(load_plan(out / "plan.json"), out, check=True)
    assert verify_dataset(out).whole


def test_no_dataset(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        for read in (read_pairs, verify_dataset, lambda out: list(read_manifest(out))):
            refused(r"plan\.json", read, folder)
    (tmp_path / "plan.json").write_text("[]")
    refused(r"plan\.json", verify_dataset, tmp_path)


def test_readers_need_no_torch():
    code = "import sys, dive_fast.data, dive_fast.synth.manifest, dive_fast.synth.plan; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout.strip() == "False", run.stderr
