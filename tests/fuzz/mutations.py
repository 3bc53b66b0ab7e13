"""Damages one file of an untrusted folder, by a random generator: its bytes, its values, or what lies in its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from dive_fast.io import canonical_json, sha256_bytes
from tests.fuzz.binary import archive_file, array_file, image_file, matlab_file, tensor_file, torch_file
from tests.fuzz.values import LONG, json_text, mutate_value

Mutation = Callable[[Path, Random], None]
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
        **dict.fromkeys((".png", ".jpg", ".bmp", ".tif", ".webp"), image_file),
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
        texts[number] = json_text(value)
    path.write_bytes(b"".join(text + b"\n" for text in texts) if lines else texts[0])
    return None


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


def copy_tree(source: Path, target: Path) -> None:
    """Copies a file or a folder's content, without the times and modes."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        copy_tree(entry, target / entry.name)
