"""Any set of photos as ROOT/<identity>/*.jpg, and several sets joined without mixing people up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dive_fast.data.names import canonical_pid, identity_folders, image_files, require_folder, some, warn_of_twins
from dive_fast.types import InputError, Modality, Sample

_EXPECTED = "one folder per identity: ROOT/<identity>/*.jpg"


def read_folder(root: Path | str, camera: str, modality: Modality = "rgb") -> list[Sample]:
    """The images of every identity folder in `root`, all as seen by `camera`; files directly in `root` are not read.

    All-digit names get SYSU's four digits ("12" -> "0012"). Raises `InputError` when there is nothing to read or two
    folders stand for one identity; an identity folder without images is reported by a warning.
    """
    root = Path(root)
    require_folder(root, _EXPECTED)
    files = {pid: image_files(folder) for pid, folder in identity_folders(root).items()}
    samples = [Sample(file, pid, camera, modality=modality) for pid in files for file in files[pid]]
    if not samples:
        raise InputError(f"{root} has no image; expected {_EXPECTED}")
    empty = [pid for pid in files if not files[pid]]
    if empty:
        warnings.warn(f"{root}: {len(empty):,} identity folders have no image: {some(empty)}", stacklevel=2)
    warn_of_twins(root, (sample.path for sample in samples))
    return samples


def merge_samples(*sets: Sequence[Sample], prefixes: Sequence[str] | None = None) -> list[Sample]:
    """The sets one after the other; an identity name in two of them raises `InputError`.

    Sets from different sources count people from 1, so equal names are different people. `prefixes` names one prefix
    per set ("" keeps the names); identities are never renumbered. The given samples stay as they are.
    """
    if prefixes is not None:
        if len(prefixes) != len(sets):
            raise InputError(f"merge_samples: {len(prefixes)} prefixes for {len(sets)} sets; give one per set")
        sets = tuple(
            [replace(sample, pid=canonical_pid(prefix + sample.pid, "merge_samples")) for sample in samples]
            for prefix, samples in zip(prefixes, sets, strict=True)
        )
    seen: set[str] = set()
    for samples in sets:
        pids = {sample.pid for sample in samples}
        clash = sorted(seen & pids)
        if clash:
            raise InputError(
                f"merge_samples: {len(clash):,} identity names are in two sets ({some(clash)}); "
                'give prefixes=["", "market-", ...] to tell the people apart'
            )
        seen |= pids
    return [sample for samples in sets for sample in samples]
