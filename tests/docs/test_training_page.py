"""The commands of docs/training-an-adapter.md, in order, on small trees of the same shape."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import Run

PAGE = (Path(__file__).parents[2] / "docs" / "training-an-adapter.md").read_text(encoding="utf-8")
LAUNCH = "accelerate launch --multi_gpu --num_processes 4 -m dive_fast.cli "
SMALLER = {  # the last of two options counts
    "personalize": ["--rank", "2", "--batch", "4", "--steps", "2", "--mixed-precision", "no", "--sheet-every", "0"],
    "plan": ["--pairs", "1", "--steps", "2"],
    "synth": ["--device", "cpu"],
}


def commands() -> list[list[str]]:
    """The commands in the page's blocks, what launches them left out."""
    lines = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line.removeprefix(LAUNCH).removeprefix("dive-fast ")) for line in lines]


def image(path: Path, seed: int, height: int = 64, grey: bool = False) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(path)


@pytest.fixture
def places(tmp_path: Path, tiny_base: Path) -> dict[str, str]:
    """What the page's names in capitals stand for."""
    for pid in (1, 2):
        for camera in ("cam1", "cam3"):
            for shot in (1, 2):
                image(tmp_path / f"SYSU-MM01/{camera}/{pid:04d}/{shot:04d}.jpg", pid * 10 + shot, grey=camera == "cam3")
    for split, ids in (("train", "1,2"), ("val", ""), ("test", "9")):
        (tmp_path / "SYSU-MM01/exp").mkdir(exist_ok=True)
        (tmp_path / f"SYSU-MM01/exp/{split}_id.txt").write_text(ids + "\n")
    for shot in range(12):  # 0002 passes the filters, 0003 has too few, one of 0004's twelve is too wide
        image(tmp_path / f"Market-1501/gt_bbox/0002_c1s1_{shot:06d}_00.jpg", 100 + shot)
        image(tmp_path / f"Market-1501/gt_bbox/0004_c2s1_{shot:06d}_00.jpg", 200 + shot, height=60 if shot else 64)
    image(tmp_path / "Market-1501/gt_bbox/0003_c1s1_000001_00.jpg", 300)
    image(tmp_path / "NEW/ann/1.jpg", 400)
    names = ("SYSU-MM01", "Market-1501", "NEW")
    return {**{name: str(tmp_path / name) for name in names}, "SD15": str(tiny_base), "runs/": f"{tmp_path}/runs/"}


def placed(argument: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        argument = argument.replace(name, place)
    return argument


def test_the_commands_are_in_this_order() -> None:
    assert [name for name, *_ in commands()] == [
        *("prepare", "prepare", "personalize", "personalize", "personalize"),
        *("fuse", "export", "plan", "synth", "verify", "report"),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*TEST identities")
def test_the_pages_commands_lead_from_raw_folders_to_pairs(run: Run, places: dict[str, str], tmp_path: Path) -> None:
    def step(name: str, *arguments: str) -> dict[str, Any]:
        code, out, error = run(name, *arguments, *SMALLER.get(name, []), *(["--json"] if name != "report" else []))
        assert code == 0, error
        return {} if name == "report" else json.loads(out.splitlines()[-1])

    done: list[dict[str, Any]] = []
    for name, *arguments in commands():
        if name == "export":  # takes half a minute; the fused folder is an engine too
            done.append({})
            continue
        given = [placed(argument, places).replace("runs/engine", "runs/fused") for argument in arguments]
        if "--tensorboard" in given and not _has_tensorboard():
            given.remove("--tensorboard")
        done.append(step(name, *given))
    counted, prepared, foreseen, adapter, more, fused, _, plan, pairs, checked, _ = done
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


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
