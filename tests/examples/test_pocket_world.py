"""The notebook and the ten lines of docs/python.md, whose lines it has, at a smaller size."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "pocket_world.ipynb"
SMALLER = {
    "test_ids=24, external_ids=6": "test_ids=8, external_ids=2, images_per_camera=2, market_images=3",
    "PlanConfig(pairs=2)": "PlanConfig(pairs=1, sampling=df.Sampling(steps=2))",
    "ReidConfig(steps=400)": "ReidConfig(steps=2)",
}


def notebook() -> str:
    """The code of the notebook, cell after cell."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_pages_lines_are_those_of_the_notebook() -> None:
    shown = blocks("docs/python.md")[0].replace("print(", "").replace("by_image)", "by_image")
    assert [line for line in shown.splitlines() if line and line not in notebook().splitlines()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/own-photos.md"])
def test_the_names_in_its_python_exist(page: str) -> None:
    import dive_fast

    found = blocks(page)
    assert found
    for node in (node for block in found for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "df":
            assert node.attr in dive_fast.__all__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*one modality")
def test_the_notebook_leads_from_photos_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = notebook()
    for written, smaller in SMALLER.items():
        assert code.count(written) == 1
        code = code.replace(written, smaller)
    names: dict[str, Any] = {}
    exec(compile(code, str(NOTEBOOK), "exec"), names)
    assert len(names["adapter"].identities) == 176 + 2
    made = [sample for sample in names["pairs"] if sample.source == "synthetic"]
    assert {(s.pid, s.camera) for s in made} == {(pid, cam) for pid in ("91001", "91002") for cam in ("cam3", "cam6")}
    assert names["sheet"].size == (2 * 64, 3 * 128)
    kept = names["kept"]["ir"]["all"]
    assert (kept.images, kept.identities, kept.gallery_identities) == (4, 2, 2)
    assert 0 <= kept.by_image.low <= kept.by_image.value <= kept.by_image.high <= 1
