"""What a usefulness comparison shows and what it cannot show, one sentence each, for a reader who is new to it."""

from __future__ import annotations

from dive_fast.reid.comparison.records import Arm, Comparison, PeopleTest, SeedTest
from dive_fast.types import InputError


def ends(comparison: Comparison) -> tuple[Arm, Arm]:
    """Returns the baseline and the oracle; raises `InputError` for a comparison that lacks one."""
    if comparison.baseline is None or comparison.oracle is None:
        raise InputError("a comparison's result needs a baseline and an oracle among its arms")
    return comparison.arm(comparison.baseline), comparison.arm(comparison.oracle)


def result(comparison: Comparison, name: str = "ours") -> str:
    """Says how the arm `name` does between baseline and oracle, or that the comparison cannot tell."""
    base, top = ends(comparison)
    own = comparison.arm(name).map_mean
    seeds = len(comparison.seeds)
    run = "In this run" if seeds == 1 else f"On average over {seeds} seeds"
    ceiling = f"true infrared ({top.name})"
    if top.map_mean <= base.map_mean:
        return (
            f"A comparison of this size cannot tell whether generated infrared helps: even with {ceiling} mAP is "
            f"{top.map_mean:.1f}, not above the {base.map_mean:.1f} of {base.name}; {name} has {own:.1f}."
        )
    helps = "helps" if own > base.map_mean else "does not help"
    return (
        f"{run} generated infrared {helps}: {name} reaches {own:.1f} mAP, {base.name} without it {base.map_mean:.1f} and "
        f"{ceiling} {top.map_mean:.1f}{_gap(comparison.arm(name), base, top)}."
    )


def _gap(arm: Arm, base: Arm, top: Arm) -> str:
    if arm.map_mean > top.map_mean:
        return ", which should be the ceiling"
    if arm.gap_closed_mean is None or arm.map_mean <= base.map_mean:
        return ""
    return f", so {arm.name} closes {100 * arm.gap_closed_mean:.0f} % of the gap"


def limits(comparison: Comparison, name: str = "ours") -> str:
    """Says what the seeds cannot show, and how far other people or trainings may move the arm's difference."""
    base, _ = ends(comparison)
    found = comparison.arm(name).significance
    seeds, people = (None, None) if found is None else (found.seeds, found.people)
    difference = f"{name} minus {base.name} may be"
    clauses = []
    if seeds is None:
        clauses.append("one seed cannot show whether another training would agree")
    else:
        clauses.append(f"with other seeds, {difference} {_span(seeds)} (95 % interval over {seeds.seeds} seeds)")
    if people is not None:
        clauses.append(
            f"with other test people, {difference} {_span(people)} (95 % interval over {people.people} people)"
        )
    sentence = "; ".join(clauses)
    chance = any(test.low <= 0 <= test.high for test in (seeds, people) if test is not None)
    return f"{sentence[0].upper()}{sentence[1:]}{', so it may be chance' if chance else ''}."


def _span(test: SeedTest | PeopleTest) -> str:
    return f"{test.low:+.1f} to {test.high:+.1f} mAP"
