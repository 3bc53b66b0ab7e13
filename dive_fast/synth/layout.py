"""Which file every image of a plan goes to, decided by the plan alone, so that a resumed run names them the same."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from dive_fast.data.writers import sysu_name
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.types import Modality

PairFiles = dict[Modality, str]
"""The two files of a pair, relative to the dataset: {"rgb": "cam1/0001/0001.png", "ir": "cam3/0001/0001.png"}."""


def pair_files(plan: SynthesisPlan) -> list[PairFiles]:
    """The files of every pair, in plan order. Numbers count within (camera, identity), so no two images share a file;
    a photo that stands in several pairs is one file. Raises `InputError` for names that a SYSU tree cannot hold.
    """
    numbers: Counter[tuple[str, str]] = Counter()

    def next_name(camera: str, pid: str, suffix: str) -> str:
        numbers[camera, pid] += 1
        return sysu_name(camera, pid, numbers[camera, pid], suffix)

    photos: dict[tuple[str, str, str], str] = {}
    files: list[PairFiles] = []
    for pair in plan.pairs:
        if pair.photo is None:
            rgb = next_name(pair.rgb, pair.pid, ".png")
        else:
            key = (pair.rgb, pair.pid, pair.photo)
            if key not in photos:
                photos[key] = next_name(pair.rgb, pair.pid, PurePosixPath(pair.photo).suffix.lower())
            rgb = photos[key]
        files.append({"rgb": rgb, "ir": next_name(pair.ir, pair.pid, ".png")})
    return files
