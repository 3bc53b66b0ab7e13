"""The AGW family's training arrays: train_{rgb,ir}_resized_{img,label}.npy, as its pre_process_sysu.py leaves them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_path, clear_disk_errors
from dive_fast.types import MODALITIES, DiveError, Modality


def image_array(modality: Modality) -> str:
    """The file of a modality's images, uint8 [N, height, width, 3]."""
    return f"train_{modality}_resized_img.npy"


def label_array(modality: Modality) -> str:
    """The file of a modality's labels, int64 [N]."""
    return f"train_{modality}_resized_label.npy"


class ArrayWriter:
    """Writes the four arrays image by image; as a context, which ends with all of them or none.

    `counts`: images by modality, for the .npy headers. Rows go through plain files: a full disk raises an error, where a
    memory map would die of SIGBUS.
    """

    def __init__(self, folder: Path, counts: dict[Modality, int], size: tuple[int, int]) -> None:
        self._folder, self._counts, self._size = folder, counts, size
        self._stack = ExitStack()
        self._streams: dict[str, BinaryIO] = {}
        self._written = dict.fromkeys(counts, 0)

    def __enter__(self) -> ArrayWriter:
        try:
            for modality in MODALITIES:
                count = self._counts[modality]
                self._open(image_array(modality), np.dtype(np.uint8), (count, *self._size, 3))
                self._open(label_array(modality), np.dtype(np.int64), (count,))
        except BaseException:
            self._stack.close()
            raise
        return self

    def add(self, modality: Modality, pixels: NDArray[np.uint8], label: int) -> int:
        """Appends one image, uint8 [height, width, 3], and its label; gives its row."""
        if pixels.shape != (*self._size, 3) or pixels.dtype != np.uint8:
            raise DiveError(f"an image of the arrays is uint8 {(*self._size, 3)}, got {pixels.dtype} {pixels.shape}")
        row = self._written[modality]
        if row >= self._counts[modality]:
            raise DiveError(f"{self._folder}: more {modality} images came than were counted; run the merge again")
        with clear_disk_errors(self._folder):
            self._streams[image_array(modality)].write(np.ascontiguousarray(pixels).tobytes())
            self._streams[label_array(modality)].write(np.int64(label).tobytes())
        self._written[modality] = row + 1
        return row

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._written != self._counts:
            error = DiveError(
                f"{self._folder}: {self._written} images came, {self._counts} were counted; run the merge again"
            )
            self._stack.__exit__(type(error), error, None)
            raise error
        self._stack.__exit__(kind, error, trace)

    def _open(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        temporary = self._stack.enter_context(atomic_path(self._folder / name))
        stream = self._stack.enter_context(temporary.open("wb"))
        np.lib.format.write_array_header_1_0(
            stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        self._streams[name] = stream
