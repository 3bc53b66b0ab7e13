"""Which images are asked for and which are searched: query and gallery of each trial, by name."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dive_fast.reid.evaluation.metrics import Drawn, Rule
from dive_fast.types import InputError, Modality, Sample

ProtocolName = Literal["pocket", "sysu", "regdb", "llcm"]
Direction = Literal["ir-to-visible", "visible-to-ir"]
Mode = Literal["standard", "legacy"]

SEARCHES = {"all": (1, 2, 4, 5), "indoor": (1, 2)}  # SYSU-MM01's visible cameras
PROBES = (3, 6)  # its infrared ones
REGDB_TRIALS = 10
WORDS = {"ir-to-visible": "infrared to visible", "visible-to-ir": "visible to infrared"}
Permutations = dict[tuple[int, int], Any]  # (camera, identity) -> int [trials, images], 1-based image numbers

# What cameras are called in the sets that a protocol is for; the readers of dive_fast.data give these names.
_CAMERAS = {
    "pocket": (r"(?!regdb-|llcm-).*", "a tree like SYSU-MM01's"),
    "sysu": (r"cam[1-6]", "SYSU-MM01 (cameras cam1 to cam6)"),
    "regdb": (r"regdb-(visible1|thermal2)", "RegDB (cameras regdb-visible1 and regdb-thermal2)"),
    "llcm": (r"llcm-(vis|nir)[0-9]+", "LLCM (cameras llcm-vis1, llcm-nir1, ...)"),
}


@dataclass(frozen=True)
class Protocol:
    """How a data set is searched.

    - "sysu": SYSU-MM01's `search` ("all" or "indoor"), `shots` gallery images per identity and camera (1 or 10),
      `trials` gallery draws (10), drawn `seeded` (AGW family; for more shots than one no common code exists, so those
      draws are ours) or `official` (rand_perm_cam.mat). Infrared queries only, as published.
    - "regdb": the lists of `trial` (1 to 10), each with a model of its own; all images of one modality are searched for in
      all of the other.
    - "llcm": `trials` draws of one gallery image per identity and camera. `mode` "legacy" repeats what test code of the
      AGW and DEEN family does for the figures published as VIS to IR: it swaps the sides twice, so that drawn infrared
      images are the queries and all visible ones the gallery. It goes with the direction that they are published under.
    - "pocket": the whole gallery at once, so nothing is drawn; SYSU's camera rule.
    """

    name: ProtocolName = "pocket"
    search: Literal["all", "indoor"] = "all"
    shots: int = 1
    trials: int = 10
    draw: Literal["seeded", "official"] = "seeded"
    direction: Direction = "ir-to-visible"
    mode: Mode = "standard"
    trial: int = 1

    def __post_init__(self) -> None:
        allowed: tuple[tuple[str, Collection[str]], ...] = (
            ("name", get_args(ProtocolName)),
            ("search", tuple(SEARCHES)),
            ("draw", ("seeded", "official")),
            ("direction", get_args(Direction)),
            ("mode", get_args(Mode)),
        )
        for field, values in allowed:
            if getattr(self, field) not in values:
                raise InputError(f"protocol {field} must be one of {values}, got {getattr(self, field)!r}")
        if self.shots < 1 or self.trials < 1:
            raise InputError(f"shots and trials must be at least 1, got {self.shots} and {self.trials}")
        self._check_meaning()

    def _check_meaning(self) -> None:
        """An explicit setting that the protocol has no use for is refused, not passed over."""
        if self.name in ("sysu", "pocket") and self.direction != "ir-to-visible":
            raise InputError(
                f"protocol {self.name!r} has infrared queries and a visible gallery only: neither SYSU-MM01's paper (Wu et "
                "al., ICCV 2017) nor its evaluation code defines another direction; leave direction at 'ir-to-visible'"
            )
        if self.name != "sysu":
            for field, default in (("search", "all"), ("shots", 1), ("draw", "seeded")):
                if getattr(self, field) != default:
                    raise InputError(f"{field} {getattr(self, field)!r} is for protocol 'sysu'; {self.name!r} has none")
        if not self.draws and self.trials not in (1, 10):
            raise InputError(
                f"protocol {self.name!r} draws nothing, so it has no {self.trials} trials; leave trials out"
            )
        if self.mode == "legacy" and (self.name != "llcm" or self.direction != "visible-to-ir"):
            raise InputError(
                "mode 'legacy' repeats the figures published for LLCM as VIS to IR: it goes with protocol 'llcm' and "
                f"direction 'visible-to-ir', got {self.name!r} and {self.direction!r}"
            )
        if not 1 <= self.trial <= REGDB_TRIALS or (self.name != "regdb" and self.trial != 1):
            raise InputError(f"trial is one of RegDB's 1 to {REGDB_TRIALS}, got {self.trial} for {self.name!r}")

    @property
    def rule(self) -> Rule:
        """The rule of `metrics.evaluate`."""
        return "sysu" if self.name == "pocket" else self.name

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at random."""
        return self.name in ("sysu", "llcm")

    @property
    def drawn_side(self) -> Literal["query", "gallery"]:
        """The side that trials draw from."""
        return "query" if self.mode == "legacy" else "gallery"

    @property
    def runs(self) -> Direction:
        """The direction that runs, which in mode "legacy" is not the one that its figures are published under."""
        return "ir-to-visible" if self.mode == "legacy" else self.direction

    @property
    def query_modality(self) -> Modality:
        return "ir" if self.runs == "ir-to-visible" else "rgb"

    @property
    def gallery_modality(self) -> Modality:
        return "rgb" if self.runs == "ir-to-visible" else "ir"

    def facts(self) -> dict[str, str | int]:
        """What a reader must know to compare a number made under this protocol with another."""
        facts: dict[str, str | int] = {
            "protocol": self.name,
            "search": self.search,
            "shots": self.shots if self.draws else "whole gallery",
            "trials": self.trials if self.draws else 1,
            "draw": self.draw if self.draws else "none",
            "direction": self.runs,
            "mode": self.mode,
        }
        if self.name == "regdb":
            facts["trial"] = self.trial
        if self.mode == "legacy":
            facts |= {"shots": "1 query, whole gallery", "published_as": self.direction}
        return facts

    def sentence(self) -> str:
        """The facts in words: "protocol sysu (all search, shots 1, trials 10, draw seeded), infrared to visible"."""
        return sentence(self.facts())


def sentence(facts: dict[str, Any]) -> str:
    """`Protocol.facts` in words."""
    parts = [f"{facts['search']} search", *(f"{name} {facts[name]}" for name in ("shots", "trials", "draw"))]
    parts += [f"{name} {facts[name]}" for name in ("trial", "models") if name in facts]
    text = f"protocol {facts['protocol']} ({', '.join(parts)}), {WORDS[facts['direction']]}"
    if "published_as" in facts:
        text += f", mode legacy (published as {WORDS[facts['published_as']]})"
    return text


def camera_number(camera: str) -> int:
    """3 for "cam3" (the number at the name's end); a name without one raises `InputError`."""
    match = re.search(r"(\d+)$", camera)
    if not match:
        raise InputError(f"camera {camera!r} has no number at its end; name cameras like 'cam3'")
    return int(match.group(1))


def check_cameras(samples: Sequence[Sample], protocol: Protocol) -> None:
    """Refuses samples of another data set than the protocol's, which their cameras' names tell."""
    pattern, expected = _CAMERAS[protocol.name]
    known = re.compile(pattern)
    for sample in samples:
        if not known.fullmatch(sample.camera):
            raise InputError(
                f"protocol {protocol.name!r} is for {expected}, but {sample.path} is by camera {sample.camera!r}; choose "
                "the protocol of that data set"
            )


def trial_galleries(
    gallery: Sequence[Sample], protocol: Protocol, permutations: Permutations | None = None
) -> list[list[int]]:
    """One list of indices into `gallery` per trial.

    "pocket" and "regdb" keep everything, once. The others draw per trial; an identity that a camera never saw is left
    out there. In mode "legacy" it is the queries that are drawn, so give them: `draw_trials` knows which side it is.
    Raises `InputError` for an empty gallery, one of another data set or without the searched cameras, and `official`
    without permutations.
    """
    if not gallery:
        raise InputError("the gallery is empty; give it visible images of the query identities")
    check_cameras(gallery, protocol)
    if not protocol.draws:
        return [list(range(len(gallery)))]
    modality = getattr(protocol, f"{protocol.drawn_side}_modality")
    if any(sample.modality != modality for sample in gallery):
        raise InputError(
            f"protocol {protocol.name!r} ({protocol.runs}, mode {protocol.mode}) draws its {protocol.drawn_side} images, "
            f"which are all {modality}; draw_trials takes both sides"
        )
    cameras = SEARCHES[protocol.search] if protocol.name == "sysu" else _numbers(gallery)
    cells = _cells(gallery, cameras)
    if not cells:
        raise InputError(f"the gallery has no image of the searched cameras {cameras}; is this SYSU-MM01's test split?")
    if protocol.draw == "seeded":
        return [_seeded(gallery, cells, cameras, protocol.shots, trial) for trial in range(protocol.trials)]
    if permutations is None:
        raise InputError("draw 'official' needs exp/rand_perm_cam.mat (see read_permutations)")
    return [_official(gallery, cells, permutations, protocol.shots, trial) for trial in range(protocol.trials)]


def draw_trials(
    query: Sequence[Sample], gallery: Sequence[Sample], protocol: Protocol, permutations: Permutations | None = None
) -> list[list[int]]:
    """One list of indices per trial into the side that the protocol draws from, `protocol.drawn_side`."""
    return trial_galleries(query if protocol.drawn_side == "query" else gallery, protocol, permutations)


def drawn(trials: Sequence[Sequence[int]], protocol: Protocol) -> list[Drawn]:
    """The draws as `metrics.evaluate_trials` takes them."""
    return [Drawn(**{protocol.drawn_side: rows}) for rows in trials]


def _numbers(samples: Sequence[Sample]) -> tuple[int, ...]:
    return tuple(sorted({camera_number(sample.camera) for sample in samples}))


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
    """SYSU-MM01's published draw: the first `shots` image numbers of the trial's permutation, camera by camera."""
    drawn: list[int] = []
    for (pid, camera), files in sorted(cells.items(), key=lambda cell: (cell[0][1], cell[0][0])):
        table = permutations.get((camera, _number(pid, "identity")))
        if table is None or trial >= len(table):
            raise InputError(f"the official draw has no trial {trial} for identity {pid} in camera {camera}")
        numbered = {_number(gallery[i].path.stem, "image"): i for i in files}
        for number in table[trial][:shots]:
            if int(number) not in numbered:
                raise InputError(f"the official draw names image {int(number):04d} of identity {pid} in camera "
                                 f"{camera}, which is not in the gallery; is the data set complete?")  # fmt: skip
            drawn.append(numbered[int(number)])
    return drawn


def _number(name: str, what: str) -> int:
    if not (name.isascii() and name.isdigit()):
        raise InputError(f"the official draw knows each {what} by a number, not {name!r}; use SYSU-MM01 as published")
    return int(name)


def read_permutations(path: Path | str) -> Permutations:
    """SYSU-MM01's `exp/rand_perm_cam.mat` as (camera, identity) -> int [trials, images]. Needs scipy."""
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            "draw 'official' reads a .mat file with scipy; pip install 'dive-fast[reid]', or draw 'seeded'"
        ) from error
    try:
        cells = loadmat(str(path))["rand_perm_cam"]
        return {
            (camera + 1, person + 1): people[person][0]
            for camera, people in enumerate(cells[:, 0])
            for person in range(len(people))
            if people[person][0].size
        }
    except Exception as error:  # scipy raises many kinds for a damaged file, numpy for other contents
        raise InputError(f"{path}: no readable 'rand_perm_cam' ({error}); copy SYSU-MM01's exp folder again") from error
