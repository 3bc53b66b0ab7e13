"""Feature files: features and distances to and from other code, as a MATLAB file or a folder of .npy files.

    query_f      float [Q, D]    features            gallery_f      float [G, D]
    query_label  int [Q]         identities          gallery_label  int [G]
    query_cam    int [Q]         camera numbers      gallery_cam    int [G]
    query_name   str [Q]         files (optional)    gallery_name   str [G]
    distance     float [Q, G]    smaller is nearer

The test code of the AGW family writes and reads these names; in a .mat file lists are [1, N], as MATLAB's. Files that this
module writes hold all of them, in the order of the readers (camera, identity, file), with file names relative to the data
set and cosine distances before re-ranking. A folder also holds `exchange.json`, written last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.names import canonical_pid, is_number
from dive_fast.environment.optional import optional
from dive_fast.io import atomic_path, brief, sha256_bytes, sha256_file, write_json
from dive_fast.reid.evaluation.evaluate import Extracted
from dive_fast.reid.evaluation.mat import read_mat
from dive_fast.reid.evaluation.protocols import camera_number
from dive_fast.reid.evaluation.task import Labels
from dive_fast.types import InputError, Sample

SIDES = ("query", "gallery")
PARTS = ("f", "label", "cam", "name")
DISTANCE, RECORD = "distance", "exchange.json"
KEYS = (*(f"{side}_{part}" for side in SIDES for part in PARTS), DISTANCE)
_MATLAB_LIMIT = 2**31 - 1  # bytes of a variable in a MATLAB 5 file
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True)
class FeatureFile:
    """The checked arrays of a feature file, by those of `KEYS` that it has, and the SHA-256 of its content."""

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    sha256: str

    def require(self, key: str) -> NDArray[Any]:
        """Returns an array; raises `InputError` when the file lacks it."""
        if key not in self.arrays:
            remedy = "" if key == DISTANCE or key.endswith("_f") else ", or name the data set with --test"
            raise InputError(f"{self.path} has no {key}; add it{remedy}")
        return self.arrays[key]

    def labels(self, cameras: bool = True) -> Labels:
        """Returns the file's identities and cameras; without `cameras` the latter may be absent and are 0."""
        ids = [self.require(f"{side}_label") for side in SIDES]
        if cameras:
            cams = [self.require(f"{side}_cam") for side in SIDES]
        else:
            cams = [np.zeros(len(side), np.int64) for side in ids]
        return Labels(*ids, *cams)

    def unit_features(self) -> list[NDArray[Any]]:
        """Returns both sides' features at unit length; float64 stays, other types become float32."""
        found = []
        for key in (f"{side}_f" for side in SIDES):
            features = self.require(key)
            features = features if features.dtype == np.float64 else features.astype(np.float32)
            largest = np.abs(features).max(axis=1, keepdims=True)
            if not largest.all():
                raise InputError(f"{self.path}: {key} has rows of zeros, which have no direction; extract them again")
            scaled = features / largest  # else the squares of 1e30 or 1e-30 leave float32
            found.append(scaled / np.linalg.norm(scaled, axis=1, keepdims=True))
        return found


def read_features(path: Path | str) -> FeatureFile:
    """Reads a .mat file, a folder of .npy files, or a lone .npy file of distances; the file is untrusted.

    Raises `InputError` for another kind of file, a damaged one, pickled objects, wrong shapes, lists of different lengths,
    NaN, infinite features, and labels or cameras that are not whole numbers.
    """
    path = Path(path)
    if path.is_dir():
        arrays = {key: _load_npy(path / f"{key}.npy") for key in KEYS if (path / f"{key}.npy").is_file()}
        digest = sha256_bytes("".join(sha256_file(path / f"{key}.npy") for key in arrays).encode())
    elif path.suffix == ".npy" and path.is_file():
        arrays, digest = {DISTANCE: _load_npy(path)}, sha256_file(path)
    elif path.suffix == ".mat" and path.is_file():
        arrays, digest = _load_mat(path), sha256_file(path)
    else:
        raise InputError(f"{path} is no .mat file, folder of .npy files or .npy file of distances, or does not exist")
    if not arrays:
        raise InputError(f"{path} holds none of {', '.join(KEYS)}")
    check: dict[str, Callable[[NDArray[Any], str], NDArray[Any]]]
    check = {"f": partial(_matrix, finite=True), "label": _ids, "cam": _whole, "name": _text, DISTANCE: _matrix}
    arrays = {key: check[key.rpartition("_")[2]](array, f"{path}: {key}") for key, array in arrays.items()}
    widths = [arrays[key].shape[1] for key in ("query_f", "gallery_f") if key in arrays]
    if len(set(widths)) > 1:
        raise InputError(f"{path}: query_f has {widths[0]} values an image, gallery_f {widths[1]}")
    for axis, side in enumerate(SIDES):
        lengths = {key: len(array) for key, array in arrays.items() if key.startswith(side)}
        if DISTANCE in arrays:
            lengths[f"{DISTANCE} ({('rows', 'columns')[axis]})"] = arrays[DISTANCE].shape[axis]
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} {length:,}" for key, length in lengths.items())
            raise InputError(f"{path}: the counts of images differ: {counts}; give arrays of the same images")
    return FeatureFile(path, arrays, digest)


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for a damaged header
        raise InputError(f"{path} is no readable .npy file of numbers or text ({brief(error)})") from error


def _scipy_io() -> Any:
    return optional("scipy.io", ".mat files", "use a folder of .npy files", error=InputError)


def _load_mat(path: Path) -> dict[str, NDArray[Any]]:
    """The variables of `KEYS`; MATLAB's vectors, [1, N] or [N, 1], become lists."""
    _scipy_io()
    arrays = {key: np.asarray(array) for key, array in read_mat(path, KEYS).items()}
    for key, array in arrays.items():
        if key != DISTANCE and not key.endswith("_f") and array.ndim == 2 and 1 in array.shape:
            arrays[key] = array.ravel()
    return arrays


def _matrix(array: NDArray[Any], name: str, finite: bool = False) -> NDArray[Any]:
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise InputError(
            f"{name} must be numbers of at most 64 bits in two dimensions, got {array.dtype} of shape {list(array.shape)}"
        )
    for start in range(0, len(array), rows := max(1, _CHUNK_CELLS // array.shape[1])):
        part = array[start : start + rows]
        if np.isnan(part).any() or (finite and not np.isfinite(part).all()):
            last = start + len(part) - 1
            raise InputError(f"{name} holds {'NaN or infinity' if finite else 'NaN'} in rows {start} to {last}")
    return array


def _whole(array: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Whole numbers, also where they are stored as MATLAB's doubles."""
    if array.ndim != 1 or array.dtype.kind not in "fiu" or not (np.isfinite(array) & (array == np.floor(array))).all():
        raise InputError(f"{name} must be a list of whole numbers, got {array.dtype} of shape {list(array.shape)}")
    return array.astype(np.int64)


def _ids(array: NDArray[Any], name: str) -> NDArray[Any]:
    texts = (_text(array, name) if array.dtype.kind in "UO" else _whole(array, name).astype(str)).tolist()
    if any(not text or text.startswith("-") for text in texts):
        raise InputError(f"{name} has images without an identity (empty or below 0); leave them out")
    return np.array([canonical_pid(text, name) for text in texts])


def _text(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Texts of a list, of a padded character matrix, or of MATLAB's cells."""
    flat = array.ravel().tolist() if array.ndim == 1 else []
    cells = [cell.ravel().tolist()[0] if isinstance(cell, np.ndarray) and cell.size == 1 else cell for cell in flat]
    if not cells or not all(isinstance(cell, str) for cell in cells):
        raise InputError(f"{name} must be a list of texts, got {array.dtype} of shape {list(array.shape)}")
    return np.array([cell.rstrip() for cell in cells])


def file_name(sample: Sample, root: Path) -> str:
    """Returns the sample's file relative to the data set, in POSIX spelling."""
    return sample.path.relative_to(root).as_posix() if sample.path.is_relative_to(root) else sample.path.name


def check_target(out: Path | str) -> None:
    """Raises `InputError` for a path that `write_features` cannot write: neither FILE.mat nor a folder."""
    out = Path(out)
    if out.suffix == ".mat":
        _scipy_io()
    elif out.suffix in (".npy", ".npz") or out.is_file():
        raise InputError(f"cannot export to {out}; name a FILE.mat or a folder")


def write_features(
    out: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    features: Extracted,
    root: Path,
    metadata: Mapping[str, Any],
) -> None:
    """Writes both sides' features, labels, cameras, file names and distances to `out`, FILE.mat or a folder.

    `metadata` (data set, protocol, checkpoint) goes into the folder's `exchange.json`. Raises `InputError` for another kind
    of file (see `check_target`) and for a matrix that a MATLAB 5 file cannot hold.
    """
    check_target(out)
    out = Path(out)
    arrays: dict[str, NDArray[Any]] = {}
    numbers = all(is_number(sample.pid) for sample in [*query, *gallery])
    for side, samples, values in zip(SIDES, (query, gallery), (features.query, features.gallery), strict=True):
        pids = [sample.pid for sample in samples]
        lists = (
            values,
            np.array([int(pid) for pid in pids] if numbers else pids),
            np.array([camera_number(sample.camera) for sample in samples]),
            np.array([file_name(sample, root) for sample in samples]),
        )
        arrays |= {f"{side}_{part}": array for part, array in zip(PARTS, lists, strict=True)}
    if out.suffix == ".mat":
        _write_mat(out, arrays, features)
        return
    for key, array in arrays.items():
        with atomic_path(out / f"{key}.npy") as path, open(path, "wb") as stream:
            np.save(stream, array, allow_pickle=False)
    _write_distances(out / f"{DISTANCE}.npy", features)
    write_json(out / RECORD, {**metadata, "queries": len(query), "gallery": len(gallery), "metric": "cosine distance"})


def _write_distances(path: Path, features: Extracted) -> None:
    """Writes the distances a few rows at a time: the whole matrix may exceed memory."""
    shape = (len(features.query), len(features.gallery))
    rows = max(1, _CHUNK_CELLS // shape[1])
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, shape[0], rows):
            values = 1 - features.query[start : start + rows] @ features.gallery.T
            stream.write(values.astype("<f4", copy=False).tobytes())


def _write_mat(out: Path, arrays: dict[str, NDArray[Any]], features: Extracted) -> None:
    sizes = {key: array.nbytes for key, array in arrays.items()}
    sizes[DISTANCE] = 4 * len(features.query) * len(features.gallery)
    over = [key for key, size in sizes.items() if size > _MATLAB_LIMIT]
    if over:
        raise InputError(f"{out}: {', '.join(over)} exceed the 2 GB of a MATLAB 5 variable; export to a folder")
    distances = 1 - features.query @ features.gallery.T
    with atomic_path(out) as path, open(path, "wb") as stream:
        _scipy_io().savemat(stream, {**arrays, DISTANCE: distances}, do_compression=False)
