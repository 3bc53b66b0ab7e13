"""`plan.json`: the record that a run follows, its identity, and whether it can be followed at all.

A plan lists identities, not pairs: a few numbers give the pairs of each. So a plan of ten million pairs is
as small as its identities and photos, and any pair or shard of it is found without walking through the others.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal

from dive_fast.io import brief, canonical_json, readable_json, sha256_bytes
from dive_fast.json_files import read_json
from dive_fast.outputs import json_with, write_output
from dive_fast.sampling.config import Sampling
from dive_fast.settings import AtMost, Bound, NonNegativeInt, PositiveInt, Settings
from dive_fast.synth.records import checked, is_inside
from dive_fast.types import InputError, Modality, PairMode, PairSpec, generated_sides, shown, to_dict

VERSION = 4
ImageFormat = Literal["png", "jpg"]
RgbSide = tuple[str, str | None]
"""An RGB camera and, unless the side is to be generated, its photo relative to the photo root."""


@dataclass(frozen=True)
class IdentityPlan:
    """The pairs of one identity: `pairs` for each of its infrared cameras.

    Its pair `index` is the k-th one, k = index // len(ir), of the infrared camera number index % len(ir), and has the
    k-th RGB side, cycling: the same RGB side meets every infrared camera. `virtual` as in `Identity`.
    """

    pid: str
    pairs: int
    ir: tuple[str, ...]
    rgb: tuple[RgbSide, ...]
    virtual: bool = False

    @property
    def total(self) -> int:
        """Pairs of all infrared cameras."""
        return self.pairs * len(self.ir)

    def pair(self, index: int, seed: int) -> PairSpec:
        """Pair `index` of this identity, counted from 0, in a run with `seed`."""
        k, camera = divmod(index, len(self.ir))
        rgb, photo = self.rgb[k % len(self.rgb)]
        ir = self.ir[camera]
        return PairSpec(
            pair_id=f"{self.pid}-{index:05d}-{ir}",
            pid=self.pid,
            index=index,
            rgb=rgb,
            ir=ir,
            seed=pair_seed(seed, self.pid, index),
            photo=photo,
            virtual=self.virtual,
        )


def pair_seed(seed: int, pid: str, index: int) -> int:
    """A pair's own 63-bit seed, from the run's seed, the identity and the pair's index only."""
    digest = hashlib.sha256(canonical_json([seed, pid, index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def MultipleOf(step: int) -> Bound:
    return Bound(f"a multiple of {step}", lambda value: value >= step and value % step == 0)


Pixels = Annotated[int, MultipleOf(8), AtMost(1 << 14)]
MOST_PAIRS, MOST_SHARDS = 10**9, 10**7


@dataclass(frozen=True)
class SynthesisPlan(Settings):
    """`plan.json`. `plan_id` is the SHA-256 of everything else, so a folder can tell whose images it holds.

    `precision` is what the engine must have; None accepts any. `height` and `width` are in pixels. `strength`
    (photo-guided only, else None) is the fraction of the steps that run on a photo. `photo_root` is the folder of the
    `photo` paths. `image_format` is that of generated images: PNG, lossless, or JPEG, a tenth of the size. `shard_size` is
    in pairs: a rerun redoes one shard at most. Raises one `InputError` with every reason why a plan makes no sense.
    """

    plan_id: str
    mode: PairMode
    model_fingerprint: str
    seed: NonNegativeInt
    sampling: Sampling
    precision: str | None
    strength: float | None
    height: Pixels
    width: Pixels
    photo_root: str | None
    image_format: ImageFormat
    shard_size: PositiveInt
    identities: tuple[IdentityPlan, ...]
    version: int = VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        reasons = [*_bad_photos(self), *_bad_identities(self)]
        if reasons:
            raise InputError("; ".join(reasons))

    @cached_property
    def pairs(self) -> Pairs:
        """Every pair in order, identity after identity."""
        return Pairs(self)

    @property
    def shards(self) -> int:
        return math.ceil(len(self.pairs) / self.shard_size)

    @property
    def start(self) -> int:
        """The first step that is run: 0 from noise, later from a photo."""
        steps = self.sampling.steps
        return 0 if self.strength is None else steps - _steps_run(steps, self.strength)

    @property
    def sides(self) -> tuple[Modality, ...]:
        """The sides of a pair that the engine makes."""
        return generated_sides(self.mode)


class Pairs:
    """The pairs of a plan, by number and in order, each made when it is asked for."""

    def __init__(self, plan: SynthesisPlan) -> None:
        self._identities, self._seed = plan.identities, plan.seed
        self._ends = list(accumulate(identity.total for identity in plan.identities))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[PairSpec]:
        return (identity.pair(index, self._seed) for identity in self._identities for index in range(identity.total))

    def __getitem__(self, number: int) -> PairSpec:
        identity, index = self.place(number)
        return identity.pair(index, self._seed)

    def place(self, number: int) -> tuple[IdentityPlan, int]:
        """Whose pair `number` of the plan is, and which of that identity's."""
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(number)
        identity = bisect.bisect_right(self._ends, number)
        return self._identities[identity], number - (self._ends[identity] - self._identities[identity].total)


def save_plan(plan: SynthesisPlan, path: Path | str, overwrite: bool = False) -> None:
    """Writes the plan as readable JSON, whole or not at all.

    An equal plan at `path` stays; another one raises `InputError` without `overwrite`, other content always.
    """
    write_output(path, readable_json(to_dict(plan)), json_with("plan_id"), overwrite)


def load_plan(path: Path | str) -> SynthesisPlan:
    """The plan in an untrusted file; anything missing, wrong or changed by hand raises `InputError`."""
    return read_plan(read_json(path, "plan"), f"plan {path}")


def read_plan(data: object, where: str) -> SynthesisPlan:
    """The plan in untrusted JSON; `where` names it in errors."""
    if isinstance(data, dict) and data.get("version") != VERSION:
        raise InputError(
            f"{where}: it has version {shown(data.get('version'))}, this dive-fast reads version {VERSION}; "
            "plan again with `dive-fast plan`"
        )
    plan = checked(SynthesisPlan, data, where)
    if plan.plan_id != plan_hash(plan):
        raise InputError(f"{where}: its plan_id does not match its content; plan again to change it")
    return plan


def plan_hash(plan: SynthesisPlan) -> str:
    """SHA-256 of the canonical JSON of everything but `plan_id`."""
    fields = to_dict(plan)
    del fields["plan_id"]
    return sha256_bytes(canonical_json(fields).encode())


def _steps_run(steps: int, strength: float) -> int:
    return round(steps * strength)


def _bad_photos(plan: SynthesisPlan) -> list[str]:
    reasons = []
    if (plan.strength is None) is (plan.mode == "photo-guided"):
        reasons.append(f"mode {plan.mode!r} does not go with strength {shown(plan.strength)}")
    steps = plan.sampling.steps
    if plan.strength is not None and not (0 < plan.strength <= 1 and _steps_run(steps, plan.strength) >= 1):
        reasons.append(f"strength must be in 0..1 and run at least one of {steps} steps, got {shown(plan.strength)}")
    if (plan.photo_root is None) is not (plan.mode == "synthetic"):
        reasons.append(f"mode {plan.mode!r} does not go with photo_root {shown(plan.photo_root)}")
    sides = [(identity.pid, photo) for identity in plan.identities for _, photo in identity.rgb]
    wrong = [pid for pid, photo in sides if (photo is None) is not (plan.mode == "synthetic")]
    if wrong:
        reasons.append(
            f"{len(wrong):,} RGB sides do not fit mode {plan.mode!r}, first of identity {brief(wrong[0], 80)}"
        )
    outside = [pid for pid, photo in sides if photo is not None and not is_inside(photo)]
    if outside:
        reasons.append(f"{len(outside):,} photos lie outside photo_root, first of identity {brief(outside[0], 80)}")
    return reasons


def _bad_identities(plan: SynthesisPlan) -> list[str]:
    reasons = []
    if len({identity.pid for identity in plan.identities}) < len(plan.identities):
        reasons.append("the plan lists an identity twice")
    for identity in plan.identities:
        twice = len(set(identity.ir)) < len(identity.ir) or len(set(identity.rgb)) < len(identity.rgb)
        if identity.pairs < 0 or (identity.pairs and not (identity.ir and identity.rgb)) or twice:
            reasons.append(
                f"identity {brief(identity.pid, 80)} needs pairs >= 0 ({shown(identity.pairs)}) and cameras and RGB sides, "
                "each once"
            )
            break
    total = sum(identity.total for identity in plan.identities)
    if not reasons and not total:
        reasons.append("the plan has no pair to make")
    if not reasons and (total > MOST_PAIRS or -(-total // plan.shard_size) > MOST_SHARDS):
        shards = f"{MOST_SHARDS:,} shards of {plan.shard_size:,}"
        reasons.append(f"the plan has {shown(total)} pairs, at most {MOST_PAIRS:,} in {shards}: ask for fewer pairs")
    return reasons
