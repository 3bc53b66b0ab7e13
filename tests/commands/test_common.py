"""What commands say at the end: the next command, and whether an earlier run had finished the job."""

from __future__ import annotations

from pathlib import Path

import pytest

from dive_fast.commands.common import LastFile, Training, beside, finish, following
from dive_fast.types import DiveError, InputError
from dive_fast.words import count


def test_the_next_command_is_quoted_for_a_shell() -> None:
    line = following("reid eval", "a b", checkpoint=Path("my runs/reid"), same_people="x", test=None)
    assert line == "dive-fast reid eval 'a b' --checkpoint 'my runs/reid' --same-people x"


@pytest.mark.parametrize(
    ("out", "path"),
    [
        ("runs/pairs", "runs/tars"),
        ("pairs", "tars"),
        ("/a/b/", "/a/tars"),
        ("s3://bucket/x/pairs/", "s3://bucket/x/tars"),
    ],
)
def test_an_output_beside_another(out: str, path: str) -> None:
    assert beside(out, "tars") == path


@pytest.mark.parametrize("by_content", [False, True])
def test_a_job_was_finished_if_its_last_file_was_there_and_stays(tmp_path: Path, by_content: bool) -> None:
    file = tmp_path / "job.json"
    last = LastFile(file, by_content)
    assert not last.kept
    file.write_text("1")
    assert not last.kept  # made by this run
    last = LastFile(file, by_content)
    assert last.kept
    (tmp_path / "fresh").write_text("1")
    (tmp_path / "fresh").replace(file)  # another file of equal content
    assert last.kept is by_content
    file.write_text("2")
    assert not last.kept


@pytest.mark.parametrize("kind", ["picture", "text", "folder", "full folder"])
def test_a_plot_that_could_not_be_written_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    plot, out = tmp_path / "plot.png", tmp_path / "out"
    if kind.endswith("folder"):
        plot.mkdir()
        (plot / "a").write_text("a" * (kind == "full folder"))
    else:
        plot.write_bytes(b"\x89PNG\r\n\x1a\n" if kind == "picture" else b"a")
    with pytest.raises(InputError, match="plot.png"):
        Training(out / "record.json", plot, False, False, ())
    out.mkdir()
    (out / "record.json").write_text("{}")
    if kind == "picture":  # of the finished run
        Training(out / "record.json", plot, False, False, ())
    else:
        with pytest.raises(InputError, match="plot.png"):
            Training(out / "record.json", plot, False, False, ())


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "shard", "1 shard"),
        (2000, "identity", "2,000 identities"),
        (1, "virtual person", "1 virtual person"),
        (3, "virtual person", "3 virtual people"),
        (2, "damaged file", "2 damaged files"),
    ],
)
def test_a_count_has_its_noun(number: int, noun: str, text: str) -> None:
    assert count(number, noun) == text


def test_a_job_that_writes_no_file_is_never_finished() -> None:
    assert not LastFile(None).kept


def test_a_failure_names_no_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DiveError, match="2 problems") as raised:
        finish("a table", {"found": 2}, True, failure="2 problems", then="dive-fast report")
    assert capsys.readouterr().out == "a table\n" and raised.value.summary == {"found": 2}
    finish("a table", {"found": 0}, True, then="dive-fast report")
    assert capsys.readouterr().out == 'a table\nnext: dive-fast report\n{"found": 0}\n'
