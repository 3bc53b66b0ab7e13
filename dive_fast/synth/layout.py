"""The file of every image of a plan. It depends on the plan alone, so a resumed run gives the same names."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from dive_fast.data.writers import sysu_name
from dive_fast.synth.planfile import IdentityPlan, SynthesisPlan
from dive_fast.types import Modality, PairSpec

PairFiles = dict[Modality, str]
"""The two files of a pair, relative to the dataset: {"rgb": "cam1/0001/0001.png", "ir": "cam3/0001/0001.png"}."""


class IdentityFiles:
    """The files of one identity's pairs: a file for each generated image, and one for each photo, however many pairs it has.

    Numbers count within (camera, identity). Raises `InputError` for names that a SYSU tree cannot hold.
    """

    def __init__(self, identity: IdentityPlan, suffix: str) -> None:
        self._identity, self._suffix = identity, suffix
        counts: Counter[str] = Counter()
        self._numbers = []  # of every RGB side within its camera, from 1
        for camera, _ in identity.rgb:
            counts[camera] += 1
            self._numbers.append(counts[camera])
        self._sides = counts  # RGB sides by camera

    def of_pair(self, index: int) -> PairFiles:
        """The files of the identity's pair `index`, counted from 0."""
        identity = self._identity
        k, camera = divmod(index, len(identity.ir))
        ir = sysu_name(identity.ir[camera], identity.pid, k + 1, self._suffix)
        turn, side = divmod(k, len(identity.rgb))
        rgb, photo = identity.rgb[side]
        if photo is not None:
            return {
                "rgb": sysu_name(rgb, identity.pid, self._numbers[side], PurePosixPath(photo).suffix.lower()),
                "ir": ir,
            }
        # every infrared camera, and every cycle through the sides, has its own RGB images
        before = (turn * self._sides[rgb] + self._numbers[side] - 1) * len(identity.ir)
        return {"rgb": sysu_name(rgb, identity.pid, before + camera + 1, self._suffix), "ir": ir}


def shard_pairs(plan: SynthesisPlan, number: int) -> list[tuple[PairSpec, PairFiles]]:
    """The pairs of shard `number`, counted from 0, each with its files."""
    first = number * plan.shard_size
    files: dict[str, IdentityFiles] = {}
    found = []
    for n in range(first, min(first + plan.shard_size, len(plan.pairs))):
        identity, index = plan.pairs.place(n)
        if identity.pid not in files:
            files[identity.pid] = IdentityFiles(identity, f".{plan.image_format}")
        found.append((identity.pair(index, plan.seed), files[identity.pid].of_pair(index)))
    return found


def check_names(plan: SynthesisPlan) -> None:
    """Raises `InputError` for an identity, camera or photo whose file a SYSU tree cannot hold."""
    for identity in plan.identities:
        for camera in identity.ir if identity.pairs else ():
            sysu_name(camera, identity.pid, 1)
        for camera, photo in identity.rgb if identity.pairs else ():
            sysu_name(camera, identity.pid, 1, ".png" if photo is None else PurePosixPath(photo).suffix.lower())
