"""A comparison as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dive_fast.data.counts import align
from dive_fast.io import atomic_write
from dive_fast.reid.comparison.records import Comparison, PeopleTest, Rate, SeedTest, Significance
from dive_fast.reid.comparison.significance import LEVEL, POWER
from dive_fast.reid.evaluation.protocols import describe

_COLUMNS = (
    "arm",
    "people",
    "no IR",
    "visible",
    "infrared",
    "mAP %",
    "rank-1 %",
    "mAP vs baseline",
    "significant (p seeds / people)",
    "gap closed",
)
_KEPT = "identity kept"


def header(comparison: Comparison) -> tuple[str, ...]:
    """Returns the names of the columns; "identity kept" is one if an arm has it."""
    return (*_COLUMNS, _KEPT) if any(arm.kept is not None for arm in comparison.arms) else _COLUMNS


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Returns one row of cells per arm, in the order of `header`; "-" for an absent value."""
    columns = len(header(comparison))
    return [
        (
            comparison.label(arm.name),
            f"{arm.identities:,}",
            f"{arm.without_infrared:,}",
            f"{arm.visible:,}",
            f"{arm.infrared:,}" + (f" ({arm.synthetic:,} synthetic images)" if arm.synthetic else ""),
            format_std(arm.map_mean, arm.map_deviation),
            f"{arm.rank1_mean:.1f}",
            format_std(arm.difference_mean, arm.difference_deviation, sign="+"),
            _significance(arm.significance),
            _percent(arm.gap_closed_mean, arm.gap_closed_deviation),
            _kept(arm.kept),
        )[:columns]
        for arm in comparison.arms
    ]


def _significance(found: Significance | None) -> str:
    """ "no (0.086 / 0.004)": the verdict, and the corrected p-values of both tests."""
    if found is None:
        return "-"
    words = {"better": "better", "worse": "worse", "not significant": "no", "untested": "untested"}
    return f"{words[found.verdict]} ({_p_value(found.seeds)} / {_p_value(found.people)})"


def _p_value(test: SeedTest | PeopleTest | None) -> str:
    if test is None:
        return "-"
    return "<0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}"


def mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Returns mean and sample standard deviation: neither where a value is None, no deviation of a single value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def format_std(mean: float | None, std: float | None, sign: str = "", digits: int = 1) -> str:
    """ "16.2 ± 0.4", without the deviation when there is none, "-" without a mean."""
    if mean is None:
        return "-"
    text = f"{mean:{sign}.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"


def _percent(mean: float | None, std: float | None) -> str:
    """ "52 ± 9 %" of fractions, "-" without a mean."""
    if mean is None:
        return "-"
    return f"{format_std(100 * mean, None if std is None else 100 * std, digits=0)} %"


def _kept(rate: Rate | None) -> str:
    """ "40.6 % (38.2 to 43.0)"."""
    if rate is None:
        return "-"
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def notes(comparison: Comparison) -> list[str]:
    """Returns what the numbers were measured on, and their limits."""
    lines = [
        f"{comparison.dataset}, {describe(comparison.protocol)}: {comparison.queries:,} queries, {comparison.gallery:,} "
        "gallery images.",
        f"Mean ± sample deviation over seeds {', '.join(map(str, comparison.seeds))}; differences are paired by seed.",
    ]
    if comparison.baseline is None or comparison.oracle is None:
        lines.append("Gap closed needs a baseline and an oracle arm.")
    else:
        lines.append(
            f"Gap closed = (arm - {comparison.baseline}) / ({comparison.oracle} - {comparison.baseline}) in mAP."
        )
    if any(a.gap_closed is not None and None in a.gap_closed for a in comparison.arms):
        lines.append("In at least one seed the oracle is not above the baseline, so there is no gap to close.")
    apart = [a.name for a in comparison.arms if a.apart]
    if apart:
        lines.append(f"Trained without the set that the other arms share: {', '.join(apart)}.")
    if _KEPT in header(comparison):
        lines.append(
            "Identity kept: infrared images whose nearest true infrared shows their own person, by a ReID net trained on "
            "other people; 95 % interval."
        )
    return [*lines, *_tests(comparison)]


def _tests(comparison: Comparison) -> list[str]:
    """How significance was tested, the intervals, and what the tests can see."""
    tested = {a.name: a.significance for a in comparison.arms if a.significance is not None}
    if not tested:
        return []
    by_people = next((s.people for s in tested.values() if s.people is not None), None)
    lines = [
        f"Significance against {comparison.baseline}, two-sided, Holm-corrected for {len(tested)} arms: p over seeds by a "
        "paired t-test (would other trainings agree, on these people?), p over people by flipping the signs of each "
        "person's AP differences together (would other people agree, with these nets?). Better or worse: both are below "
        f"{LEVEL}."
    ]
    if by_people is None:
        lines.append("Over people nothing was tested: all queries show one person.")
    else:
        lines.append(f"Tested over {by_people.queries:,} queries of {by_people.people:,} people.")
    if len(comparison.seeds) == 1:
        lines.append("One seed: nothing can be said about other trainings, so no arm is called better or worse.")
    intervals = "; ".join(f"{name} {_both(found, _interval)}" for name, found in tested.items())
    visible = "; ".join(f"{name} {_both(found, _visible)}" for name, found in tested.items())
    return [
        *lines,
        f"95 % intervals of the difference, not corrected, over seeds and over people: {intervals}.",
        f"Smallest true difference that a test finds with power {POWER}, in points of mAP, corrected for {len(tested)} arms,"
        f" over seeds and over people: {visible}. A smaller one may be there and not be significant.",
    ]


def _both(found: Significance, words: Callable[[SeedTest | PeopleTest], str]) -> str:
    """ "-0.8 to 5.2 and 0.4 to 4.1": the words of both tests; "-" for a test that was not made."""
    return " and ".join("-" if test is None else words(test) for test in (found.seeds, found.people))


def _interval(test: SeedTest | PeopleTest) -> str:
    return f"{test.low:.1f} to {test.high:.1f}"


def _visible(test: SeedTest | PeopleTest) -> str:
    return f"{test.visible:.1f}"


def as_text(comparison: Comparison) -> str:
    """Returns the table with aligned columns, then the notes."""
    columns = header(comparison)
    top, *lines = align([columns, *rows(comparison)], "<" + ">" * (len(columns) - 1)).splitlines()
    ruler = "-" * len(top)
    return "\n".join([top, ruler, *lines, ruler, *notes(comparison)]) + "\n"


def write_tables(comparison: Comparison, out: Path) -> None:
    """Writes the table and its notes into `out`, as `table.txt` and as Markdown, `table.md`."""
    atomic_write(out / "table.txt", as_text(comparison))
    columns = header(comparison)
    lines = [columns, ("---", *["---:"] * (len(columns) - 1)), *rows(comparison)]
    table = ["| " + " | ".join(cells) + " |" for cells in lines]
    atomic_write(out / "table.md", "\n".join([*table, "", *(f"{note}  " for note in notes(comparison))]) + "\n")
