"""What a command may write over, what it leaves when it is stopped, and what the next run clears."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dive_fast.io import atomic_encode, atomic_path, atomic_write, clear_leftovers, is_empty
from dive_fast.outputs import begins_with, holds, json_with, output_file, output_folder
from dive_fast.types import DiveError
from tests.support.refusals import refused

OURS = holds("mark")
TEXT = begins_with(b"#")


def write_folder(path: Path, overwrite: bool = False, **files: str) -> None:
    with output_folder(path, OURS, overwrite) as fresh:
        for name, text in {"mark": "", **files}.items():
            (fresh / name).write_text(text)


def write_file(path: Path, text: str, overwrite: bool = False) -> None:
    with output_file(path, TEXT, overwrite) as fresh:
        fresh.write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_an_equal_folder_stays_as_it_is(tmp_path: Path):
    write_folder(tmp_path / "out", a="1")
    (tmp_path / "out" / "Thumbs.db").write_text("litter")
    before = stamps(tmp_path / "out")
    write_folder(tmp_path / "out", a="1")
    write_folder(tmp_path / "out", a="1", overwrite=True)
    assert stamps(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_another_folder_is_kept_unless_overwritten(tmp_path: Path):
    write_folder(tmp_path / "out", a="1")
    refused("--overwrite", write_folder, tmp_path / "out", a="2")
    assert content(tmp_path) == {"out/a": "1", "out/mark": ""}
    write_folder(tmp_path / "out", a="2", overwrite=True)
    assert content(tmp_path) == {"out/a": "2", "out/mark": ""}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_kept_always(tmp_path: Path, overwrite: bool):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    refused("out", write_folder, tmp_path / "out", overwrite)
    write_folder(tmp_path / "mixed", a="1")
    (tmp_path / "mixed" / "thesis.txt").write_text("years")
    refused("mixed", write_folder, tmp_path / "mixed", overwrite, a="2")
    (tmp_path / "file").write_text("no folder")
    refused("file", write_folder, tmp_path / "file", overwrite)
    refused("file", write_file, tmp_path / "file", "# text", overwrite)
    refused("mixed", write_file, tmp_path / "mixed", "# text", overwrite)
    expected = {"file": "no folder", "mixed/a": "1", "mixed/mark": "", "mixed/thesis.txt": "years"}
    assert content(tmp_path) == {**expected, "out/thesis.txt": "years"}


def test_a_file_follows_the_same_rule(tmp_path: Path):
    path = tmp_path / "notes"
    write_file(path, "# one")
    before = stamps(tmp_path)
    write_file(path, "# one")
    assert stamps(tmp_path) == before
    refused("--overwrite", write_file, path, "# two")
    assert path.read_text() == "# one"
    write_file(path, "# two", overwrite=True)
    assert path.read_text() == "# two" and os.listdir(tmp_path) == ["notes"]


@pytest.mark.parametrize("litter", [".DS_Store", "Thumbs.db", "desktop.ini", "._mark", "@eaDir/x/y", "#recycle/gone"])
def test_a_place_with_litter_only_is_an_empty_one(tmp_path: Path, litter: str):
    path = tmp_path / "out" / litter
    path.parent.mkdir(parents=True)
    path.write_text("litter")
    write_folder(tmp_path / "out", a="1")
    assert content(tmp_path / "out") == {"a": "1", "mark": "", litter: "litter"}


def test_an_empty_file_is_a_free_place(tmp_path: Path):
    (tmp_path / "notes").touch()
    write_file(tmp_path / "notes", "# one")
    assert (tmp_path / "notes").read_text() == "# one"


def test_a_link_to_a_folder_is_written_through(tmp_path: Path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    write_folder(tmp_path / "out", a="1")
    assert (tmp_path / "out").is_symlink() and content(tmp_path / "large disk") == {"a": "1", "mark": ""}


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Raises `error` before the rename number `step` from now."""
    calls = [0]

    def stopped(real: Callable[..., None]) -> Callable[..., None]:
        def rename(*paths: object) -> None:
            calls[0] += 1
            if calls[0] == step:
                raise error
            real(*paths)

        return rename

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, stopped(getattr(os, name)))


@pytest.mark.parametrize("step", [1, 2])
def test_ctrl_c_between_the_renames_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int):
    write_folder(tmp_path / "out", a="1")
    with monkeypatch.context() as patch:
        stop_at(step, patch, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path / "out", a="2", overwrite=True)
    assert content(tmp_path) == {"out/a": "1", "out/mark": ""}


KILLED = """
import os, signal, sys
from pathlib import Path
from dive_fast.io import atomic_path
from dive_fast.outputs import holds, output_folder

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

out, how = Path(sys.argv[1]), sys.argv[2]
if how == "file":
    with atomic_path(out) as fresh:
        fresh.write_text("half")
        die()
os.replace = die if how == "between" else os.replace
with output_folder(out, holds("mark"), overwrite=True) as fresh:
    for name in ("mark", "a"):
        (fresh / name).write_text("new")
    if how == "within":
        die()
"""


def kill(out: Path, how: str) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, str(out), how], check=False)
    assert run.returncode == -signal.SIGKILL


@pytest.mark.parametrize("how", ["within", "between"])
def test_the_next_run_that_writes_there_clears_what_a_kill_left(tmp_path: Path, how: str):
    write_folder(tmp_path / "out", a="1")
    kill(tmp_path / "out", how)
    assert len(os.listdir(tmp_path)) == (2 if how == "within" else 1)
    clear_leftovers.cache_clear()
    atomic_write(tmp_path / "other", "of another command")
    assert content(tmp_path) == {"other": "of another command", "out/a": "1", "out/mark": ""}
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_killed_file_is_cleared_and_a_living_one_is_not(tmp_path: Path):
    kill(tmp_path / "a.json", "file")
    assert len(os.listdir(tmp_path)) == 1
    clear_leftovers.cache_clear()
    with atomic_path(tmp_path / "b.json") as fresh:
        assert os.listdir(tmp_path) == [fresh.name]
        clear_leftovers.cache_clear()
        atomic_write(tmp_path / "c.json", "c")
        fresh.write_text("b")
    assert content(tmp_path) == {"b.json": "b", "c.json": "c"}


def test_two_runs_do_not_write_one_folder_at_once(tmp_path: Path):
    with output_folder(tmp_path / "out", OURS) as fresh:
        refused("another run", write_folder, tmp_path / "out")
        (fresh / "mark").touch()
    assert content(tmp_path) == {"out/mark": ""}


def test_devices_pipes_and_folders_are_not_replaced_by_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/full"), tmp_path):
        refused(str(path), atomic_write, path, "text")
        refused(str(path), write_file, path, "# text")
        refused(str(path), write_folder, path / "" if path == tmp_path else path)
    assert Path("/dev/full").is_char_device() and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_a_long_name_needs_no_longer_temporary(tmp_path: Path, name: str):
    atomic_write(tmp_path / name, "text")
    write_folder(tmp_path / f"{name[:-1]}x", a="1")
    assert (tmp_path / name).read_text() == "text" and len(os.listdir(tmp_path)) == 2


def test_disk_trouble_is_one_sentence(tmp_path: Path):
    with pytest.raises(DiveError, match="too long"):
        atomic_write(tmp_path / ("n" * 256), "text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DiveError, match="loop"):
        atomic_write(tmp_path / "loop" / "x", "text")


def test_an_encoder_that_fails_leaves_the_old_file(tmp_path: Path):
    def encode(stream: object) -> None:
        raise ValueError

    atomic_write(tmp_path / "a.png", "old")
    with pytest.raises(ValueError):
        atomic_encode(tmp_path / "a.png", encode)
    assert content(tmp_path) == {"a.png": "old"}


@pytest.mark.parametrize("text", ["[1]", "{", '{"other": 1}', ""])
def test_only_json_with_the_keys_is_of_the_kind(tmp_path: Path, text: str):
    path, kind = tmp_path / "x.json", json_with("id")
    path.write_text(text)
    assert not kind(path)
    path.write_text('{"id": 1, "more": 2}')
    assert kind(path)


def test_what_counts_as_empty(tmp_path: Path):
    assert is_empty(tmp_path) and is_empty(tmp_path / "none")
    (tmp_path / "x").write_text("text")
    assert not is_empty(tmp_path) and not is_empty(tmp_path / "x")


def test_one_relative_name_in_two_folders_is_two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".x.abcdefgh.dive-tmp").touch()
        monkeypatch.chdir(tmp_path / name)
        atomic_write("out", "text")
        assert os.listdir(".") == ["out"]
