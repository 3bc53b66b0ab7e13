"""The manifest as Parquet, read back by pyarrow, and the commands."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dive_fast.merge import table
from dive_fast.merge.table import write_parquet
from dive_fast.synth.manifest import read_manifest
from dive_fast.types import DiveError
from tests.support.cli import Run, last_json
from tests.support.merging import dataset, drop, provenance, save_records, sysu
from tests.support.refusals import refused


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Seven pairs in three shards; shard 1 has no scores yet, one pair is dropped."""
    root = dataset(tmp_path / "pairs", ["0001"], pairs=7)
    records = list(read_manifest(root))
    save_records(root, [replace(records[0], scores={"psnr": 31.5}), *records[1:]])
    for shard, wanted in ((0, records[:3]), (2, records[6:])):
        rows = [{"pair_id": r.spec.pair_id, "rgb": {}, "ir": {"identity": r.spec.index / 8}} for r in wanted]
        (root / "scores").mkdir(exist_ok=True)
        (root / f"scores/{shard:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "scores/scores.json").write_text("{}")
    drop(root, records[2].spec.pair_id)
    return root


def test_every_pair_is_a_row(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table, "ROW_GROUP", 3)
    assert write_parquet(pairs, tmp_path / "pairs.parquet") == 7
    assert parquet.ParquetFile(tmp_path / "pairs.parquet").num_row_groups == 3
    rows = parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    records = list(read_manifest(pairs))
    assert rows[6] == {
        "pair_id": "0001-00006-cam3",
        "pid": "0001",
        "index": 6,
        "rgb_camera": "cam1",
        "ir_camera": "cam3",
        "seed": records[6].spec.seed,
        "photo": None,
        "rgb_file": "cam1/0001/0007.png",
        "ir_file": "cam3/0001/0007.png",
        "rgb_sha256": records[6].sha256["rgb"],
        "ir_sha256": records[6].sha256["ir"],
        "engine_fingerprint": "engine",
        "status": "done",
        "dropped": False,
        "drop_reasons": [],
        "score_psnr": None,
        "score_ir_identity": 0.75,
    }
    assert [row["score_ir_identity"] for row in rows] == [0, 0.125, 0.25, None, None, None, 0.75]
    assert [row["score_psnr"] for row in rows] == [31.5] + [None] * 6
    assert [row["drop_reasons"] for row in rows if row["dropped"]] == [["identity 0.31 < 0.50"]]
    assert write_parquet(pairs, tmp_path / "pairs.parquet") == 7  # an equal table stays
    (tmp_path / "other.parquet").write_text("no table")
    refused("other", write_parquet, pairs, tmp_path / "other.parquet", overwrite=True)


def test_sidecars_of_another_dataset(tmp_path: Path, pairs: Path) -> None:
    pytest.importorskip("pyarrow")
    drop(pairs, "0009-00000-cam3")
    refused(r"dropped\.jsonl .*1 pairs", write_parquet, pairs, tmp_path / "pairs.parquet")
    (pairs / "scores/00001.jsonl").write_text('{"pair_id": "0001-00003-cam3", "ir": {"identity": "high"}}\n')
    refused(r"00001\.jsonl line 1 ir identity", write_parquet, pairs, tmp_path / "pairs.parquet")
    assert list(tmp_path.glob("*.parquet")) == []


def test_without_pyarrow(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.parquet"):  # both, as other tests may have imported them
        monkeypatch.setitem(sys.modules, module, None)
    refused(r"pip install 'dive-fast\[parquet\]'", write_parquet, pairs, tmp_path / "pairs.parquet", error=DiveError)


def test_commands(tmp_path: Path, pairs: Path, run: Run, step: Any) -> None:
    pytest.importorskip("pyarrow")
    manifest = step(f"manifest {pairs} --parquet {tmp_path / 'p.parquet'}")
    assert manifest == {"parquet": str(tmp_path / "p.parquet"), "pairs": 7}
    real, out = sysu(tmp_path / "SYSU"), tmp_path / "new"
    command = f"merge --real sysu:{real} --synthetic {pairs} --layout sysu --how symlink --out {out}"
    assert run(command)[0] == 2
    code, text, _ = run(f"{command} --same-people --camera cam1=cam2 --json")
    assert code == 0
    assert text.splitlines()[0] == (
        f"merged tree {out}: 2 people to train on, images: 4 real ir, 6 synthetic ir, 4 real rgb, 6 synthetic rgb; "
        "4 test images of sysu"
    )
    assert last_json(text)["test"] == 4
    assert len([row for row in provenance(out) if row.get("camera") == "cam2"]) == 6
    code, again, _ = run(f"{command} --same-people --camera cam1=cam2 --json")
    assert code == 0 and again.splitlines()[0] == text.splitlines()[0] and last_json(again) == last_json(text)
    assert "finished by an earlier run" in again and "finished by" not in text
    assert run(f"{command} --camera cam1")[0] == 2
