"""docs/own-photos.md as typed, on a folder of photos with one folder per person; then the same in Python."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-photos.md").read_text(encoding="utf-8")
SMALLER = {"--pairs 4": "--pairs 2 --steps 2"}
SMALLER_PYTHON = {"(pairs=4)": "(pairs=2, sampling=df.Sampling(steps=2))"}


def smaller(text: str, changes: dict[str, str]) -> str:
    for written, small in changes.items():
        assert text.count(written) == 1
        text = text.replace(written, small)
    return text


def shell() -> list[str]:
    (block,) = re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return block.splitlines()


def own_photos(folder: Path) -> None:
    """Two rendered people, each in a folder of two photos."""
    build_world(folder / "world", WorldSpec(1, 1, 1, 2, images_per_camera=1, market_images=2))
    for file in (folder / "world/market/bounding_box_train").iterdir():
        person = folder / "photos" / {"1001": "anna", "1002": "bo b"}[file.name[:4]]
        person.mkdir(parents=True, exist_ok=True)
        file.rename(person / file.name)


def test_the_lines_are_at_most_ten_and_their_extras_exist() -> None:
    assert len(shell()) <= 10
    (named,) = re.findall(r"pip install -c constraints.txt -e '\.\[(.*?)\]'", "\n".join(shell()))
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named.split(",")) <= set(extras)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are no numbers")
def test_the_commands_lead_from_photos_to_pairs(step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own_photos(tmp_path)
    lines = [line.removeprefix("dive-fast ") for line in smaller("\n".join(shell()), SMALLER).splitlines()[2:]]
    adapter, fused, plan, pairs, checked, _ = [step(line) for line in lines]
    assert (adapter["people"], adapter["photos"]) == (2, 4)
    assert (plan["identities"], plan["pairs"]) == (2, 2 * 2 * 2)
    assert (pairs["images"], checked["problems"]) == (8, [])
    assert (tmp_path / "runs/report/index.html").is_file()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.png")}
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(smaller(block, SMALLER_PYTHON), "own-photos.md", "exec"), names)
    assert names["adapter"].fingerprint == adapter["fingerprint"]
    assert names["engine"].spec.model_fingerprint == fused["fingerprint"]
    assert json.loads(Path("runs/pairs/plan.json").read_text())["plan_id"] == plan["plan_id"]
    assert before and before == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.png")}
