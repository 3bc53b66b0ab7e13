"""Evaluation protocols: the query and gallery images of each trial."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dive_fast.environment.optional import optional
from dive_fast.io import brief
from dive_fast.reid.evaluation.mat import read_mat
from dive_fast.settings import PositiveInt, Settings, Within
from dive_fast.types import InputError, Modality, Sample, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ProtocolName = Literal["pocket", "sysu", "regdb", "llcm"]
Direction = Literal["ir-to-visible", "visible-to-ir"]
Rule = Literal["sysu", "llcm", "regdb"]

SEARCHES = {"all": (1, 2, 4, 5), "indoor": (1, 2)}  # SYSU-MM01's visible cameras
REGDB_TRIALS = 10
DIRECTION_NAMES: dict[Direction, str] = {
    "ir-to-visible": "infrared to visible",
    "visible-to-ir": "visible to infrared",
}
Permutations = dict[tuple[int, int], Any]  # (camera, identity) -> int [trials, images], 1-based image numbers

# The camera names that the readers of dive_fast.data give.
_CAMERAS = {
    "pocket": (r"(?!regdb-|llcm-).*", "a tree like SYSU-MM01's"),
    "sysu": (r"cam[1-6]", "SYSU-MM01 (cameras cam1 to cam6)"),
    "regdb": (r"regdb-(visible1|thermal2)", "RegDB (cameras regdb-visible1 and regdb-thermal2)"),
    "llcm": (r"llcm-(vis|nir)[0-9]+", "LLCM (cameras llcm-vis1, llcm-nir1, ...)"),
}


@dataclass(frozen=True)
class Trial:
    """The rows (`query`) and columns (`gallery`) of the distances that a trial scores; None is all of them."""

    query: Sequence[int] | NDArray[np.intp] | None = None
    gallery: Sequence[int] | NDArray[np.intp] | None = None


@dataclass(frozen=True)
class Protocol(Settings):
    """How a data set is searched.

    - "pocket": infrared queries search the whole gallery; SYSU-MM01's camera rule.
    - "sysu": infrared queries search `trials` draws of `shots` gallery images per identity and camera. For more than one
      shot no common code exists, so these seeded draws are this project's.
    - "regdb": each of ten trials has its own lists and model; one modality searches all images of the other.
    - "llcm": `trials` draws of one gallery image per identity and camera. Mode "legacy" repeats the test code of the AGW
      and DEEN family for the figures published as VIS to IR: the code swaps the sides twice, so drawn infrared images
      search all visible ones. It requires the direction that the figures are published under.
    """

    name: ProtocolName = "pocket"
    """Protocol: pocket searches the whole gallery, sysu and llcm draw it as published, regdb searches one trial's images."""
    search: Literal["all", "indoor"] = "all"
    """sysu: visible cameras that are searched."""
    shots: PositiveInt = 1
    """sysu: gallery images per identity and camera; 10 is multi-shot."""
    trials: PositiveInt = 10
    """sysu and llcm: gallery draws."""
    draw: Literal["seeded", "official"] = "seeded"
    """sysu: galleries as the AGW family draws them, or those of rand_perm_cam.mat; the scores differ."""
    direction: Direction = "ir-to-visible"
    """regdb and llcm: modality of the queries, and of the gallery."""
    mode: Literal["standard", "legacy"] = "standard"
    """llcm: legacy repeats the figures published as VIS to IR, whose queries are infrared and whose gallery is visible."""
    trial: Annotated[int, Within(1, REGDB_TRIALS)] = 1
    """regdb: number of the trial, 1 to 10."""

    def __post_init__(self) -> None:
        """Refuses values out of bounds, and an explicit setting that the protocol does not use."""
        super().__post_init__()
        if self.name in ("sysu", "pocket") and self.direction != "ir-to-visible":
            raise InputError(f"direction {self.direction!r} is not for protocol {self.name!r}")
        defaults = {"search": ("sysu", "all"), "shots": ("sysu", 1), "draw": ("sysu", "seeded"), "trial": ("regdb", 1)}
        for field, (owner, default) in defaults.items():
            if self.name != owner and getattr(self, field) != default:
                raise InputError(
                    f"{field} {getattr(self, field)!r} is for protocol {owner!r}, got protocol {self.name!r}"
                )
        if not self.draws and self.trials not in (1, 10):
            raise InputError(f"protocol {self.name!r} draws nothing, got trials {self.trials}; leave trials out")
        if self.mode == "legacy" and (self.name != "llcm" or self.direction != "visible-to-ir"):
            raise InputError(f"mode 'legacy' requires llcm, visible-to-ir, got {self.name!r}, {self.direction!r}")

    @property
    def rule(self) -> Rule:
        """The rule of `metrics.evaluate`."""
        return "sysu" if self.name == "pocket" else self.name

    @property
    def draws(self) -> bool:
        """Whether trials draw images at random."""
        return self.name in ("sysu", "llcm")

    @property
    def drawn_side(self) -> Literal["query", "gallery"]:
        """The side that trials draw from."""
        return "query" if self.mode == "legacy" else "gallery"

    @property
    def runs(self) -> Direction:
        """The direction that runs; in mode "legacy" its figures are published under the other one."""
        return "ir-to-visible" if self.mode == "legacy" else self.direction

    @property
    def direction_name(self) -> str:
        """ "infrared to visible", of the direction that runs; in mode "legacy" with the one of its published figures."""
        published = f" (legacy: published as {DIRECTION_NAMES[self.direction]})" if self.mode == "legacy" else ""
        return DIRECTION_NAMES[self.runs] + published

    @property
    def query_modality(self) -> Modality:
        return "ir" if self.runs == "ir-to-visible" else "rgb"

    @property
    def gallery_modality(self) -> Modality:
        return "rgb" if self.runs == "ir-to-visible" else "ir"

    def metadata(self) -> dict[str, str | int]:
        """Returns what a reader needs to compare a score with another one."""
        found: dict[str, str | int] = {
            "protocol": self.name,
            "search": self.search,
            "shots": self.shots if self.draws else "whole gallery",
            "trials": self.trials if self.draws else 1,
            "draw": self.draw if self.draws else "none",
            "direction": self.runs,
            "mode": self.mode,
        }
        if self.name == "regdb":
            found["trial"] = self.trial
        if self.mode == "legacy":
            found |= {"shots": "1 query, whole gallery", "published_as": self.direction}
        return found


def describe(metadata: dict[str, Any]) -> str:
    """ "protocol sysu (all search, shots 1, trials 10, draw seeded), infrared to visible", of `Protocol.metadata`."""
    parts = [f"{metadata['search']} search", *(f"{name} {metadata[name]}" for name in ("shots", "trials", "draw"))]
    parts += [f"{name} {metadata[name]}" for name in ("trial", "models") if name in metadata]
    text = f"protocol {metadata['protocol']} ({', '.join(parts)}), {DIRECTION_NAMES[metadata['direction']]}"
    if "published_as" in metadata:
        text += f", mode legacy (published as {DIRECTION_NAMES[metadata['published_as']]})"
    return text


def camera_number(camera: str) -> int:
    """Returns 3 for "cam3", the number at the name's end; a name without one raises `InputError`."""
    match = re.search(r"(\d+)$", camera)
    if not match:
        raise InputError(f"camera {shown(camera)} has no number at its end; name cameras like 'cam3'")
    return int(match.group(1))


def check_cameras(samples: Sequence[Sample], protocol: Protocol) -> None:
    """Raises `InputError` for samples of another data set than the protocol's, by their cameras' names."""
    pattern, expected = _CAMERAS[protocol.name]
    known = re.compile(pattern)
    for sample in samples:
        if not known.fullmatch(sample.camera):
            raise InputError(
                f"protocol {shown(protocol.name)} is for {expected}, got {sample.path} by {shown(sample.camera)}"
            )


def draw_trials(
    query: Sequence[Sample], gallery: Sequence[Sample], protocol: Protocol, permutations: Permutations | None = None
) -> list[Trial]:
    """Returns the trials of both sides.

    "pocket" and "regdb" have one trial of everything. The others draw from `protocol.drawn_side`; an identity that a camera
    never saw is left out there. The sides must have passed `task.check_sides`. Raises `InputError` for a gallery without
    the searched cameras, and for draw "official" without `permutations`.
    """
    if not protocol.draws:
        return [Trial()]
    side = protocol.drawn_side
    samples = query if side == "query" else gallery
    known = tuple(sorted({camera_number(sample.camera) for sample in samples}))
    cameras = SEARCHES[protocol.search] if protocol.name == "sysu" else known
    cells = _cells(samples, cameras)
    if not cells:
        raise InputError(f"the {side} has no image of the searched cameras {cameras}; give SYSU-MM01's test split")
    if protocol.draw == "seeded":
        drawn = [_seeded(samples, cells, cameras, protocol.shots, trial) for trial in range(protocol.trials)]
    elif permutations is None:
        raise InputError("draw 'official' needs exp/rand_perm_cam.mat; give --permutations")
    else:
        drawn = [_official(samples, cells, permutations, protocol.shots, trial) for trial in range(protocol.trials)]
    return [Trial(**{side: rows}) for rows in drawn]


def _cells(gallery: Sequence[Sample], cameras: Iterable[int]) -> dict[tuple[str, int], list[int]]:
    """Gallery indices per (identity, camera), sorted by file path."""
    cells: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, sample in enumerate(gallery):
        if (camera := camera_number(sample.camera)) in cameras:
            cells[sample.pid, camera].append(index)
    return {key: sorted(indices, key=lambda i: str(gallery[i].path)) for key, indices in cells.items()}


def _seeded(
    gallery: Sequence[Sample], cells: dict[tuple[str, int], list[int]], cameras: Iterable[int], shots: int, trial: int
) -> list[int]:
    """AGW's draw (mangye16/Cross-Modal-Re-ID-baseline): the order of the loops decides which random number an image gets."""
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
    """SYSU-MM01's published draw: the first `shots` image numbers of the trial's permutation, camera by camera."""
    drawn: list[int] = []
    for (pid, camera), files in sorted(cells.items(), key=lambda cell: (cell[0][1], cell[0][0])):
        table = permutations.get((camera, _number(pid, "identity")))
        if table is None or trial >= len(table):
            raise InputError(f"the official draw has no trial {trial} for identity {pid} in camera {camera}")
        numbered = {_number(gallery[i].path.stem, "image"): i for i in files}
        for number in map(int, table[trial][:shots]):
            if number not in numbered:
                raise InputError(
                    f"the official draw names image {number:04d} of {pid} in camera {camera}, which is not there"
                )
            drawn.append(numbered[number])
    return drawn


def _number(name: str, what: str) -> int:
    if not (name.isascii() and name.isdigit()):
        raise InputError(f"the official draw needs numbers, got {what} {name!r}; use SYSU-MM01 as published")
    return int(name)


def _draws(table: NDArray[Any]) -> NDArray[np.int64]:
    import numpy as np

    if table.ndim != 2 or table.dtype.kind not in "fiu" or not np.isfinite(table).all():
        raise ValueError(f"a draw is {table.dtype} of shape {list(table.shape)}")
    return table.astype(np.int64)


def read_permutations(path: Path | str) -> Permutations:
    """Reads SYSU-MM01's `exp/rand_perm_cam.mat` as (camera, identity) -> int [trials, images]; needs scipy."""
    optional("scipy.io", "draw 'official'", "choose draw 'seeded'", error=InputError)
    found = read_mat(Path(path), ["rand_perm_cam"])
    try:
        cells = found["rand_perm_cam"]
        return {
            (camera + 1, person + 1): _draws(people[person][0])
            for camera, people in enumerate(cells[:, 0])
            for person in range(len(people))
            if people[person][0].size
        }
    except Exception as error:  # numpy raises many kinds for other contents
        raise InputError(
            f"{path}: no readable 'rand_perm_cam' ({brief(error, 80)}); copy its exp folder again"
        ) from error
