"""Files that others wrote: missing, unreadable or hostile ones end in one sentence."""

import os
from pathlib import Path

import pytest

from dive_fast.io import locked, sha256_file
from dive_fast.json_files import read_json, read_jsonl
from dive_fast.outputs import json_with
from dive_fast.reid.evaluation.feature_files import read_features
from dive_fast.synth.manifest import read_shard
from dive_fast.types import DiveError
from tests.support.refusals import refused

HOSTILE = {
    "torn": b'{"a": ',
    "not UTF-8": b'{"a": "\xff"}',
    "half of UTF-16": b"\xff\xfe{",
    "a number of more than 64 bits in UTF-16": ("9" * 30).encode("utf-16"),
    "a number of too many digits": b"9" * 10_000,
    "nested too deep": b"[" * 200_000,
    "nested deeper than any file of ours": b"[" * 60 + b"]" * 60,
    "a number of more than 64 bits": b'{"a": 100000000000000000000000000000}',
    "not a number": b'{"a": NaN}',
    "infinite": b'{"a": [-Infinity]}',
    "infinite by its exponent": b'{"a": 1e999}',
    "half of a character": b'{"a": "\\ud800"}',
}
WELCOME = {
    "a byte-order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "saved by a Windows shell": ('{"小": 1}'.encode("utf-16"), {"小": 1}),
    "the largest seed": (b"[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
    "digits and marks in text": (
        b'["12345678901234567890123", "NaN", "\\ud83d\\ude00"]',
        ["1234567890" * 2 + "123", "NaN", "\U0001f600"],
    ),
    "large and small": (b"[1e300, 1e-300]", [1e300, 1e-300]),
    "many lists, few levels": (b"[" + b"[[]]," * 99 + b"1]", [*[[[]]] * 99, 1]),
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


@pytest.mark.parametrize(("content", "value"), WELCOME.values(), ids=WELCOME)
def test_what_every_program_reads_alike_is_read(tmp_path: Path, content: bytes, value: object):
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json", "settings") == value
    assert list(read_jsonl(tmp_path / "x.json", "settings")) == [value]


def test_a_lock_is_held_and_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "lock", tmp_path / "pipe"):
        with locked(path, tmp_path):
            refused(f"writing to {tmp_path}", locked(path, tmp_path).__enter__)
        with locked(path, tmp_path):
            pass
    refused(str(tmp_path), locked(tmp_path, tmp_path).__enter__, error=DiveError)


def test_what_is_no_file_is_refused_at_once_and_a_pointer_is_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    refused("settings: .*pipe", read_json, tmp_path / "pipe", "settings")
    for name in ("pipe", "", "missing", "circle"):
        refused(f"{tmp_path / name}", sha256_file, tmp_path / name)
    refused("pipe is no file", read_shard, tmp_path / "pipe")
    assert not json_with("a")(tmp_path / "pipe")
    os.mkfifo(tmp_path / "distance.npy")
    refused("distance.npy", read_features, tmp_path / "distance.npy")
    (tmp_path / "x.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused("Git LFS pointer", read_json, tmp_path / "x.json", "settings")
