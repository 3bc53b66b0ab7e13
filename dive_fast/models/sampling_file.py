"""`sampling.json` of a model, fused model or engine folder: the steps and guidance that the model was made for."""

from __future__ import annotations

from pathlib import Path

from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.sampling.config import Sampling
from dive_fast.types import InputError, from_dict, to_dict

SAMPLING_FILE = "sampling.json"


def read_sampling(folder: Path) -> Sampling | None:
    """Reads a model's own sampling; None if the folder records none, as Stable Diffusion's.

    A file that is damaged, or has other fields or values than `Sampling`, raises `InputError`.
    """
    path = folder / SAMPLING_FILE
    if not path.is_file():
        return None
    data = read_json(path, "sampling")
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(data).__name__}; copy the model again")
    interval = data.get("guidance_interval")
    return from_dict(
        Sampling, {**data, "guidance_interval": tuple(interval) if isinstance(interval, list) else interval}, str(path)
    )


def write_sampling(sampling: Sampling, folder: Path) -> None:
    write_json(folder / SAMPLING_FILE, to_dict(sampling))
