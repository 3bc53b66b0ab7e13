"""WebDataset tars of a dataset: read back by tarfile as WebDataset groups them, equal bytes, nothing half-finished."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from dive_fast.synth import SynthesisPlan
from dive_fast.synth.folder import open_store
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.manifest import read_manifest
from dive_fast.synth.pack import key, pack
from dive_fast.types import DiveError, Identity, to_dict
from tests.support.fake_engine import FakeBank, FakeEngine, contents, make, photo_plan, plan_of
from tests.support.refusals import refused


@pytest.fixture
def made(tmp_path: Path) -> tuple[SynthesisPlan, Path]:
    plan = plan_of(shard_size=5)
    make(plan, tmp_path / "set")
    return plan, tmp_path / "set"


class Knowing(FakeEngine):
    """Knows the people of a plan."""

    def __init__(self, plan: SynthesisPlan) -> None:
        super().__init__()
        identities = tuple(Identity(one.pid, f"<class_{n}>") for n, one in enumerate(plan.identities))
        self.prompts = FakeBank(None, replace(self.prompts.table, identities=identities))


def grouped(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key to extension to bytes, tar after tar; WebDataset cuts at the first dot and wants a key's files together."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            keys = []
            for member in tar:
                key, _, extension = member.name.partition(".")
                keys += [key] if keys[-1:] != [key] else []
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
            assert len(set(keys)) == len(keys)
    return found


def test_every_pair_is_there_as_it_was_made(made: tuple[SynthesisPlan, Path], tmp_path: Path) -> None:
    plan, source = made
    assert pack(open_store(source), plan, open_store(tmp_path / "tars"), set()) == {"pairs": 18, "tars": 4}
    found = grouped(tmp_path / "tars")
    records = list(read_manifest(source))
    assert list(found) == [record.spec.pair_id for record in records]
    for record in records:
        parts = found[record.spec.pair_id]
        assert parts["rgb.png"] == (source / record.files["rgb"]).read_bytes()
        assert parts["ir.png"] == (source / record.files["ir"]).read_bytes()
        assert json.loads(parts["json"]) == to_dict(record)
    whole = contents(tmp_path / "tars")
    for name in ("00001.tar", "00002.tar"):
        (tmp_path / "tars" / name).unlink()
    (tmp_path / "tars/00001.tar").symlink_to("00001.tar")  # leads nowhere, as a missing one
    pack(open_store(source), plan, open_store(tmp_path / "tars"), set())
    assert contents(tmp_path / "tars") == whole
    assert set(whole) == {"pack.json", *(f"{n:05d}.tar" for n in range(4))}


def test_a_photo_that_lies_is_packed_upright(tmp_path: Path) -> None:
    """In the dataset it keeps its bytes, by which a real set finds it again."""
    plan = photo_plan(tmp_path / "photos", {"0001": 1, "0002": 1})
    lying = tmp_path / "photos/0002/0.jpg"
    upright, exif = Image.linear_gradient("L").resize((20, 50)).convert("RGB"), Image.Exif()
    exif[274] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(lying, exif=exif, quality=95, subsampling=0)
    make(plan, tmp_path / "set")
    pack(open_store(tmp_path / "set"), plan, open_store(tmp_path / "tars"), set())
    found = grouped(tmp_path / "tars")
    records = {record.spec.pid: record for record in read_manifest(tmp_path / "set")}
    for pid, path in (("0001", tmp_path / "photos/0001/0.jpg"), ("0002", lying)):
        assert (tmp_path / "set" / records[pid].files["rgb"]).read_bytes() == path.read_bytes()
    assert found[records["0001"].spec.pair_id]["rgb.jpg"] == (tmp_path / "photos/0001/0.jpg").read_bytes()
    with Image.open(io.BytesIO(found[records["0002"].spec.pair_id]["rgb.jpg"])) as packed:
        assert not packed.getexif()
        assert np.abs(np.asarray(packed).astype(int) - np.asarray(upright)).mean() < 3


def test_what_a_killed_pack_left_is_cleared(made: tuple[SynthesisPlan, Path], tmp_path: Path) -> None:
    plan, source = made
    (tmp_path / "tars/.work").mkdir(parents=True)
    (tmp_path / "tars/.work/all-0123456789ab.tmp").write_bytes(b"half a tar")
    (tmp_path / "tars/.DS_Store").touch()
    pack(open_store(source), plan, open_store(tmp_path / "tars"), set())
    names = {".DS_Store", "pack.json", *(f"{n:05d}.tar" for n in range(4))}
    assert {path.name for path in (tmp_path / "tars").iterdir()} == names


def test_two_packs_do_not_write_one_folder(made: tuple[SynthesisPlan, Path], tmp_path: Path) -> None:
    plan, source = made
    release = open_store(tmp_path / "tars").claim(None)
    refused("another run", pack, open_store(source), plan, open_store(tmp_path / "tars"), set())
    release()
    assert pack(open_store(source), plan, open_store(tmp_path / "tars"), set())["tars"] == 4


NAMES = [
    "anna.b",
    "anna_b",
    "anna b",
    "anna%2Eb",
    "anna-b",
    "Anna.b",
    "小明",
    "José",
    "x" * 111,
    "x" * 110 + "y",
    "明" * 60,
]


@pytest.mark.filterwarnings("ignore:.*are no numbers")
def test_keys_never_collide_and_name_the_pair(tmp_path: Path) -> None:
    """Of people whose names differ in any character; a reader gets the name back from a key that is not cut."""
    plan = plan_of(pids=[name for name in NAMES if "%" not in name], ir=["cam3"], pairs_per_identity=1, shard_size=5)
    make(plan, tmp_path / "set", Knowing(plan))
    pack(open_store(tmp_path / "set"), plan, open_store(tmp_path / "tars"), set())
    found = grouped(tmp_path / "tars")
    assert [json.loads(parts["json"])["spec"]["pair_id"] for parts in found.values()] == [p.pair_id for p in plan.pairs]
    assert all(name.isascii() and len(name) <= 80 for name in found)
    assert {unquote(name) for name in found} >= {pair.pair_id for pair in plan.pairs if len(pair.pair_id) < 20}
    assert len({key(f"{name}-00000-cam3") for name in NAMES}) == len(NAMES)


def test_dropped_pairs_are_left_out(made: tuple[SynthesisPlan, Path], tmp_path: Path) -> None:
    plan, source = made
    gone = {pair.pair_id for pair, _ in shard_pairs(plan, 1)} | {plan.pairs[0].pair_id}
    assert pack(open_store(source), plan, open_store(tmp_path / "tars"), gone) == {"pairs": 12, "tars": 3}
    assert not gone & set(grouped(tmp_path / "tars"))
    refused("other filters; .* --out", pack, open_store(source), plan, open_store(tmp_path / "tars"), set())


def test_what_is_not_whole_is_refused(made: tuple[SynthesisPlan, Path], tmp_path: Path) -> None:
    plan, source = made
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("x")
    refused("holds other files", pack, open_store(source), plan, open_store(tmp_path / "other"), set())
    image = source / next(read_manifest(source)).files["ir"]
    image.write_bytes(image.read_bytes()[:-1])
    unlike, tars = "is not as recorded; run synth again with --check", open_store(tmp_path / "tars")
    refused(unlike, pack, open_store(source), plan, tars, set(), error=DiveError)
    assert "pairs" not in json.loads((tmp_path / "tars/pack.json").read_text())
    (source / "shards/00003.jsonl").unlink()
    (source / "shards/00003.jsonl").symlink_to("00003.jsonl")
    refused("1 of 4 shards are not made", pack, open_store(source), plan, open_store(tmp_path / "new"), set())
    assert not (tmp_path / "new").exists()
