"""What a fresh checkout relies on: pins, extras, the Makefile's first words, and a CMake that needs no compiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dive_fast import __version__
from dive_fast.environment.packages import PACKAGES

tomllib = pytest.importorskip("tomllib", reason="tomllib needs Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BUILD_FILES = ("pyproject.toml", "constraints.txt", "Makefile", "CMakeLists.txt", ".ci/run")


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=;! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def outside_make() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}


def pins() -> dict[str, list[str]]:
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            found.setdefault(name_of(line), []).append(line)
    return found


def default_extras() -> list[str]:
    found = re.search(r"^EXTRAS \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return found[1].split(",")


def added_extras() -> list[str]:
    """What some targets of the Makefile install on top."""
    return re.findall(r"-e '\.\[(\w+)\]'", (ROOT / "Makefile").read_text())


def test_everything_that_make_installs_is_pinned() -> None:
    wanted = {name_of(r) for r in PROJECT["dependencies"]}
    wanted |= {name_of(r) for extra in (*default_extras(), *added_extras()) for r in EXTRAS[extra]}
    assert wanted - pins().keys() - {"dive-fast", "types-tqdm"} == set()
    assert all("==" in pin for listed in pins().values() for pin in listed)


def test_torch_is_exact_so_that_no_cuda_packages_come_along() -> None:
    assert [re.sub(r" *;.*", "", pin) for pin in pins()["torch"]] == ["torch==2.13.0"]


def test_extras_that_exclude_each_other_stay_apart() -> None:
    assert not {"cpu", "gpu"} <= set(default_extras())
    holders = {extra for extra, listed in EXTRAS.items() for r in listed if name_of(r) == "tensorrt"}
    assert holders == {"trt"}  # its wheels need the vendor's own index; asking for it elsewhere fails the whole resolve
    both = {
        extra for extra, listed in EXTRAS.items() if {"onnxruntime", "onnxruntime-gpu"} <= set(map(name_of, listed))
    }
    assert not both


def test_the_workflow_runs_the_parts_of_the_ci_script() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    (job,) = workflow["jobs"].values()
    parts = re.findall(r"\bmake ([a-z-]+)(?:;|$)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert len(parts) >= 5 and sorted(job["strategy"]["matrix"]["part"]) == sorted(parts)
    assert job["steps"][-1]["run"] == "make ${{ matrix.part }}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(parts) <= targets


def test_forms_and_hooks_are_valid_and_run_what_there_is() -> None:
    yaml = pytest.importorskip("yaml")
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        asked = yaml.safe_load(form.read_text())
        ids = [part["id"] for part in asked["body"]]
        assert asked["name"] and asked["description"] and len(ids) == len(set(ids))
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local" and all(hook["entry"].startswith(".venv/bin/python -m ") for hook in local["hooks"])
    named = [word for hook in local["hooks"] for word in hook["entry"].split() if word.endswith(".py")]
    assert named and all((ROOT / file).is_file() for file in named)


def test_the_citation_names_this_version_and_the_source_of_the_method() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", __version__, PROJECT["license"])
    (source,) = cited["references"]
    assert source["identifiers"] == [{"type": "other", "value": "arXiv:2503.12472"}]
    assert [name["family-names"] for name in source["authors"]] == ["Dai", "Lu", "Li"]


def test_the_changelog_begins_with_this_version_or_the_next() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert __version__ in versions[:2]
    assert versions == sorted(versions, key=lambda text: tuple(map(int, text.split("."))), reverse=True)


@pytest.mark.parametrize("package", ["dive_fast", "kernels/dive_kernels", "export/dive_export"])
def test_callers_see_our_types(package: str) -> None:
    assert (ROOT / package / "py.typed").read_bytes() == b""
    assert package in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["packages"]


def test_the_install_page_lists_every_extra() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/install.md").read_text(), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(EXTRAS.keys() - {"bench"})  # bench is for benchmarks/ alone


def test_every_page_is_on_the_site() -> None:
    yaml = pytest.importorskip("yaml")

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        return [page for part in inner for page in pages(part)]  # type: ignore[attr-defined]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {file.name for file in (ROOT / "docs").glob("*.md")}
    assert sorted(listed) == sorted(written | {"CONTRIBUTING.md", "CHANGELOG.md", "reference.md"})


def test_doctor_names_the_extra_that_holds_a_package() -> None:
    wanted = {name: wanted.extra for name, wanted in PACKAGES.items() if wanted.extra is not None}
    assert [name for name, extra in wanted.items() if name not in map(name_of, EXTRAS[extra])] == []


def test_no_registry_is_named() -> None:
    for file in BUILD_FILES:
        assert not re.search(r"https?://|index-url|find-links", (ROOT / file).read_text()), file


def test_the_license_is_there() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_assets_are_small_enough_to_ship() -> None:
    files = [file for file in (ROOT / "dive_fast" / "assets").rglob("*") if file.is_file()]
    sizes = {file.name: file.stat().st_size for file in files}
    assert all(size <= 16 << 20 for size in sizes.values()), sizes
    assert sum(file.stat().st_size for file in files) <= 40 << 20


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that make reads, without a .venv."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=outside_make(), capture_output=True, text=True, check=False)


def test_make_alone_lists_its_targets(checkout: Path) -> None:
    result = make(checkout)
    assert result.returncode == 0
    assert all(
        f"make {target}" in result.stdout
        for target in ("demo", "quick", "test", "check", "docs", "coverage", "kernels", "kernels-ci", "gpu-test")
    )


@pytest.mark.parametrize(
    ("body", "sentences"),
    [
        (
            'case "$1" in -c) exit 1;; --version) echo Python 3.8.10;; esac',
            ["dive-fast needs Python >= 3.10, ", "python-fake' is Python 3.8.10"],
        ),
        ('case "$1" in -c) exit 0;; *) exit 1;; esac', ["cannot make a virtual environment", "python3-venv"]),
    ],
    ids=["old", "without venv"],
)
def test_a_python_that_will_not_do_is_refused(checkout: Path, body: str, sentences: list[str]) -> None:
    python = checkout / "python-fake"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    result = make(checkout, "test", f"PYTHON={python}")
    assert result.returncode != 0
    assert all(sentence in result.stderr for sentence in sentences)
    assert not (checkout / ".venv").exists()


def test_the_oldest_triton_that_is_tried_is_the_oldest_allowed() -> None:
    tried = re.search(r"^OLDEST_TRITON := (\d+\.\d+)\.0$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tried
    allowed = [r for listed in EXTRAS.values() for r in listed if name_of(r) == "triton"]
    assert allowed and all(r.startswith(f"triton>={tried[1]};") for r in allowed)


def test_cmake_runs_for_plain_installs_where_it_is_at_hand_and_never_for_editable_ones() -> None:
    scikit = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert scikit["wheel"]["cmake"] is False
    wheel, asked = scikit["overrides"]
    assert wheel == {"if": {"state": "wheel", "system-cmake": ">=3.20"}, "wheel": {"cmake": True}}
    assert asked["if"] == {"env": {"DIVE_KERNELS_AOT": True}}


def built(folder: Path, *options: str, **environment: str) -> tuple[str, dict[str, Any]]:
    """Configures, builds and installs by CMake; returns the configuring log and the installed index."""
    if shutil.which("cmake") is None or shutil.which("make") is None:
        pytest.skip("cmake or make is not installed")
    clean = outside_make() | environment
    commands = [
        ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}", *options],
        ["cmake", "--build", str(folder)],
        ["cmake", "--install", str(folder), "--prefix", str(folder / "installed")],
    ]
    log = ""
    for command in commands:
        result = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        log = log or result.stdout
    return log, json.loads((folder / "installed" / "dive_kernels" / "cubins" / "kernels.json").read_text())


@pytest.fixture
def no_compilers(tmp_path: Path) -> str:
    """A PATH with cmake and make alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for found in filter(None, map(shutil.which, ("cmake", "make", "sh", "uname"))):
        (folder / Path(found).name).symlink_to(found)
    return str(folder)


@pytest.mark.slow
def test_cmake_needs_no_compiler(tmp_path: Path, no_compilers: str) -> None:
    """The log and the index name what was skipped."""
    log, index = built(tmp_path / "build", PATH=no_compilers, CC="/nowhere", CXX="/nowhere")
    assert "Triton kernels skipped: DIVE_KERNELS_AOT is off" in log
    assert "CUDA C++ kernels skipped: no CUDA compiler found" in log
    assert index["kernels"] == []
    assert index["skipped"] == [
        {"what": "Triton kernels", "why": "DIVE_KERNELS_AOT was off"},
        {"what": "CUDA C++ kernels", "why": "no CUDA compiler was found"},
    ]


@pytest.mark.slow
def test_cmake_skips_what_it_cannot_compile(tmp_path: Path, no_compilers: str) -> None:
    """The interpreter's switch simulates a machine without Triton."""
    log, index = built(tmp_path / "build", "-DDIVE_KERNELS_AOT=ON", PATH=no_compilers, TRITON_INTERPRET="1")
    reason = r"(TRITON_INTERPRET|torch is not installed|triton is not installed)"
    assert re.search(rf"Triton kernels skipped: .*{reason}.*--no-build-isolation", log)
    assert re.search(reason, index["skipped"][0]["why"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cmake_compiles_cuda_kernels_where_nvcc_is(tmp_path: Path) -> None:
    log, index = built(tmp_path, "-DDIVE_KERNELS_ARCHS=80;90")
    assert "CUDA C++ kernels will be compiled for 80;90 by " in log
    assert {kernel["architecture"] for kernel in index["kernels"]} == {80, 90}
    folder = tmp_path / "installed" / "dive_kernels" / "cubins"
    assert all((folder / kernel["cubin"]["name"]).read_bytes()[:4] == b"\x7fELF" for kernel in index["kernels"])
