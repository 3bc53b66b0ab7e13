"""Which images are asked for and which are searched: query and gallery of each trial, by name."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dive_fast.reid.metrics import Rule
from dive_fast.types import InputError, Sample

SEARCHES = {"all": (1, 2, 4, 5), "indoor": (1, 2)}  # SYSU-MM01's visible cameras
Permutations = dict[tuple[int, int], Any]  # (camera, identity) -> int [trials, images], 1-based image numbers


@dataclass(frozen=True)
class Protocol:
    """How a data set is searched; infrared query, visible gallery in both.

    - "sysu": SYSU-MM01's `search` ("all" or "indoor"), `shots` gallery images per identity and camera (1 or 10),
      `trials` gallery draws (10), drawn `seeded` (AGW family) or `official` (rand_perm_cam.mat).
    - "pocket": the whole visible gallery at once, so nothing is drawn; SYSU's camera rule.
    """

    name: Literal["sysu", "pocket"] = "pocket"
    search: Literal["all", "indoor"] = "all"
    shots: int = 1
    trials: int = 10
    draw: Literal["seeded", "official"] = "seeded"

    def __post_init__(self) -> None:
        allowed = (("name", ("sysu", "pocket")), ("search", tuple(SEARCHES)), ("draw", ("seeded", "official")))
        for field, values in allowed:
            if getattr(self, field) not in values:
                raise InputError(f"protocol {field} must be one of {values}, got {getattr(self, field)!r}")
        if self.shots < 1 or self.trials < 1:
            raise InputError(f"shots and trials must be at least 1, got {self.shots} and {self.trials}")

    @property
    def rule(self) -> Rule:
        """The rule of `metrics.evaluate`."""
        return "sysu"

    def facts(self) -> dict[str, str | int]:
        """What a reader must know to compare a number made under this protocol with another."""
        if self.name == "pocket":
            return {"protocol": "pocket", "search": "all", "shots": "whole gallery", "trials": 1, "draw": "none"}
        return {
            "protocol": "sysu",
            "search": self.search,
            "shots": self.shots,
            "trials": self.trials,
            "draw": self.draw,
        }


def camera_number(camera: str) -> int:
    """3 for "cam3" (the number at the name's end); a name without one raises `InputError`."""
    match = re.search(r"(\d+)$", camera)
    if not match:
        raise InputError(f"camera {camera!r} has no number at its end; name cameras like 'cam3'")
    return int(match.group(1))


def trial_galleries(
    gallery: Sequence[Sample], protocol: Protocol, permutations: Permutations | None = None
) -> list[list[int]]:
    """One list of indices into `gallery` per trial.

    "pocket" keeps everything, once. "sysu" draws per trial; an identity that a camera never saw is left out there.
    Raises `InputError` for an empty gallery, one without the searched cameras, and `official` without permutations.
    """
    if not gallery:
        raise InputError("the gallery is empty; give it visible images of the query identities")
    if protocol.name == "pocket":
        return [list(range(len(gallery)))]
    cameras = SEARCHES[protocol.search]
    cells = _cells(gallery, cameras)
    if not cells:
        raise InputError(f"the gallery has no image of the searched cameras {cameras}; is this SYSU-MM01's test split?")
    if protocol.draw == "seeded":
        return [_seeded(gallery, cells, cameras, protocol.shots, trial) for trial in range(protocol.trials)]
    if permutations is None:
        raise InputError("draw 'official' needs exp/rand_perm_cam.mat (see read_permutations)")
    return [_official(gallery, cells, permutations, protocol.shots, trial) for trial in range(protocol.trials)]


def _cells(gallery: Sequence[Sample], cameras: Iterable[int]) -> dict[tuple[str, int], list[int]]:
    """Gallery indices per (identity, camera), each list sorted by file path."""
    cells: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(gallery):
        if (camera := camera_number(sample.camera)) in cameras:
            cells[sample.pid, camera].append(index)
    return {key: sorted(indices, key=lambda i: str(gallery[i].path)) for key, indices in cells.items()}


def _seeded(
    gallery: Sequence[Sample], cells: dict[tuple[str, int], list[int]], cameras: Iterable[int], shots: int, trial: int
) -> list[int]:
    """AGW's draw (mangye16/Cross-Modal-Re-ID-baseline): the order of the loops decides which number falls to whom."""
    generator = random.Random(trial)
    drawn: list[int] = []
    for pid in sorted({sample.pid for sample in gallery}):
        for camera in cameras:
            files = cells.get((pid, camera))
            if not files:
                continue
            if shots == 1:
                drawn.append(generator.choice(files))
            else:
                drawn.extend(generator.sample(files, min(shots, len(files))))
    return drawn


def _official(
    gallery: Sequence[Sample],
    cells: dict[tuple[str, int], list[int]],
    permutations: Permutations,
    shots: int,
    trial: int,
) -> list[int]:
    """SYSU-MM01's published draw: the first `shots` image numbers of the trial's permutation."""
    drawn: list[int] = []
    for (pid, camera), files in sorted(cells.items()):
        table = permutations.get((camera, int(pid)))
        if table is None or trial >= len(table):
            raise InputError(f"the official draw has no trial {trial} for identity {pid} in camera {camera}")
        numbered = {int(gallery[i].path.stem): i for i in files}
        for number in table[trial][:shots]:
            if int(number) not in numbered:
                raise InputError(f"the official draw names image {int(number):04d} of identity {pid} in camera "
                                 f"{camera}, which is not in the gallery; is the data set complete?")  # fmt: skip
            drawn.append(numbered[int(number)])
    return drawn


def read_permutations(path: Path | str) -> Permutations:
    """SYSU-MM01's `exp/rand_perm_cam.mat` as (camera, identity) -> int [trials, images]. Needs scipy."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError("draw 'official' reads a .mat file with scipy; pip install scipy, or draw 'seeded'") from error
    try:
        cells = loadmat(str(path))["rand_perm_cam"]
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError(f"{path}: no readable 'rand_perm_cam' ({error}); copy SYSU-MM01's exp folder again") from error
    tables: Permutations = {}
    for camera in range(len(cells)):
        people = cells[camera][0]
        for person in range(len(people)):
            if people[person][0].size:
                tables[camera + 1, person + 1] = people[person][0]
    return tables
