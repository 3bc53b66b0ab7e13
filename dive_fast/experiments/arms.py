"""The arms of a usefulness comparison: what each ReID training may see of people who have no infrared photos.

paired-only: they are left out; baseline: their RGB photos; grey: the luma of those photos as infrared too; ours:
synthetic infrared; oracle: their true infrared, which a rendered world can give and a real city cannot.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from dive_fast.data.images import open_image
from dive_fast.data.market import read_market
from dive_fast.data.sysu import read_sysu
from dive_fast.io import atomic_write, read_jsonl
from dive_fast.types import InputError, Sample

INFRARED_CAMERAS = ("cam3", "cam6")
BASELINES = ("baseline", "paired-only")  # the better of the two is the baseline of record


def external_photos(world: Path, limit: int | None = None) -> list[Sample]:
    """RGB photos of the external identities, at most `limit` a person, as camera "cam7"."""
    return _limited(read_market(world / "market"), limit)


def paired_photos(world: Path) -> list[Sample]:
    """Real RGB and infrared photos of the paired training identities."""
    return read_sysu(world / "sysu", "trainval")


def heldout_sides(world: Path) -> tuple[list[Sample], list[Sample]]:
    """Infrared queries and RGB gallery of the held-out identities."""
    photos = read_sysu(world / "sysu", "test")
    return [s for s in photos if s.modality == "ir"], [s for s in photos if s.modality == "rgb"]


def grey_infrared(world: Path, out: Path, per_camera: int) -> list[Sample]:
    """Luma (Rec. 601) copies of the first `per_camera` photos of each external person, once per infrared camera."""
    made = []
    for photo in external_photos(world, per_camera):
        buffer = io.BytesIO()
        open_image(photo.path).convert("L").save(buffer, "PNG")
        for camera in INFRARED_CAMERAS:
            path = out / camera / photo.pid / f"{photo.path.stem}.png"
            if not path.exists():
                atomic_write(path, buffer.getvalue())
            made.append(Sample(path, photo.pid, camera, "synthetic", "ir"))
    return made


def oracle_infrared(world: Path, per_camera: int) -> list[Sample]:
    """The true infrared of the first `per_camera` shots of each external person, by each infrared camera."""
    made = []
    for row in read_jsonl(world / "oracle" / "pairs.jsonl", "oracle"):
        if row["index"] < per_camera:
            made += [Sample(world / path, row["pid"], camera, "real", "ir") for camera, path in row["ir"].items()]
    return made


def _limited(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    if limit is None:
        return list(samples)
    seen: dict[str, int] = {}
    kept = []
    for sample in sorted(samples, key=lambda s: (s.pid, _frame(s))):
        seen[sample.pid] = seen.get(sample.pid, 0) + 1
        if seen[sample.pid] <= limit:
            kept.append(sample)
    return kept


def _frame(sample: Sample) -> int:
    """The frame number in a Market-1501 name: the world counts a person's shots there."""
    return int(sample.path.name.split("_")[2])


def build_arms(world: Path, work: Path, ours: Sequence[Sample], per_camera: int) -> dict[str, list[Sample]]:
    """Training samples of every arm; external infrared has the same number of images in each.

    `ours` are the synthetic infrared samples of the external identities. An external identity without any, or one that
    is also paired or a test identity, raises `InputError`.
    """
    paired, external = paired_photos(world), external_photos(world)
    people = {s.pid for s in external}
    overlap = people & {s.pid for s in read_sysu(world / "sysu", "all")}
    if overlap:
        raise InputError(f"{world}: external identities {sorted(overlap)[:3]} also stand in the SYSU tree")
    missing = sorted(people - {s.pid for s in ours})
    if missing:
        raise InputError(f"{len(missing)} external identities have no synthetic infrared, first {missing[0]!r}")
    return {
        "paired-only": paired,
        "baseline": paired + external,
        "grey": paired + external + grey_infrared(world, work / "grey", per_camera),
        "ours": paired + external + list(ours),
        "oracle": paired + external + oracle_infrared(world, per_camera),
    }
