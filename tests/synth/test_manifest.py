"""The manifest of finished datasets: what readers are told, what `verify` finds, and files nobody should trust."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dive_fast.synth import synthesize
from dive_fast.synth.manifest import read_manifest, samples, verify
from dive_fast.types import InputError
from tests.synth.fake import FakeEngine, plan_of, write_photos


@pytest.fixture
def out(tmp_path) -> Path:
    photos = write_photos(tmp_path / "photos", {"0001": 2, "0002": 2})
    plan = plan_of("real-rgb", pids=["0001", "0002"], photos=photos, photo_root=tmp_path / "photos", shard_size=5)
    synthesize(plan, FakeEngine(), tmp_path / "out", progress=False)
    return tmp_path / "out"


def edit_first_record(out: Path, change) -> None:
    shard = out / "shards/00000.jsonl"
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    change(rows[0])
    shard.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_whole_dataset(out):
    assert verify(out) == []
    assert [record.spec.index for record in read_manifest(str(out))] == [0, 1, 2, 3, 4, 5] * 2


def test_verify_finds_everything(out):
    (out / "cam3/0001/0001.png").unlink()
    changed = out / "cam6/0002/0003.png"
    changed.write_bytes(changed.read_bytes() + b"x")
    (out / "cam7/0001/0099.jpg").write_bytes(b"extra")
    (out / "notes.txt").write_text("extra")
    assert verify(out) == [
        "cam3/0001/0001.png is missing; run synth again",
        "cam6/0002/0003.png was changed after it was made; delete it and run synth again",
        "cam7/0001/0099.jpg is in no record",
        "notes.txt is in no record",
    ]


def test_verify_counts_what_is_not_made(out):
    (out / "shards/00002.jsonl").unlink()
    problems = verify(out)
    assert problems[0] == "2 planned pairs are not made yet, first 0002-00004-cam3; run synth again"
    assert set(problems[1:]) == {"cam3/0002/0003.png is in no record", "cam6/0002/0003.png is in no record"}


def test_verify_finds_pairs_that_are_not_planned(out):
    lines = (out / "shards/00002.jsonl").read_text().splitlines()
    other = lines[0].replace("0002-00004-cam3", "0002-00099-cam3")
    (out / "shards/00003.jsonl").write_text("\n".join([lines[1], other]) + "\n")
    assert verify(out) == [
        "pair 0002-00099-cam3 is not in the plan",
        "pair 0002-00005-cam6 is recorded 2 times",
    ]


def test_rejected_pairs_are_no_samples(out):
    before = samples(out)
    edit_first_record(out, lambda row: row.update(status="rejected"))
    gone = {s.path.relative_to(out).as_posix() for s in before} - {
        s.path.relative_to(out).as_posix() for s in samples(out)
    }
    assert gone == {"cam3/0001/0001.png"}  # its photo stands in other pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("spec"), "PairRecord is incomplete"),
        (lambda row: row["spec"].pop("pid"), " spec: PairSpec is incomplete"),
        (lambda row: row["spec"].update(pid=1), " spec: pid is 1, which is no"),
        (lambda row: row.update(spec="x"), "expected a JSON object for PairSpec, got str"),
        (lambda row: row.update(files={"rgb": "a.png"}), "needs files and hashes of both sides"),
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
    with pytest.raises(InputError, match=rf"00000\.jsonl line 1.*{message}"):
        list(read_manifest(out))
    with pytest.raises(InputError, match=message):
        samples(out)
    assert any("00000.jsonl line 1" in problem for problem in verify(out))


def test_broken_shard(out):
    (out / "shards/00001.jsonl").write_text('{"spec": ')
    with pytest.raises(InputError, match=r"00001\.jsonl line 1 is not valid JSON; delete the file and rerun"):
        list(read_manifest(out))
    assert any("is not valid JSON" in problem for problem in verify(out))


def test_no_dataset(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        for read in (samples, verify, lambda out: list(read_manifest(out))):
            with pytest.raises(InputError, match=r"is no synthesized dataset \(it has no plan\.json\)"):
                read(folder)
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(InputError, match="lists no pairs"):
        verify(tmp_path)


def test_readers_need_no_torch():
    code = "import sys, dive_fast.data, dive_fast.synth.manifest, dive_fast.synth.plan; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.stdout.strip() == "False", run.stderr
