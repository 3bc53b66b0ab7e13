"""Features and distances to and from other code: a MATLAB file, or a folder of .npy files, of the same names inside.

    query_f      float [Q, D]    features            gallery_f      float [G, D]
    query_label  int [Q]         identities          gallery_label  int [G]
    query_cam    int [Q]         camera numbers      gallery_cam    int [G]
    query_name   str [Q]         files (optional)    gallery_name   str [G]
    distance     float [Q, G]    smaller is nearer

The names are those that test code of the AGW family writes and reads; in a .mat file lists are [1, N], as MATLAB's. What
we write is in the order of our readers (camera, identity, file) and has everything: features, labels, cameras, file
names relative to the data set, and cosine distances before any re-ranking. In a folder `exchange.json` comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.names import canonical_pid, is_number
from dive_fast.io import atomic_path, brief, sha256_bytes, sha256_file, write_json
from dive_fast.reid.evaluation.evaluate import Extracted, Labels
from dive_fast.reid.evaluation.protocols import camera_number
from dive_fast.types import InputError, Sample

SIDES = ("query", "gallery")
DISTANCE, RECORD = "distance", "exchange.json"
KEYS = (*(f"{side}_{what}" for side in SIDES for what in ("f", "label", "cam", "name")), DISTANCE)
_MATLAB_LIMIT = 2**31 - 1  # bytes of a variable in a MATLAB 5 file
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True)
class Side:
    """One side of a file, None for what it lacks: features [N, D], identities, camera numbers int [N], file names."""

    features: NDArray[Any] | None
    ids: tuple[str, ...] | None
    cams: NDArray[np.int64] | None
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class Exchanged:
    """What a file of other code holds; `distances` [Q, G] or None. `sha256` is that of the file, or of all in the folder."""

    path: Path
    query: Side
    gallery: Side
    distances: NDArray[Any] | None
    sha256: str

    def labels(self, cameras: bool = True) -> Labels:
        """Identities and cameras as the file has them; `InputError` when it lacks them."""
        lists: list[NDArray[Any]] = []
        for name, side in zip(SIDES, (self.query, self.gallery), strict=True):
            if side.ids is None or (cameras and side.cams is None):
                field = f"{name}_label" if side.ids is None else f"{name}_cam"
                raise InputError(f"{self.path} has no {field}; add it, or name the data set with --data")
            lists += [np.array(side.ids), side.cams if side.cams is not None else np.zeros(len(side.ids), np.int64)]
        return Labels(lists[0], lists[2], lists[1], lists[3])

    def unit_features(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both sides' features at unit length (float64 stays so, else float32); `InputError` when the file lacks them."""
        found = []
        for name, side in zip(SIDES, (self.query, self.gallery), strict=True):
            if side.features is None:
                raise InputError(f"{self.path} has no {name}_f; features are [images, size] under that name")
            features = side.features if side.features.dtype == np.float64 else side.features.astype(np.float32)
            length = np.linalg.norm(features, axis=1, keepdims=True)
            if not length.all():
                raise InputError(
                    f"{self.path}: {name}_f has rows of zeros, whose direction is unknown; extract them again"
                )
            found.append(features / length)
        return found[0], found[1]


def read_exchange(path: Path | str) -> Exchanged:
    """Reads a .mat file, a folder of .npy files, or a lone .npy file of distances; the file is not trusted.

    Raises `InputError` for another kind of file, a damaged one, pickled objects, wrong shapes, lists that do not fit
    each other, NaN, infinite features, and labels or cameras that are not whole numbers.
    """
    path = Path(path)
    if path.is_dir():
        arrays = {key: _load_npy(path / f"{key}.npy") for key in KEYS if (path / f"{key}.npy").is_file()}
        digest = sha256_bytes("".join(sha256_file(path / f"{key}.npy") for key in arrays).encode())
    elif not path.is_file():
        raise InputError(
            f"{path} does not exist; give a .mat file, a folder of .npy files, or an .npy file of distances"
        )
    elif path.suffix == ".npy":
        arrays, digest = {DISTANCE: _load_npy(path)}, sha256_file(path)
    elif path.suffix == ".mat":
        arrays, digest = _load_mat(path), sha256_file(path)
    else:
        raise InputError(f"{path} is no .mat file, no folder of .npy files and no .npy file of distances")
    if not arrays:
        raise InputError(
            f"{path} holds none of {', '.join(KEYS)}; see dive_fast.reid.evaluation.feature_files for what they are"
        )
    sides = [_side(name, arrays, path) for name in SIDES]
    features = [side.features for side in sides]
    if features[0] is not None and features[1] is not None and features[0].shape[1] != features[1].shape[1]:
        raise InputError(f"{path}: query_f has {features[0].shape[1]} values an image and gallery_f {features[1].shape[1]}; "
                         "take both of one model")  # fmt: skip
    distances = _matrix(DISTANCE, arrays[DISTANCE], path) if DISTANCE in arrays else None
    for side, name, size in zip(sides, SIDES, (None, None) if distances is None else distances.shape, strict=True):
        _check_lengths(side, name, size, path)
    return Exchanged(path, sides[0], sides[1], distances, digest)


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for a damaged header
        raise InputError(
            f"{path} is no readable .npy file of plain numbers or text ({brief(error)}); save it again"
        ) from error


def _scipy_io() -> Any:
    try:
        import scipy.io  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            ".mat files need scipy; pip install 'dive-fast[reid]', or use a folder of .npy files"
        ) from error
    return scipy.io


def _load_mat(path: Path) -> dict[str, NDArray[Any]]:
    """The variables that we know; a vector of MATLAB ([1, N] or [N, 1]) is a list."""
    io = _scipy_io()
    try:
        found = io.loadmat(str(path), variable_names=KEYS)
    except NotImplementedError as error:
        raise InputError(f"{path} is a MATLAB 7.3 file; save it with the option '-v7'") from error
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError(f"{path} is no readable MATLAB file ({brief(error)}); save it again") from error
    arrays = {key: np.asarray(found[key]) for key in KEYS if key in found}
    for key, array in arrays.items():
        if key != DISTANCE and not key.endswith("_f") and array.ndim == 2 and 1 in array.shape:
            arrays[key] = array.ravel()
    return arrays


def _side(name: str, arrays: Mapping[str, NDArray[Any]], path: Path) -> Side:
    features = arrays.get(f"{name}_f")
    label, cam, names = (arrays.get(f"{name}_{what}") for what in ("label", "cam", "name"))
    return Side(
        None if features is None else _matrix(f"{name}_f", features, path, finite=True),
        None if label is None else _ids(f"{name}_label", label, path),
        None if cam is None else _whole(f"{name}_cam", cam, path),
        None if names is None else _text(f"{name}_name", names, path),
    )


def _matrix(key: str, array: NDArray[Any], path: Path, finite: bool = False) -> NDArray[Any]:
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: {key} must be numbers in two dimensions, got {array.dtype} of shape {list(array.shape)}"
        )
    for start in range(0, len(array), rows := max(1, _CHUNK_CELLS // array.shape[1])):
        part = array[start : start + rows]
        if np.isnan(part).any() or (finite and not np.isfinite(part).all()):
            raise InputError(f"{path}: {key} holds {'NaN or infinity' if finite else 'NaN'} in rows {start} to "
                             f"{start + len(part) - 1}; make it again")  # fmt: skip
    return array


def _whole(key: str, array: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Whole numbers; MATLAB's doubles are taken if they are whole."""
    if array.ndim != 1 or array.dtype.kind not in "fiu" or not (np.isfinite(array) & (array == np.floor(array))).all():
        raise InputError(
            f"{path}: {key} must be a list of whole numbers, got {array.dtype} of shape {list(array.shape)}"
        )
    return array.astype(np.int64)


def _ids(key: str, array: NDArray[Any], path: Path) -> tuple[str, ...]:
    if array.dtype.kind in "UO":
        texts = _text(key, array, path)
    else:
        texts = tuple(map(str, _whole(key, array, path).tolist()))
    if any(not text or text.startswith("-") for text in texts):
        raise InputError(f"{path}: {key} has images without an identity (empty or below 0); leave them out")
    return tuple(canonical_pid(text, f"{path}: {key}") for text in texts)


def _text(key: str, array: NDArray[Any], path: Path) -> tuple[str, ...]:
    """Texts of a list, of a padded character matrix, or of MATLAB's cells."""
    flat = array.ravel().tolist() if array.ndim == 1 else []
    cells = [cell.ravel().tolist()[0] if isinstance(cell, np.ndarray) and cell.size == 1 else cell for cell in flat]
    if not cells or not all(isinstance(cell, str) for cell in cells):
        raise InputError(f"{path}: {key} must be a list of texts, got {array.dtype} of shape {list(array.shape)}")
    return tuple(cell.rstrip() for cell in cells)


def _check_lengths(side: Side, name: str, size: int | None, path: Path) -> None:
    lists = {"f": side.features, "label": side.ids, "cam": side.cams, "name": side.names}
    lengths = {f"{name}_{what}": len(array) for what, array in lists.items() if array is not None}
    if size is not None:
        lengths[f"{DISTANCE} ({'rows' if name == 'query' else 'columns'})"] = size
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} {length:,}" for key, length in lengths.items())
        raise InputError(f"{path}: these count different images: {counts}; they must be of the same images")


def file_name(sample: Sample, root: Path) -> str:
    """The sample's file relative to the data set, in POSIX spelling."""
    return sample.path.relative_to(root).as_posix() if sample.path.is_relative_to(root) else sample.path.name


def check_target(out: Path | str) -> None:
    """Raises `InputError` for a place that `write_exchange` cannot write: neither FILE.mat nor a folder."""
    out = Path(out)
    if out.suffix == ".mat":
        _scipy_io()
    elif out.suffix in (".npy", ".npz") or out.is_file():
        raise InputError(f"cannot export to {out}; name a FILE.mat or a folder")


def write_exchange(
    out: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    features: Extracted,
    root: Path,
    facts: Mapping[str, Any],
) -> None:
    """Writes both sides' features, labels, cameras, file names and distances to `out`, FILE.mat or a folder.

    `facts` (data set, protocol, checkpoint) go into the folder's `exchange.json`. Raises `InputError` for another kind of
    file (see `check_target`) and for a matrix that a MATLAB 5 file cannot hold.
    """
    check_target(out)
    out = Path(out)
    arrays: dict[str, Any] = {}
    numbers = all(is_number(sample.pid) for sample in [*query, *gallery])
    for name, samples, values in zip(SIDES, (query, gallery), (features.query, features.gallery), strict=True):
        arrays |= _listed(name, samples, values, root, numbers)
    if out.suffix == ".mat":
        _write_mat(out, arrays, features)
    else:
        for key, array in arrays.items():
            with atomic_path(out / f"{key}.npy") as path, open(path, "wb") as stream:
                np.save(stream, array, allow_pickle=False)
        _write_distances(out / f"{DISTANCE}.npy", features)
        write_json(out / RECORD, {**facts, "queries": len(query), "gallery": len(gallery), "metric": "cosine distance"})


def _listed(
    name: str, samples: Sequence[Sample], values: NDArray[Any], root: Path, numbers: bool
) -> dict[str, NDArray[Any]]:
    pids = [sample.pid for sample in samples]
    return {
        f"{name}_f": values,
        f"{name}_label": np.array([int(pid) for pid in pids] if numbers else pids),
        f"{name}_cam": np.array([camera_number(sample.camera) for sample in samples]),
        f"{name}_name": np.array([file_name(sample, root) for sample in samples]),
    }


def _distance_rows(features: Extracted) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    rows = max(1, _CHUNK_CELLS // len(features.gallery))
    for start in range(0, len(features.query), rows):
        part = slice(start, min(start + rows, len(features.query)))
        yield part, 1 - features.query[part] @ features.gallery.T


def _write_distances(path: Path, features: Extracted) -> None:
    shape = (len(features.query), len(features.gallery))
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _, values in _distance_rows(features):
            stream.write(values.astype("<f4", copy=False).tobytes())


def _write_mat(out: Path, arrays: dict[str, Any], features: Extracted) -> None:
    io = _scipy_io()
    sizes = {key: array.nbytes for key, array in arrays.items()}
    sizes[DISTANCE] = 4 * len(features.query) * len(features.gallery)
    over = [key for key, size in sizes.items() if size > _MATLAB_LIMIT]
    if over:
        raise InputError(
            f"{out}: {', '.join(over)} would pass the 2 GB that a MATLAB 5 file allows; export to a folder"
        )
    distances = np.empty((len(features.query), len(features.gallery)), np.float32)
    for part, values in _distance_rows(features):
        distances[part] = values
    with atomic_path(out) as path, open(path, "wb") as stream:
        io.savemat(stream, {**arrays, DISTANCE: distances}, do_compression=False)
