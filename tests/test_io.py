"""Files that others wrote: missing, unreadable or hostile ones end in one sentence."""

from pathlib import Path

import pytest

from dive_fast.io import read_json, read_jsonl
from tests.support.refusals import refused

HOSTILE = {
    "torn": b'{"a": ',
    "not UTF-8": b'{"a": "\xff"}',
    "a number of too many digits": b"9" * 10_000,
    "nested too deep": b"[" * 200_000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_refused_by_name(tmp_path: Path, content: bytes):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    refused(r"settings: .*x\.json", read_json, path, "settings")


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_is_refused_by_number_after_the_good_ones(tmp_path: Path, content: bytes):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + content + b"\n")
    rows = read_jsonl(path, "log")
    assert next(rows) == {"a": 1}
    refused(r"log: .*x\.jsonl line 2", next, rows)


def test_what_is_not_there_or_not_a_file_is_said(tmp_path: Path):
    refused(r"settings: .*none\.json", read_json, tmp_path / "none.json", "settings")
    refused(r"log: .*none\.jsonl", list, read_jsonl(tmp_path / "none.jsonl", "log"))
    refused("settings: .*directory", read_json, tmp_path, "settings")
