"""The registry of backends: a row is all that a new one adds, and reading it loads no heavy library."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dive_fast.engines import load_engine
from dive_fast.engines.registry import BACKENDS, MODEL, Backend, Choice, choices, resolve
from dive_fast.environment import packages as probing
from dive_fast.environment.doctor import engine_names, rows
from dive_fast.environment.packages import Machine
from dive_fast.types import DiveError, InputError

ROOT = Path(__file__).parents[2]
FACTS = Machine("3.11", "Linux", 2, None, ("/", 1), {})


def open_fake(folder: Path, choice: Choice) -> Any:
    choice.refuse(folder, [])
    return SimpleNamespace(folder=folder, choice=choice)


def why_not(name: str, device: str) -> list[str]:
    return [f"no {name} {device} here"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Backend:
    row = Backend(
        name="fake",
        extra="fakes",
        packages={"pytest": "pytest"},
        devices=("cpu", "npu"),
        precisions=("fp32", "int4"),
        reads=(MODEL,),
        remedy="fake it first",
        opens=f"{__name__}:open_fake",
        why_not=f"{__name__}:why_not",
    )
    monkeypatch.setitem(BACKENDS, "fake", row)
    return row


def test_a_new_row_is_opened_listed_and_a_choice(fake: Backend, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").touch()
    opened: Any = load_engine(tmp_path, "fake", "npu", precision="int4", check_finite=True)
    assert opened.folder == tmp_path and opened.choice.backend is fake and opened.choice.check_finite
    with pytest.raises(DiveError, match=r"device cuda.*cpu, npu.*precision fp16.*fp32, int4"):
        load_engine(tmp_path, "fake", "cuda", precision="fp16")
    with pytest.raises(InputError, match="torch, torch-compiled, fake; export it first"):
        load_engine(tmp_path, "onnxruntime")
    known = choices()
    assert known["backend"][-1] == "fake" and "npu" in known["device"] and "int4" in known["precision"]


def test_doctor_shows_a_new_row(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"fake-cpu", "fake-npu"} < set(engine_names()) and "fake" in probing.backends_here()
    found = {row.name: row for row in rows(FACTS)}
    assert "pip install 'dive-fast[fakes]'" in found["fake-cpu"].remedy
    packages = {"pytest": probing.Package("8")}
    found = {row.name: row for row in rows(replace(FACTS, packages=packages, refusals=probing._refusals(packages)))}
    assert found["fake-cpu"].value == "no fake cpu here" and "no GPU" in found["fake-npu"].value


@pytest.mark.parametrize("row", BACKENDS.values(), ids=BACKENDS)
def test_every_row_names_functions_that_exist(row: Backend) -> None:
    for reference in filter(None, (row.opens, row.why_not)):
        assert callable(resolve(reference))


def test_registry_and_doctor_load_the_standard_library_only() -> None:
    code = (
        "import sys, dive_fast.engines.registry, dive_fast.engines.tensorrt_api, dive_fast.environment.doctor; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) - {"__main__", "sitecustomize"} == {"dive_fast"}
