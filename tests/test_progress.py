"""Progress where standard error is a log and where it is a terminal, and the words of numbers."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from dive_fast import progress, words
from dive_fast.progress import ProgressBar, log, set_quiet, write_line


class Clock:
    """Stands in for the time, for tqdm too."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("tqdm.std.time", found)
    monkeypatch.setattr("time.monotonic", found)
    return found


@pytest.fixture
def quiet() -> Iterator[None]:
    set_quiet(True)
    yield
    set_quiet(False)


def run_steps(clock: Clock, seconds: float, steps: int) -> None:
    with ProgressBar(total=1000, desc="synth", unit="image", file=sys.stderr) as bar:
        for _ in range(steps):
            clock.now += seconds
            bar.set_postfix(loss="0.5")
            bar.update()


def test_a_log_gets_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(clock, 10, 25)  # 250 seconds
    lines = capsys.readouterr().err.splitlines()
    assert lines == [  # 60 seconds after the start and after each line; n counts what is done by then
        "synth: 5 of 1,000 images, 60 s, 0.0833 a second, 3.3 h left, loss=0.5",
        "synth: 11 of 1,000 images, 2.0 min, 0.1 a second, 2.7 h left, loss=0.5",
        "synth: 17 of 1,000 images, 3.0 min, 0.1 a second, 2.7 h left, loss=0.5",
        "synth: 23 of 1,000 images, 4.0 min, 0.1 a second, 2.7 h left, loss=0.5",
    ]


def test_a_log_of_days_says_days(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(clock, 3600, 2)
    assert "days left" in capsys.readouterr().err


def test_short_work_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(clock, 1, 59)
    assert capsys.readouterr().err == ""


def test_lines_within_a_bar_stand_alone_in_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=2, unit="pair") as bar:
        write_line("a warning")
        bar.update()
        log("a note")
    assert capsys.readouterr().err == "a warning\na note\n"


def test_a_terminal_keeps_its_bar_and_clears_it_for_a_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar(total=2, desc="synth", unit="image", ncols=60) as bar:
        clock.now += 1
        bar.update()
        write_line("a warning")
    text = terminal.getvalue()
    assert "50%" in text and text.endswith("\n")
    assert "\ra warning\n" in text  # behind the return that follows the cleared bar


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_draws_nothing(stream: type[io.StringIO], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    run_steps(clock, 10, 25)
    log("a note")
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    write_line("a warning")
    assert sys.stderr.getvalue() == "a warning\n"  # type: ignore[attr-defined]


def test_a_bar_that_is_off_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(ProgressBar(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert progress.LINE_SECONDS == 60


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "shard", "1 shard"),
        (0, "shard", "0 shards"),
        (2000, "image", "2,000 images"),
        (1, "identity", "1 identity"),
        (3, "identity", "3 identities"),
        (2, "day", "2 days"),
        (2, "batch", "2 batches"),
        (2, "process", "2 processes"),
        (2, "person", "2 people"),
    ],
)
def test_counts_agree_with_their_noun(number: int, noun: str, text: str) -> None:
    assert words.count(number, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (90, "90 s"), (600, "10.0 min"), (7200, "2.0 h"), (172800, "2.0 days"), (1e9, "11,574.1 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e6, "2 MB"), (9.996e8, "1 GB"), (3e15, "3 PB")]
)
def test_sizes(count: float, text: str) -> None:
    assert words.size(count) == text
