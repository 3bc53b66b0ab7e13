"""`student.json` of a model or engine folder: that it is a distilled student, which samples in one way only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models.lora import lora_targets
from dive_fast.models.sampling_file import read_sampling
from dive_fast.sampling.config import Sampling
from dive_fast.settings import NonNegativeFloat, Settings
from dive_fast.types import InputError, from_dict, to_dict

STUDENT_FILE = "student.json"


@dataclass(frozen=True)
class Student(Settings):
    """What a student was made of: the fused model `teacher` (its fingerprint), with this scale of guidance built in.

    `attention` is `attention_sums` of the teacher's UNet. How the student samples is in its `sampling.json`.
    """

    teacher: str
    guidance: NonNegativeFloat
    attention: tuple[float, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json(folder / STUDENT_FILE, to_dict(self))


def read_student(folder: Path) -> Student | None:
    """Reads the record of a student; None for a folder of another model. A damaged file raises `InputError`."""
    path = folder / STUDENT_FILE
    if not path.is_file():
        return None
    data = read_json(path, "student")
    if not isinstance(data, dict) or not isinstance(data.get("attention"), list):
        raise InputError(f"{path} is no record of a student; copy the folder again")
    return from_dict(Student, {**data, "attention": tuple(data["attention"])}, str(path))


def check_sampling(folder: Path, sampling: Sampling) -> None:
    """Raises `InputError` if a model or engine folder holds a student that samples in another way."""
    own = read_sampling(folder)
    if read_student(folder) is None or own == sampling:
        return
    if own is None:
        raise InputError(f"{folder} is a student without sampling.json; copy the folder again")
    raise InputError(
        f"{folder} is a student that samples with {own.describe()} and in no other way, got {sampling.describe()}; leave"
        " --preset, --steps, --guidance and --guidance-interval out, or take its teacher"
    )


def attention_sums(unet: Any) -> tuple[float, ...]:
    """The sum of squares of each attention weight, in float64: tells UNets apart that hold other LoRAs.

    Unlike a fingerprint, the sums stand the last bits that two machines round differently when they fuse one adapter.
    """
    return tuple(float(unet.get_submodule(name).weight.double().square().sum()) for name in lora_targets(unet))
