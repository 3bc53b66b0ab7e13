"""`plan.json`: the record that a run follows, its identity, and whether it can be followed at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dive_fast.io import canonical_json, read_json, sha256_bytes, write_json
from dive_fast.synth.manifest import checked, is_inside
from dive_fast.types import PAIR_MODES, InputError, Modality, PairMode, PairSpec, to_dict


@dataclass(frozen=True)
class SynthesisPlan:
    """`plan.json`. `plan_id` is the SHA-256 of everything else, so a folder can tell whose images it holds.

    `height`, `width` in pixels; `guidance` 1.0 is none; `strength` (photo-guided only, else None) is the part of the
    steps that is run on a photo; `photo_root` is the folder that the pairs' `photo` paths start from; `shard_size` is
    in pairs: a shard is what a rerun redoes at most.
    """

    plan_id: str
    mode: PairMode
    model_fingerprint: str
    seed: int
    steps: int
    guidance: float
    strength: float | None
    height: int
    width: int
    photo_root: str | None
    shard_size: int
    pairs: tuple[PairSpec, ...]

    @property
    def shards(self) -> int:
        return math.ceil(len(self.pairs) / self.shard_size)

    def shard(self, number: int) -> tuple[PairSpec, ...]:
        """The pairs of shard `number`, counted from 0."""
        return self.pairs[number * self.shard_size : (number + 1) * self.shard_size]

    @property
    def start(self) -> int:
        """The first step that is run: 0 from noise, later from a photo."""
        return 0 if self.strength is None else self.steps - _steps_run(self.steps, self.strength)


def generated_sides(pair: PairSpec) -> tuple[Modality, ...]:
    """The sides of a pair that the engine makes; a photo is the RGB side as it is."""
    return ("rgb", "ir") if pair.photo is None else ("ir",)


def save_plan(plan: SynthesisPlan, path: Path | str) -> None:
    """Writes the plan as readable JSON, whole or not at all."""
    write_json(path, to_dict(plan))


def load_plan(path: Path | str) -> SynthesisPlan:
    """The plan in an untrusted file; anything missing, wrong or changed by hand raises `InputError`."""
    where = f"plan {path}"
    data = read_json(path, "plan")
    if not isinstance(data, dict) or not isinstance(data.get("pairs"), list):
        raise InputError(f"{where}: expected a JSON object with a list of pairs; make it with `dive-fast plan`")
    pairs = tuple(checked(PairSpec, pair, f"{where} pair {n}") for n, pair in enumerate(data["pairs"]))
    plan = checked(SynthesisPlan, {**data, "pairs": pairs}, where)
    check_plan(plan, where)
    if plan.plan_id != plan_hash(plan):
        raise InputError(f"{where}: its plan_id does not match its content; change a plan by making it anew")
    return plan


def plan_hash(plan: SynthesisPlan) -> str:
    """SHA-256 of the canonical JSON of everything but `plan_id`."""
    fields = to_dict(plan)
    del fields["plan_id"]
    return sha256_bytes(canonical_json(fields).encode())


def check_plan(plan: SynthesisPlan, where: str) -> None:
    """Raises one `InputError` with every reason why the plan makes no sense by itself."""
    reasons = [*_bad_numbers(plan), *_bad_photos(plan), *_bad_pairs(plan)]
    if reasons:
        raise InputError(f"{where}: {'; '.join(reasons)}")


def _steps_run(steps: int, strength: float) -> int:
    return round(steps * strength)


def _bad_numbers(plan: SynthesisPlan) -> list[str]:
    reasons = [
        f"{name} must be a whole number >= 1, got {value!r}"
        for name, value in (("steps", plan.steps), ("shard_size", plan.shard_size))
        if type(value) is not int or value < 1
    ]
    for name, value in (("height", plan.height), ("width", plan.width)):
        if type(value) is not int or value < 8 or value % 8:
            reasons.append(f"{name} must be a multiple of 8 pixels, got {value!r}")
    if not (math.isfinite(plan.guidance) and plan.guidance >= 0):
        reasons.append(f"guidance must be >= 0, got {plan.guidance}")
    if plan.mode not in PAIR_MODES:
        reasons.append(f"mode must be one of {PAIR_MODES}, got {plan.mode!r}")
    return reasons


def _bad_photos(plan: SynthesisPlan) -> list[str]:
    reasons = []
    if (plan.strength is None) is (plan.mode == "photo-guided"):
        reasons.append(f"mode {plan.mode!r} does not go with strength {plan.strength}")
    if plan.strength is not None and not (0 < plan.strength <= 1 and _steps_run(plan.steps, plan.strength) >= 1):
        reasons.append(f"strength must be in 0..1 and run at least one of {plan.steps} steps, got {plan.strength}")
    if (plan.photo_root is None) is not (plan.mode == "synthetic"):
        reasons.append(f"mode {plan.mode!r} does not go with photo_root {plan.photo_root!r}")
    wrong = [pair for pair in plan.pairs if (pair.photo is None) is not (plan.mode == "synthetic")]
    if wrong:
        reasons.append(f"{len(wrong):,} pairs do not fit mode {plan.mode!r}, first {wrong[0].pair_id}")
    outside = [pair for pair in plan.pairs if pair.photo is not None and not is_inside(pair.photo)]
    if outside:
        reasons.append(f"{len(outside):,} photos lie outside photo_root, first of pair {outside[0].pair_id}")
    return reasons


def _bad_pairs(plan: SynthesisPlan) -> list[str]:
    if not plan.pairs:
        return ["there is no pair to make"]
    reasons = []
    if len({pair.pair_id for pair in plan.pairs}) < len(plan.pairs):
        reasons.append("a pair_id occurs twice")
    bad = [pair for pair in plan.pairs if not 0 <= pair.seed < 2**63]
    if bad:
        reasons.append(f"{len(bad):,} seeds are outside 0..2**63-1, first of pair {bad[0].pair_id}")
    return reasons
