"""Damages pictures, arrays, tensors and pickles in ways that their formats allow."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.fuzz.values import LONG, VALUES, json_text, mutate_value, places


def image_file(path: Path, random: Random) -> None:
    """Puts another picture there: of another size, mode or format, or one whose header claims much."""
    size = random.choice(((1, 1), (12, 24), (64, 128), (3000, 1), (1, 3000)))
    mode = random.choice(("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr"))
    kind = random.choice(("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "EPS", "ICO", "PDF"))
    data = path.read_bytes()
    if random.random() < 0.2 and data[:4] == b"\x89PNG":
        data = (
            data[:16] + struct.pack(">II", *random.choice(((0, 0), (1 << 30, 1 << 30), (20_000, 20_000)))) + data[24:]
        )
    elif random.random() < 0.2:
        data = data[: len(data) * random.randrange(1, 10) // 10]
    else:
        stream = io.BytesIO()
        # not every format takes every mode
        with suppress(OSError, ValueError, KeyError, RuntimeError, SystemError, struct.error):
            exif = Image.Exif()
            exif[0x0112] = random.choice((1, 3, 6, 8, 99, "x"))
            Image.new(mode, size, random.choice((0, 1))).save(stream, kind, exif=exif)
        data = stream.getvalue()
    path.write_bytes(data)


def _array(random: Random, like: np.ndarray) -> np.ndarray:
    """An array of another type, shape or other values than `like`."""
    cells = like.copy()
    match random.randrange(8):
        case 0 if cells.size and cells.dtype.kind == "f":
            cells.reshape(-1)[random.randrange(cells.size)] = random.choice((np.nan, np.inf, 1e30, -1e30, 1e-40))
        case 1 if cells.dtype.kind in "fiu":
            return cells.astype(random.choice((np.float16, np.float64, np.int64, np.complex64, np.bool_, "S4", "U4")))
        case 2:
            return cells[..., : max(0, (cells.shape[-1] if cells.ndim else 1) - 1)]
        case 3:
            return cells.reshape(-1)
        case 4:
            return cells[None]
        case 5 if cells.dtype.kind in "fiu":
            return np.asarray(cells * random.choice((0, -1, 1e30))).astype(cells.dtype)
        case 6:
            return cells[:0] if cells.ndim else cells
        case _:
            return np.array(random.choice((0, "x", "x" * LONG, b"x")))
    return cells


def array_file(path: Path, random: Random) -> None:
    """Writes another array, or changes its header's text."""
    data = path.read_bytes()
    if random.random() < 0.3:
        words = ((b"'descr'", b"'desc2'"), (b"<f4", b"|O "), (b"(", b"(9"), (b"False", b"True "), (b"<f4", b"<f9"))
        path.write_bytes(data[:128].replace(*random.choice(words)) + data[128:])
        return
    with suppress(ValueError, OverflowError), np.errstate(all="ignore"):
        np.save(path, _array(random, np.load(path)), allow_pickle=False)


def archive_file(path: Path, random: Random) -> None:
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    name = random.choice(sorted(arrays))
    with suppress(ValueError, OverflowError), np.errstate(all="ignore"):
        arrays[random.choice((name, name, "x"))] = _array(random, arrays[name])
    if random.random() < 0.2:
        del arrays[name]
    np.savez(path, **arrays)


def matlab_file(path: Path, random: Random) -> None:
    from scipy.io import loadmat, savemat

    arrays = {name: array for name, array in loadmat(path).items() if not name.startswith("__")}
    name = random.choice(sorted(arrays))
    with suppress(ValueError, OverflowError), np.errstate(all="ignore"):
        arrays[random.choice((name, name, "x"))] = _array(random, arrays[name])
    if random.random() < 0.2:
        del arrays[name]
    savemat(path, arrays)


def tensor_file(path: Path, random: Random) -> None:
    """Changes the header of a safetensors file as JSON, or its tensors and their names."""
    from safetensors.torch import load_file, save_file

    if random.random() < 0.3:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json_text(mutate_value(json.loads(data[8 : 8 + size]), random))
        size = len(header) if random.random() < 0.9 else random.choice((0, 1 << 40, len(data)))
        path.write_bytes(size.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :])
        return
    tensors = load_file(path)
    for _ in range(random.choice((1, 1, 2, 5))):
        _change_tensor(tensors, random)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata=_metadata(random))


def _metadata(random: Random) -> dict[str, str] | None:
    return random.choice(
        (None, None, {"modelspec.prediction_type": "v"}, {"lora_adapter_metadata": "["}, {"x": "x" * LONG})
    )


def _tensor(random: Random, like: torch.Tensor) -> torch.Tensor:
    dtypes = (
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.float64,
    )
    match random.randrange(7):
        case 0:
            return torch.zeros_like(like)
        case 1 if like.is_floating_point():
            value = random.choice((1e30, float("nan"), float("inf"), 1e-40))
            return torch.full(like.shape, value).to(like.dtype)  # infinite where the type ends below
        case 2:
            return like.to(random.choice(dtypes))
        case 3:
            return like[None]
        case 4:
            return like[:0] if like.ndim else like
        case 5:
            return like.reshape(-1)
        case _:
            return torch.randn(random.choice(((), (0,), (1,), (4, 32), (32, 4), (32,), (3, 4, 5))))


def _change_tensor(tensors: dict[str, Any], random: Random) -> None:
    if not tensors:
        return
    name = random.choice(sorted(tensors))
    renamed: tuple[str, ...] = (
        f"module.{name}",
        name.replace(".", "_"),
        name + random.choice((".scalar", ".x", "_m", ".default.weight", ".bias", ".alpha")),
        name[: random.randrange(len(name) + 1)],
        name.replace("lora_A", random.choice(("lora_E", "lora_magnitude_vector", "lora_A.x", ""))),
        random.choice(
            ("v_pred", "edm_x", "*", "<>", "x" * LONG, "\x00", "emb_params", "clip_l", "string_to_param", "dora")
        ),
    )
    match random.randrange(4):
        case 0:
            tensors[name] = _tensor(random, tensors[name])
        case 1:
            tensors[random.choice(renamed)] = tensors.pop(name)
        case 2:
            del tensors[name]
        case _:
            tensors[random.choice(renamed)] = _tensor(random, tensors[name])


class _Calls:
    """Runs a command when it is unpickled by a loader that lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nonexistent/unpickled",)


def torch_file(path: Path, random: Random) -> None:
    """Changes what a pickle of torch holds at a random place."""
    value = torch.load(path, map_location="cpu", weights_only=False)
    found = [place for place in places(value) if isinstance(place[0], dict)]
    if not found or random.random() < 0.1:
        value = random.choice((None, [], {}, "x", _Calls(), {1: 2}, torch.zeros(3)))
    else:
        holder, key = random.choice(found)
        tensors = {"t": holder[key] if isinstance(holder[key], torch.Tensor) else torch.randn(4, 32)}
        odd = (
            _tensor(random, tensors["t"]),
            copy.deepcopy(random.choice(VALUES)),
            {"a": _tensor(random, tensors["t"])},
        )
        if random.random() < 0.2:
            del holder[key]
        elif random.random() < 0.2:
            holder[random.choice(("name", "z", "", "x" * LONG, 5))] = holder.pop(key)
        else:
            holder[key] = random.choice(odd)
    torch.save(value, path)
