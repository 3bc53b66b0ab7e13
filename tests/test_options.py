"""Options from signatures and config records, and the checks of `Settings`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from dive_fast.options import Changes, call, options
from dive_fast.settings import Fraction, NonNegativeInt, Part, PositiveInt, Reads, Settings, has_type
from dive_fast.types import InputError, shown
from tests.support.refusals import refused


def read_size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not cross:
        raise InputError(f"needs HEIGHTxWIDTH, got {text!r}")
    return int(height), int(width)


@dataclass(frozen=True)
class Stage(Settings):
    steps: PositiveInt
    """Steps of the stage."""
    batch: PositiveInt = 2
    """Images per step."""


@dataclass(frozen=True)
class Learning(Settings):
    rate: Fraction = 0.5
    """Rate."""
    seed: NonNegativeInt = 0
    """Seed."""
    hidden: int = 3  # no option


@dataclass(frozen=True)
class Config(Settings):
    vae: Annotated[Stage, Part("vae")] = field(default_factory=lambda: Stage(6000))
    """The VAE."""
    learn: Annotated[Learning, Part("learn", only=("rate",), texts={"rate": "Rate of learning."})] = Learning()
    """How identities are learned."""
    mode: Literal["fast", "exact"] = "exact"
    """Speed; 50% of it is luck."""
    level: Literal[1, 2] = 1
    """Level."""
    pair: tuple[float, float] | None = None
    """Two numbers."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds."""
    size: Annotated[tuple[int, int], Reads(read_size, "HEIGHTxWIDTH")] | None = None
    """Image size."""
    sets: Sequence[Annotated[tuple[int, int], Reads(read_size, "HEIGHTxWIDTH")]] = ()
    """Sets."""
    check: bool = True
    """Check the result."""


SEEN: dict[str, Any] = {}


def command(
    files: Annotated[Sequence[Path], "Files to read."],
    /,
    config: Config,
    changes: Changes[Learning],
    out: Annotated[Path | None, "Where to write."] = None,
    stage: Annotated[Stage, Part("stage")] = Stage(steps=5),
    set_: Annotated[Sequence[str], "Any."] = (),
    json: Annotated[bool, "Print JSON."] = False,
) -> None:
    """Do it.

    In two ways.
    """
    SEEN.update(locals())


def run(line: str) -> dict[str, Any]:
    SEEN.clear()
    call(command, line.split(), "test")
    return dict(SEEN)


def test_every_option_is_read() -> None:
    seen = run(
        "a b --vae-batch 3 --learn-rate=0.7 --mode fast --level 2 --pair=-0.5,2 --seeds 4 --size 2x3 --sets 1x2 "
        "--sets 3x4 --no-check --out o --stage-steps 9 --set x=1 --set y --json"
    )
    assert list(seen["files"]) == [Path("a"), Path("b")]
    assert (seen["out"], seen["json"], seen["stage"]) == (Path("o"), True, Stage(9, 2))
    assert seen["set_"] == ["x=1", "y"]
    assert seen["config"] == Config(
        Stage(6000, 3), Learning(0.7), "fast", 2, (-0.5, 2.0), (4,), size=(2, 3), sets=[(1, 2), (3, 4)], check=False
    )


def test_defaults_are_those_of_the_records() -> None:
    seen = run("a")
    assert (seen["config"], seen["stage"], seen["out"], seen["set_"]) == (Config(), Stage(5), None, ())


def test_changes_hold_what_was_given_and_nothing_else() -> None:
    changes = run("a --rate 0.25")["changes"]
    assert changes.apply_to(Learning(rate=0.9, seed=7)) == Learning(rate=0.25, seed=7)
    assert run("a")["changes"].apply_to(Learning(seed=7)) == Learning(seed=7)


def test_a_required_field_has_to_be_given() -> None:
    def needs(config: Stage) -> None:
        SEEN["config"] = config

    call(needs, ["--steps", "3"], "test")
    assert SEEN["config"] == Stage(3)
    refused("--steps", call, needs, ["--batch", "3"], "test")


def test_flags_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [option.flag for option in options(command)]
    assert {"FILES", "--vae-steps", "--learn-rate", "--rate", "--set", "--stage-batch"} <= set(flags)
    assert not {"--hidden", "--learn-seed", "--learn-hidden"} & set(flags)
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: test FILES [OPTIONS]",
        "In two ways.",
        "--mode fast|exact Speed; 50% of it is luck. [default exact]",
        "--learn-rate X Rate of learning. [within 0..1; default 0.5]",
        "--vae-steps N Steps of the stage. [at least 1; default 6000]",
        "--size HEIGHTxWIDTH Image size.",
        "--sets HEIGHTxWIDTH Sets. [may be repeated]",
        "--seeds N,... Seeds. [default 0,1]",
        "--pair X,X Two numbers.",
        "--check Check the result. [default on; --no-check turns it off]",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("a --pair 1", ("--pair", "X,X", "'1'")),
        ("a --pair 1,", ("--pair", "'1,'")),
        ("a --pair 1,x", ("--pair", "'x'")),
        ("a --seeds 1,,2", ("--seeds", "'1,,2'")),
        ("a --learn-rate 1.5", ("--learn-rate", "within 0..1", "1.5")),
        ("a --seed -1", ("--seed", "at least 0", "-1")),
        ("a --vae-steps 0", ("--vae-steps", "at least 1", "got 0")),
        ("a --vae-steps 1.5", ("--vae-steps", "a whole number", "'1.5'")),
        ("a --mode best", ("--mode", "fast, exact", "'best'")),
        ("a --level 3", ("--level", "1, 2", "'3'")),
        ("a --size 3", ("--size", "HEIGHTxWIDTH", "'3'")),
        ("a --stage-stpes 1", ("'--stage-stpes'", "--stage-steps")),
        ("a --zzzzzzz", ("'--zzzzzzz'", "test --help")),
        ("a --mod fast", ("'--mod'", "--mode")),
        ("a --mode", ("--mode", "expected one argument")),
        ("", ("missing FILES",)),
    ],
)
def test_bad_words_name_the_option_and_the_value(words: str, parts: tuple[str, ...]) -> None:
    refused(parts, run, words)


def test_a_python_caller_gets_the_same_checks() -> None:
    refused("steps must be at least 1, got 0", Stage, steps=0)
    refused("rate must be a number, got nan", Learning, rate=float("nan"))
    refused("mode must be one of fast, exact", Config, mode="best")


@pytest.mark.parametrize("value", [10**400, float("nan")])
def test_a_number_is_one_that_can_be_computed_with(value: float) -> None:
    refused("rate must be a number", Learning, rate=value)


def test_a_value_in_a_message_is_cut() -> None:
    for value in ("x" * 100_000, 10**5000, [1] * 9999, "a\nb" * 999):
        assert len(shown(value)) <= 80 and "\n" not in shown(value)
    assert shown("小明") == "'小明'"


TYPED: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [0, -1, 10**400], [True, 1.0, "1", None]),
    (float, [0.5, 1, math.inf], [True, math.nan, 10**400, "1"]),
    (bool, [True], [1, None]),
    (str | None, ["", None], [0, ["a"]]),
    (Literal["rgb", "ir"], ["ir"], ["uv", ["ir"], None]),
    (PositiveInt, [-1], ["1"]),  # its bound is another question
    (dict[str, int], [{}, {"a": 1}], [{"a": "1"}, {1: 1}, {"a": True}, [("a", 1)]]),
    (dict[str, list[float]], [{"a": []}, {"a": [1, 0.5]}], [{"a": ["1"]}, {"a": (1,)}, {"a": 1}]),
    (tuple[str, ...], [(), ("a", "b")], [["a"], ("a", 1), "a"]),
    (tuple[str, int | None], [("a", 1), ("a", None)], [("a",), ("a", "b"), ("a", 1, 2)]),
    (tuple[tuple[str, str | None], ...], [(("a", None),)], [(("a", 1),), ("ab",)]),
    (Any, [None, object()], []),
]


@pytest.mark.parametrize(
    ("hint", "fits", "not_fits"), TYPED, ids=[str(hint).partition(" at 0x")[0] for hint, _, _ in TYPED]
)
def test_values_have_the_type_of_the_hint_all_the_way_down(hint, fits, not_fits):
    assert all(has_type(value, hint) for value in fits)
    assert not any(has_type(value, hint) for value in not_fits)
