"""The commands of docs/training-an-adapter.md, in order, on small trees of the same shape."""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support.trees import photo, write

PAGE = (Path(__file__).parents[2] / "docs" / "training-an-adapter.md").read_text(encoding="utf-8")
LAUNCH = "accelerate launch --multi_gpu --num_processes 4 -m dive_fast.cli "
SMALLER = {  # the last of two options counts
    "personalize": "--rank 2 --batch 4 --steps 2 --mixed-precision no --sheet-every 0",
    "plan": "--pairs 1 --steps 2",
    "synth": "--device cpu",
}


def command_lines() -> list[str]:
    """The commands in the page's blocks, what launches them left out."""
    lines = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [line.removeprefix(LAUNCH).removeprefix("dive-fast ") for line in lines]


def image(path: Path, seed: int, height: int = 64) -> None:
    photo(path, seed, height, 32)


@pytest.fixture
def places(tmp_path: Path, tiny_base: Path) -> dict[str, str]:
    """What the page's names in capitals stand for."""
    for pid, camera, shot in product((1, 2), ("cam1", "cam3"), (1, 2)):
        image(tmp_path / f"SYSU-MM01/{camera}/{pid:04d}/{shot:04d}.jpg", pid * 10 + shot)
    for split, ids in (("train", "1,2"), ("val", ""), ("test", "9")):
        write(tmp_path / f"SYSU-MM01/exp/{split}_id.txt", ids)
    for shot in range(12):  # 0002 passes the filters, 0003 has too few, one of 0004's twelve is too wide
        image(tmp_path / f"Market-1501/gt_bbox/0002_c1s1_{shot:06d}_00.jpg", 100 + shot)
        image(tmp_path / f"Market-1501/gt_bbox/0004_c2s1_{shot:06d}_00.jpg", 200 + shot, height=60 if shot else 64)
    image(tmp_path / "Market-1501/gt_bbox/0003_c1s1_000001_00.jpg", 300)
    image(tmp_path / "NEW/ann/1.jpg", 400)
    names = ("SYSU-MM01", "Market-1501", "NEW")
    return {**{name: str(tmp_path / name) for name in names}, "SD15": str(tiny_base), "runs/": f"{tmp_path}/runs/"}


def test_the_commands_are_in_this_order() -> None:
    order = "prepare prepare personalize personalize personalize fuse export plan synth verify report reid"
    assert [line.split()[0] for line in command_lines()] == order.split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*TEST identities")
def test_the_pages_commands_lead_from_raw_folders_to_pairs(step: Any, places: dict[str, str], tmp_path: Path) -> None:
    done = []
    for line in command_lines():
        if line.startswith(
            ("export ", "reid ")
        ):  # takes half a minute, an engine is the fused folder too; wants ImageNet
            continue
        for name, place in places.items():
            line = line.replace(name, place)
        if find_spec("tensorboard") is None:
            line = line.replace("--tensorboard", "")
        done.append(step(f"{line.replace('runs/engine', 'runs/fused')} {SMALLER.get(line.split()[0], '')}"))
    counted, prepared, foreseen, adapter, more, fused, plan, pairs, checked, _ = done
    assert counted["images"] == prepared["images"] == 8 + 12 + 1
    assert [(row["rule"], row["identities"], row["images"]) for row in prepared["dropped"]] == [
        ("of people with fewer than 12 images", 1, 1),
        ("not twice as high as wide", 0, 11),
    ]
    assert not foreseen.get("fingerprint")
    assert (adapter["identities"], adapter["cameras"]) == (4, ["cam1", "cam3", "cam7"])
    assert more["identities"] == 5
    assert fused["identities"] == 4
    assert (plan["identities"], plan["pairs"]) == (2, 2)  # 10003 has photos, but too few, and was never learned
    assert pairs["images"] == 2
    assert checked["problems"] == []
    assert (tmp_path / "runs/report/index.html").is_file()
