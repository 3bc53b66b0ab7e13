"""RegDB: Visible/ID/*.bmp and Thermal/ID/*.bmp, with a pair of lists a trial in idx/."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from dive_fast.data.lists import read_lists
from dive_fast.data.names import require_folder, require_split, sample_key
from dive_fast.types import InputError, Modality, Sample

RegdbSplit = Literal["train", "test"]
TRIALS = 10

# RegDB's own camera names: cam1 of another set is another camera. The numbers differ as those of two cameras.
_CAMERAS: dict[str, tuple[str, Modality]] = {"visible": ("regdb-visible1", "rgb"), "thermal": ("regdb-thermal2", "ir")}
_EXPECTED = "RegDB's layout: Visible/285/*.bmp, Thermal/285/*.bmp and idx/train_visible_1.txt ... test_thermal_10.txt"


def read_regdb(root: Path | str, split: RegdbSplit = "train", trial: int = 1) -> list[Sample]:
    """The images of one half of trial 1 to 10, sorted by modality (RGB first), identity and file name.

    Identities are folder names: the lists' labels differ by trial. Each trial halves the people differently, so train one
    model a trial. Raises `InputError` when lists and files disagree (see `read_lists`).
    """
    root = Path(root)
    require_split("RegDB", split, get_args(RegdbSplit))
    if not 1 <= trial <= TRIALS:
        raise InputError(f"RegDB has trials 1 to {TRIALS}, got {trial}")
    require_folder(root, _EXPECTED)
    lists = [root / "idx" / f"{split}_{kind}_{trial}.txt" for kind in _CAMERAS]
    samples: list[Sample] = []
    for (camera, modality), images in zip(_CAMERAS.values(), read_lists(lists, root, _EXPECTED), strict=True):
        found = (Sample(image.path, image.pid, camera, modality=modality) for image in images)
        samples += sorted(found, key=sample_key)
    return samples
