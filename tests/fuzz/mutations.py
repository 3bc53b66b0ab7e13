"""Damages one file of an untrusted folder, by a random generator: its bytes, its values, or what lies in its place."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from dive_fast.io import canonical_json, sha256_bytes

Mutation = Callable[[Path, Random], None]
LONG = 5000  # characters; a message must not repeat them
_DEEP = json.loads("[" * 60 + "]" * 60)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, 10**6, 10**9, 10**12, 2**63, 10**30, 10**400, -(10**18)),
    *(1e30, -1e30, 1e-300, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        "x",
        "1",
        "0001",
        "cam1",
        "rgb",
        "fp16",
        "epsilon",
        "\x00",
        "a\nb",
        "\ud800",
        "小明",
        "..",
        "../../x",
        "/etc",
    ),
    *("x" * LONG, "9" * LONG, "con", "a/b", "<x>", "{token}", "{", "%s", "-1", "1e400", "💥"),
    *([], {}, [1], [None], {"a": 1}, [[[]]], ["x"] * 200, [0] * 3, [10**6], {"x" * LONG: 1}, _DEEP),
)
_INVALID = (b"9" * LONG, b'{"a": 1, "a": 2}', b"NaN", b"{", b'"', b"[" * 200_000, b"\xff\xfe", b"nul", b"1e999999", b"")
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
# In the place of the file: what never ends, what is no file, and what leads nowhere.
_PLACES: tuple[Callable[[Path], object], ...] = (
    lambda path: None,
    Path.mkdir,
    os.mkfifo,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("nowhere"),
    Path.touch,
    lambda path: path.write_bytes(_POINTER),
    lambda path: path.write_bytes(bytes(1000)),
)


def mutate(path: Path, random: Random) -> None:
    """Damages the file in one of the ways that suit its kind; of hashes that others hold of it, half are put right."""
    before, size = path.read_bytes(), random.random()
    if size < 0.1:
        path.unlink()
        random.choice(_PLACES)(path)
        return
    if size < 0.15:
        _swap(path, random)
    else:
        _damage(path, random)
    if random.random() < 0.5:
        _put_right(path, before)


def _damage(path: Path, random: Random) -> None:
    kinds: dict[str, Mutation] = {
        **dict.fromkeys((".json", ".jsonl"), json_file),
        **dict.fromkeys((".txt", ".yaml", ".js"), text_file),
        **dict.fromkeys((".png", ".jpg", ".bmp"), image_file),
        **dict.fromkeys((".pt", ".bin", ".ckpt", ".state"), torch_file),
        **{".npy": array_file, ".npz": archive_file, ".mat": matlab_file, ".safetensors": tensor_file},
    }
    special = kinds.get(path.suffix)
    if special is None or random.random() < 0.2:
        bytes_file(path, random)
    else:
        special(path, random)


def _swap(path: Path, random: Random) -> None:
    """Puts another file of the folder there."""
    others = sorted(file for file in path.parent.parent.rglob("*") if file.is_file() and file != path)
    if others:
        path.write_bytes(random.choice(others).read_bytes())


def _put_right(path: Path, before: bytes) -> None:
    """Replaces the old hash of a file by the new one wherever a text file beside it or above holds it."""
    old, new = (sha256_bytes(data).encode() for data in (before, path.read_bytes()))
    for file in {file for folder in path.parents[:2] for file in folder.rglob("*.json*") if file.is_file()}:
        data = file.read_bytes()
        if old in data:
            file.write_bytes(data.replace(old, new))


def bytes_file(path: Path, random: Random) -> None:
    """Flips bits, cuts, appends, inserts or doubles."""
    data = bytearray(path.read_bytes())
    at = random.randrange(len(data) + 1)
    match random.randrange(5):
        case 0 if data:
            for _ in range(random.choice((1, 1, 8, 100))):
                data[random.randrange(min(len(data), random.choice((64, 4096, 1 << 30))))] ^= 1 << random.randrange(8)
        case 1:
            del data[at:]
        case 2:
            data += random.randbytes(20)
        case 3:
            data[at:at] = random.randbytes(random.choice((1, 100)))
        case _:
            data += bytes(data)
    path.write_bytes(data)


def json_file(path: Path, random: Random) -> None:
    """Changes, drops, adds or repeats values of a JSON file, or of lines of a JSON-lines file; seldom its text."""
    lines = path.suffix == ".jsonl"
    data = path.read_bytes()
    texts = data.splitlines() if lines else [data]
    try:
        number = random.randrange(len(texts))
        value = json.loads(texts[number])
    except ValueError:
        return bytes_file(path, random)
    odd = random.random()
    if odd < 0.08:
        texts[number] = random.choice(_INVALID)
    elif odd < 0.12:
        texts[number] = texts[number].decode().encode(random.choice(("utf-8-sig", "utf-16", "utf-32")))
    elif odd < 0.16 and lines:
        random.shuffle(texts)
    elif odd < 0.20 and lines:
        texts += [texts[number]] * random.choice((1, 3))
    else:
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            value = mutate_value(value, random)
        if isinstance(value, dict) and "plan_id" in value and random.random() < 0.5:
            with suppress(ValueError, TypeError):  # of NaN there is no plan
                fields = {key: inner for key, inner in value.items() if key != "plan_id"}
                value["plan_id"] = sha256_bytes(canonical_json(fields).encode())
        texts[number] = _text(value)
    path.write_bytes(b"".join(text + b"\n" for text in texts) if lines else texts[0])
    return None


def _text(value: Any) -> bytes:
    """JSON as any program may write it: whole numbers of any size, NaN, infinity and halves of characters too."""
    return re.sub(rf'"(9{{{LONG}}})"', r"\1", json.dumps(value)).encode()


def mutate_value(value: Any, random: Random) -> Any:
    """A copy with one change at a random place."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    holder, key = random.choice(places) if places else (None, None)
    if holder is None or random.random() < 0.03:
        return copy.deepcopy(random.choice(VALUES))
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x", "y", "__proto__", "x" * LONG))] = copy.deepcopy(random.choice(VALUES))
        case 1 if isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        case 2 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * random.choice((-1, 10, 1000, 0.5))
        case 3 if isinstance(holder, dict):
            holder[random.choice(list(holder))] = holder[key]
        case 4 if isinstance(holder[key], str) and holder[key]:
            at = random.randrange(len(holder[key]))
            holder[key] = holder[key][:at] + random.choice(("x", "", "/", "\x00", ".")) + holder[key][at + 1 :]
        case _:
            holder[key] = copy.deepcopy(random.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (dictionary or list, key) in a value; of long lists the first ones."""
    keys: Any = value if isinstance(value, dict) else range(min(len(value), 20)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def text_file(path: Path, random: Random) -> None:
    """Changes, drops, repeats or shuffles lines, or the encoding."""
    text = path.read_bytes().decode("utf-8", "replace")
    lines = text.splitlines() or [""]
    at = random.randrange(len(lines))
    words = (
        "",
        "x",
        "-1",
        "0",
        "9" * LONG,
        "x" * LONG,
        "../../etc/passwd 1",
        "a b c d",
        "\x00",
        "1,1",
        "小",
        "1e400",
        "'",
    )
    match random.randrange(6):
        case 0:
            lines[at] = random.choice(words)
        case 1:
            del lines[at]
        case 2:
            lines.insert(at, lines[random.randrange(len(lines))])
        case 3:
            random.shuffle(lines)
        case 4:
            lines[at] = f"{lines[at]}{random.choice((' ', ',', '/'))}{random.choice(words)}"
        case _:
            path.write_bytes(text.encode(random.choice(("utf-8-sig", "utf-16", "utf-32", "cp037"))))
            return
    path.write_bytes(random.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode())


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
        with suppress(OSError, ValueError, KeyError, SystemError, struct.error):  # not every format takes every mode
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
        header = _text(mutate_value(json.loads(data[8 : 8 + size]), random))
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
            return torch.full_like(like, random.choice((1e30, float("nan"), float("inf"), 1e-40)))
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
    places = [place for place in _places(value) if isinstance(place[0], dict)]
    if not places or random.random() < 0.1:
        value = random.choice((None, [], {}, "x", _Calls(), {1: 2}, torch.zeros(3)))
    else:
        holder, key = random.choice(places)
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


def copy_tree(source: Path, target: Path) -> None:
    """Copies a file or a folder's content, without the times and modes."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        copy_tree(entry, target / entry.name)
