"""The AGW family's training arrays: train_{rgb,ir}_resized_{img,label}.npy, as its pre_process_sysu.py leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_path, clear_disk_errors
from dive_fast.types import DiveError, Modality

AddImage = Callable[[Modality, NDArray[np.uint8], int], int]


def image_array(modality: Modality) -> str:
    """The file of a modality's images, uint8 [N, height, width, 3]."""
    return f"train_{modality}_resized_img.npy"


def label_array(modality: Modality) -> str:
    """The file of a modality's labels, int64 [N]."""
    return f"train_{modality}_resized_label.npy"


@contextmanager
def array_writer(folder: Path, counts: dict[Modality, int], size: tuple[int, int]) -> Iterator[AddImage]:
    """Writes the four arrays image by image; they appear when the block ends well, all of them or none.

    `counts`: images by modality, for the .npy headers. Rows go through plain files: a full disk raises an error, where a
    memory map would die of SIGBUS. The yielded function appends one image, uint8 [height, width, 3], and its label, and
    returns its row.
    """
    written = dict.fromkeys(counts, 0)
    with ExitStack() as stack:
        streams: dict[str, BinaryIO] = {}
        for modality, count in counts.items():
            for name, dtype, shape in (
                (image_array(modality), np.dtype(np.uint8), (count, *size, 3)),
                (label_array(modality), np.dtype(np.int64), (count,)),
            ):
                temporary = stack.enter_context(atomic_path(folder / name))
                streams[name] = stack.enter_context(temporary.open("wb"))
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(streams[name], header)

        def add(modality: Modality, pixels: NDArray[np.uint8], label: int) -> int:
            if pixels.shape != (*size, 3) or pixels.dtype != np.uint8:
                raise DiveError(f"an image of the arrays is uint8 {(*size, 3)}, got {pixels.dtype} {pixels.shape}")
            row = written[modality]
            if row >= counts[modality]:
                raise DiveError(f"{folder}: more {modality} images came than were counted; run the merge again")
            with clear_disk_errors(folder):
                streams[image_array(modality)].write(np.ascontiguousarray(pixels).tobytes())
                streams[label_array(modality)].write(np.int64(label).tobytes())
            written[modality] = row + 1
            return row

        yield add
        if written != counts:
            raise DiveError(f"{folder}: {written} images came, {counts} were counted; run the merge again")
