"""The inputs of a merge: verified photos of real sets, and the finished pairs of synthesized datasets, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dive_fast.data.images import decode_image, read_image_file
from dive_fast.data.layout_heldout import HeldOut, held_out
from dive_fast.data.layouts import NATIVE
from dive_fast.data.names import abbreviate, canonical_pid, natural_key
from dive_fast.data.pool import in_order
from dive_fast.data.sets import NamedSet, SetSpec, read_sets
from dive_fast.io import sha256_bytes
from dive_fast.merge.config import Dataset
from dive_fast.synth.manifest import dropped, read_manifest
from dive_fast.types import MODALITIES, InputError, Sample

Progress = Callable[[int], object]


@dataclass(frozen=True)
class MergeImage:
    """One image to merge: `file` is its name in its set or dataset `origin`; `own` marks a name of the new layout.

    `size` is in bytes; `pair_id` is None for an image of a real set.
    """

    sample: Sample
    origin: str
    file: str
    sha256: str
    size: int
    own: bool = False
    pair_id: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Verified photos, held-out halves of real sets by name, and datasets still to be streamed."""

    sets: tuple[NamedSet, ...]
    photos: tuple[MergeImage, ...]
    held_out: dict[str, HeldOut]
    datasets: dict[str, Dataset]

    @property
    def roots(self) -> dict[str, Path]:
        """Where the sets and datasets lie, by name."""
        named = {named.name: named.spec.root for named in self.sets}
        return named | {name: dataset.root for name, dataset in self.datasets.items()}

    def prefix(self, name: str) -> str:
        """The prefix that a set or dataset was given."""
        given = {named.name: named.spec.prefix for named in self.sets}
        return given[name] if name in given else self.datasets[name].prefix

    def images(self) -> Iterator[MergeImage]:
        """Every training image: real sets first, then the datasets in the order given; a photo comes once a person."""
        yield from self.photos
        photos = {(image.sample.pid, image.sha256) for image in self.photos}
        for origin, dataset in self.datasets.items():
            for image in dataset_images(origin, dataset):
                if image.sample.source == "real":
                    key = (image.sample.pid, image.sha256)
                    if key in photos:
                        continue
                    photos.add(key)
                yield image


def read_inputs(
    specs: Sequence[SetSpec], datasets: Sequence[Dataset], layout: str, progress: Progress = lambda _: None
) -> Inputs:
    """Reads and joins the sets, decodes and hashes every photo, and finds what the sets hold out for tests.

    Raises `InputError` for no input, a damaged photo, a dataset named twice, and as `read_sets`. `progress` is called for
    each photo.
    """
    if not specs and not datasets:
        raise InputError("there is nothing to merge; give --real, --synthetic or both")
    places = [dataset.root.resolve() for dataset in datasets]
    twice = [str(d.root) for d, place in zip(datasets, places, strict=True) if places.count(place) > 1]
    if twice:
        raise InputError(f"dataset {twice[0]} is given more than once; name each once")
    sets = read_sets(specs) if specs else []
    names = ["synthetic" + (f"-{n}" if n > 1 else "") for n in range(1, len(datasets) + 1)]
    halves = {named.name: half for named in sets if (half := held_out(named.spec)) is not None}
    return Inputs(tuple(sets), _photos(sets, layout, progress), halves, dict(zip(names, datasets, strict=True)))


def dataset_images(origin: str, dataset: Dataset) -> Iterator[MergeImage]:
    """Both sides of every pair that is done and not dropped, in plan order."""
    gone = dropped(dataset.root)
    for record in read_manifest(dataset.root):
        spec = record.spec
        if record.status != "done" or spec.pair_id in gone:
            continue
        pid = canonical_pid(dataset.prefix + spec.pid, f"dataset {dataset.root}")
        for side in MODALITIES:
            name, camera = record.files[side], spec.rgb if side == "rgb" else spec.ir
            photo = side == "rgb" and spec.photo is not None
            sample = Sample(dataset.root / name, pid, camera, "real" if photo else "synthetic", side)
            yield MergeImage(sample, origin, name, record.sha256[side], record.sizes[side], pair_id=spec.pair_id)


def _photos(sets: Sequence[NamedSet], layout: str, progress: Progress) -> tuple[MergeImage, ...]:
    """The photos with their hashes; damaged ones raise one `InputError` that counts and names them."""
    wanted = [(named, sample) for named in sets for sample in named.samples]
    images, damaged = [], []
    for (named, sample), result in in_order(lambda item: _verified(item[1].path), wanted):
        progress(1)
        if isinstance(result, InputError):
            damaged.append(str(result))
        else:
            own = named.spec.layout in NATIVE[layout]
            images.append(MergeImage(sample, named.name, named.file_name(sample), *result, own))
    if damaged:
        raise InputError(f"{len(damaged):,} of {len(wanted):,} photos cannot be read: {abbreviate(damaged)}")
    return tuple(images)


def _verified(path: Path) -> tuple[str, int] | InputError:
    """The file's hash and size, or its error."""
    try:
        data = read_image_file(path, str(path))
        decode_image(data, str(path))
    except InputError as error:
        return error
    return sha256_bytes(data), len(data)


def abbreviate_sorted(people: set[str]) -> str:
    """A few of the people for a message, in natural order."""
    return abbreviate(sorted(people, key=natural_key))
