"""The documentation's command lines, and the folders and files that they name, small."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import torch

from dive_fast.train.cameras import PUBLISHED_CODES
from tests.support.quality import photo, save
from tests.support.trees import write

ROOT = Path(__file__).parents[2]
HISTORY = ("log.md", "CHANGELOG.md")  # they name what was there when an entry was written
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if path.name not in HISTORY)
STARTS = re.compile(r"(?:(?:accelerate launch|torchrun) .*?-m dive_fast\.cli|python3? -m dive_fast\.cli|dive-fast) ")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks of a page in a language; shell commands have none."""
    return [code for found, code in BLOCK.findall(text) if found == language]


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def command_lines(text: str) -> list[list[str]]:
    """The arguments of every `dive-fast` line in code blocks and of every whole command in sentences, in their order."""
    found = []
    for part in re.split(r"(^```\w*\n.*?^```$)", text, flags=re.DOTALL | re.MULTILINE):
        block = BLOCK.fullmatch(part)
        lines = [span for span in re.findall(r"`([^`]+)`", part) if "--out" in span]
        if block is not None:
            lines = [] if block[1] else block[2].splitlines()
        found += [line for line in lines if STARTS.match(line)]
    return [shlex.split(STARTS.sub("", line, count=1), comments=True) for line in found]


def lay_out(root: Path, base: Path) -> None:
    """Writes what the pages' names stand for into `root`: photo sets, a base model, weights, other people's files."""
    root.mkdir()
    for name in ("SD15", "stable-diffusion-v1-5", "BASE"):
        (root / name).symlink_to(base)
    _sysu(root / "SYSU-MM01")
    (root / "SYSU").symlink_to("SYSU-MM01")
    _market(root / "Market-1501")
    _regdb(root / "RegDB")
    _llcm(root / "LLCM")
    for person, number in product(("ann", "bob"), (1, 2)):
        save(root / f"NEW/{person}/{number}.jpg", photo(str(40 + ord(person[0])), "cam1", number))
    _published(root, base)
    _resnet(root / "resnet50.pth")


def _images(
    root: Path, name: str, pids: Iterable[int], cameras: Iterable[int], shots: int = 2
) -> list[tuple[str, int]]:
    """Photos under `name`, filled with person, camera and shot; returns names and people."""
    files = []
    for pid, camera, shot in product(pids, cameras, range(1, shots + 1)):
        file = name.format(pid=pid, camera=camera, shot=shot)
        save(root / file, photo(str(pid), f"cam{camera}", shot))
        files.append((file, pid))
    return files


def _sysu(root: Path) -> None:
    """People 1 to 4 to train on, 5 to validate on, 6 and 7 to test on."""
    _images(root, "cam{camera}/{pid:04d}/{shot:04d}.jpg", range(1, 8), range(1, 7))
    for split, ids in (("train", "1,2,3,4"), ("val", "5"), ("test", "6,7")):
        write(root / f"exp/{split}_id.txt", ids)


def _market(root: Path) -> None:
    """Person 12 has 12 photos, 14 has 12 of which one is too wide, 13 has one; 90 is a test person."""
    _images(root, "bounding_box_train/{pid:04d}_c{camera}s1_{shot:06d}_00.jpg", (12, 14), (1,), 12)
    _images(root, "bounding_box_train/{pid:04d}_c{camera}s1_{shot:06d}_00.jpg", (13,), (1,), 1)
    wide = root / "bounding_box_train/0014_c1s1_000001_00.jpg"
    photo("14", "cam1", 1).resize((32, 60)).save(wide)
    for folder in ("query", "bounding_box_test"):
        _images(root, folder + "/{pid:04d}_c{camera}s1_{shot:06d}_00.jpg", (90,), (2,), 2)
    (root / "gt_bbox").symlink_to("bounding_box_train")


def _regdb(root: Path) -> None:
    """People 1 to 3 to train on and 4 to 6 to test on, in trial 1."""
    for kind, folder, camera in (("visible", "Visible", 1), ("thermal", "Thermal", 3)):
        files = _images(root, f"{folder}/{{pid}}/person_{{shot:05d}}_{{pid}}.bmp", range(1, 7), (camera,))
        for part, first in (("train", 1), ("test", 4)):
            lines = (f"{file} {pid - first}" for file, pid in files if first <= pid < first + 3)
            write(root / f"idx/{part}_{kind}_1.txt", *lines)


def _llcm(root: Path) -> None:
    """People 1 and 2 to train on, 3 to test on."""
    for kind, camera in (("vis", 1), ("nir", 3)):
        name = f"{kind}/{{pid:04d}}/{{pid:04d}}_c{{camera:02d}}_s{{shot:06d}}_f1_{kind}.jpg"
        files = _images(root, name, (1, 2), (camera,))
        write(root / f"idx/train_{kind}.txt", *(f"{file} {pid - 1}" for file, pid in files))
        _images(root, f"test_{kind}/cam{{camera}}/{{pid:04d}}/{{shot:04d}}.jpg", (3,), (camera,))
    write(root / "idx/test_id.txt", "3")


def _published(root: Path, base: Path) -> None:
    """DiVE's folder for the base model, and its Market tree with a photo of one of the people."""
    from dive_fast.models import load_bundle
    from tests.support.lora_layouts import write_dive
    from tests.support.tiny import tiny_adapter

    write_dive(root / "lora_ti", tiny_adapter(load_bundle(base), pids=["0001", "0534"]), PUBLISHED_CODES)
    save(root / "SYSU_MARKET/cam7/0534/0001.jpg", photo("534", "cam1", 1))


def _resnet(path: Path) -> None:
    from tests.support.checkpoints import torchvision_state

    torch.save(torchvision_state(), path)
