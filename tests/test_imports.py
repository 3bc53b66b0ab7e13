"""Who may import whom (docs/architecture.md), read off the source; and what a fresh `dive-fast --help` loads."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"dive_fast": ROOT, "dive_kernels": ROOT / "kernels", "dive_export": ROOT / "export"}
BASICS = "types settings io json_files outputs words progress"
GROUND = f"{BASICS} distributed tensorboard training_state"
TORCH_BACKEND = f"{BASICS} engines models sampling unet dive_kernels"


@dataclass(frozen=True)
class Rule:
    """What a module may import beside the standard library, itself and its own submodules; None = anything.

    With `lazy`, both lists hold for what runs on import only, and functions may import anything.
    """

    ours: tuple[str, ...]
    libraries: tuple[str, ...] | None = None
    lazy: bool = False


def rule(rooms: str = "", libraries: str | None = None, lazy: bool = False) -> Rule:
    """The rule for lists between spaces: of packages and of rooms in dive_fast, and of libraries."""
    ours = tuple(name if name in PACKAGES else f"dive_fast.{name}" for name in rooms.split())
    return Rule(ours, None if libraries is None else tuple(libraries.split()), lazy)


# The longest name that a module's own name starts with decides. A name allows its submodules too.
RULES: dict[str, Rule] = {
    "dive_fast": rule("", ""),
    # ground
    "dive_fast.types": rule("", ""),
    "dive_fast.settings": rule("types", ""),
    "dive_fast.io": rule("types", ""),
    "dive_fast.words": rule("", ""),
    "dive_fast.progress": rule("words", "tqdm"),
    "dive_fast.json_files": rule("types io", ""),
    "dive_fast.outputs": rule("types io json_files", ""),
    "dive_fast.distributed": rule("types", "torch"),
    "dive_fast.tensorboard": rule("environment.optional", "torch"),
    "dive_fast.training_state": rule("types io json_files", "torch"),
    "dive_fast.environment": rule("types engines.registry", ""),
    # rooms
    "dive_fast.data": rule(BASICS, "PIL numpy"),
    "dive_fast.sampling": rule("types settings", "torch"),
    "dive_fast.unet": rule("types dive_kernels"),
    "dive_fast.models": rule(f"{BASICS} sampling unet"),
    "dive_fast.train": rule(f"{GROUND} data models sampling"),
    "dive_fast.encoder": rule(f"{GROUND} data models reid train"),
    "dive_fast.distil": rule(f"{GROUND} models sampling train"),
    "dive_fast.engines": rule(f"{BASICS} models.prompts sampling"),
    "dive_fast.engines.registry": rule("types", ""),
    "dive_fast.engines.torch_engine": rule(TORCH_BACKEND),
    "dive_fast.engines.compiled_engine": rule(TORCH_BACKEND),
    "dive_fast.synth": rule(
        f"{BASICS} data engines environment.optional models.prompts models.sampling_file models.student sampling"
    ),
    "dive_fast.synth.manifest": rule(f"{BASICS} synth.planfile synth.records"),
    "dive_fast.merge": rule(f"{BASICS} data environment.optional report.rows synth.manifest synth.provenance"),
    "dive_fast.report": rule(f"{BASICS} data synth.manifest"),
    "dive_fast.reid": rule(f"{GROUND} data environment synth.manifest synth.records report.html"),
    "dive_fast.quality": rule(
        f"{BASICS} __version__ data environment.optional reid synth.manifest synth.records synth.provenance report.html "
        "report.rows"
    ),
    "dive_fast.world": rule(f"{GROUND} data models sampling train"),
    "dive_fast.bench": rule(f"{BASICS} engines models sampling synth unet dive_export"),
    # Runs the code of another checkout too, so it needs little of ours.
    "dive_fast.bench.child": rule("engines sampling dive_export"),
    "dive_kernels": rule("", "torch triton cuda cudnn"),
    "dive_export": rule(
        f"{BASICS} models unet sampling dive_kernels engines.base engines.engine_folder engines.node_runner "
        "engines.tensorrt_api"
    ),
    # What calls everything; FRONT_ONLY holds the other direction.
    "dive_fast.experiments": rule("dive_fast dive_export"),
    "dive_fast.options": rule("types settings", ""),
    "dive_fast.commands": rule("dive_fast dive_export", "", lazy=True),
    "dive_fast.cli": rule(f"{BASICS} __version__ cli commands engines.registry environment options", "", lazy=True),
}
# Rooms that only the command line (and benchmarks, which are no part of the packages) may import.
FRONT_ONLY = ("dive_fast.cli", "dive_fast.commands", "dive_fast.experiments")


@dataclass(frozen=True)
class Import:
    """One imported module (or `module.name`), where, and whether it happens when the importer is imported."""

    target: str
    where: str
    eager: bool


def modules() -> list[tuple[str, Path]]:
    """Every module of the packages: dotted name and file."""
    found = []
    for package, base in PACKAGES.items():
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@cache
def imports(source: str, file: str) -> list[Import]:
    """Every import statement, those inside functions and under `if TYPE_CHECKING` too."""

    def walk(node: ast.AST, eager: bool) -> Iterator[Import]:
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, where, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (Import(f"{prefix}.{alias.name}", where, eager) for alias in node.names)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, eager and not function and not typing_only)

    return list(walk(ast.parse(source, file), True))


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def in_front(name: str) -> bool:
    return any(within(name, room) for room in FRONT_ONLY)


def rule_of(module: str) -> tuple[str, Rule]:
    """The rule with the longest name that `module` lies within."""
    name = max((name for name in RULES if within(module, name)), key=len)
    return name, RULES[name]


def violations(module: str, source: str, file: str) -> Iterator[str]:
    """One line for each import that the rule of `module` does not allow."""
    room, rule = rule_of(module)
    for found in imports(source, file):
        top = found.target.split(".")[0]
        if found.target.startswith("."):
            yield f"{found.where}: relative import {found.target!r}; write the full name"
        elif top in sys.stdlib_module_names or (rule.lazy and not found.eager):
            continue
        elif in_front(found.target) and not in_front(module):
            yield f"{found.where}: {room} may not import {found.target}, which only the command line imports"
        elif top in PACKAGES:
            if not any(within(found.target, allowed) for allowed in (room, *rule.ours)):
                yield f"{found.where}: {room} may not import {found.target}, only {', '.join(rule.ours) or 'itself'}"
        elif rule.libraries is not None and top not in rule.libraries:
            named = ", ".join(rule.libraries) or "the standard library"
            yield f"{found.where}: {room} may not import {top}, only {named}"


def test_who_may_import_whom() -> None:
    found = [
        line
        for module, path in modules()
        for line in violations(module, path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n" + "\n".join(found)


def test_every_module_has_a_rule_of_its_own_room() -> None:
    """Only dive_fast/__init__.py falls under the rule of the root, so a new room cannot be forgotten."""
    rootless = [
        str(path.relative_to(ROOT))
        for module, path in modules()
        if module != "dive_fast" and rule_of(module)[0] == "dive_fast"
    ]
    assert not rootless, f"add a rule to tests/test_imports.py for {', '.join(rootless)}"


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("dive_fast.sampling.noise", "import diffusers", "x.py:1: dive_fast.sampling may not import diffusers"),
        ("dive_fast.reid.training.train", "def f():\n    import dive_fast.synth.local", "x.py:2: dive_fast.reid may"),
        ("dive_fast.synth.manifest", "from dive_fast.synth import plan", "dive_fast.synth.manifest may not import"),
        ("dive_fast.models.lora", "import dive_export.onnx", "dive_fast.models may not import dive_export.onnx"),
        ("dive_fast.data.sysu", "from . import names", "relative import '..names'"),
        ("dive_fast.cli", "import torch", "dive_fast.cli may not import torch"),
        ("dive_fast.bench.run", "from dive_fast.experiments import arms", "which only the command line imports"),
        ("dive_fast.reid.data", "from dive_fast.synth.manifest import read_pairs", ""),
        ("dive_fast.commands.model", "def f():\n    import torch, dive_export", ""),
        ("dive_fast.cli", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", ""),
    ],
)
def test_the_checker_finds(module: str, source: str, reason: str) -> None:
    found = "\n".join(violations(module, source, "x.py"))
    assert reason in found if reason else not found


def circle(imported: dict[str, set[str]]) -> list[str]:
    """The files of one import circle, the first twice; empty where there is none."""
    try:
        graphlib.TopologicalSorter({name: targets - {name} for name, targets in imported.items()}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def file_imports() -> dict[str, set[str]]:
    """The files that each file imports, anywhere in it: type-only imports and those inside functions count."""
    files = dict(modules())
    imported: dict[str, set[str]] = {}
    for module, path in files.items():
        targets = {found.target for found in imports(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))}
        imported[module] = {t if t in files else t.rpartition(".")[0] for t in targets}
    return imported


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert not circle(file_imports())


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == {"b", "c"}
    assert not circle({"a": {"a", "b", "c"}, "b": {"c"}, "c": set()})


def test_test_files_share_helpers_by_way_of_support_only() -> None:
    """A test file or conftest that another file imports runs twice, and hides what it offers."""
    found = [
        f"{statement.where}: {statement.target} belongs in tests/support"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for statement in imports(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
        if statement.target.startswith("tests.")
        and any(part == "conftest" or part.startswith("test_") for part in statement.target.split(".")[:-1])
    ]
    assert not found, "\n" + "\n".join(found)


HEAVY = ("torch", "diffusers", "transformers", "peft", "onnxruntime", "onnx", "matplotlib", "numpy", "PIL", "triton")


@pytest.mark.parametrize(
    "statement",
    [
        "import dive_fast",
        "from dive_fast.cli import main; main(['--help'])",
        "from dive_fast.cli import main; main(['personalize', '--help'])",
        "import importlib; from dive_fast.cli import COMMANDS, locate; "
        "[importlib.import_module(f'dive_fast.commands.{locate(command)[0]}') for command in COMMANDS]",
        "from dive_fast.data.sets import parse_set; parse_set('sysu:PATH')",
        "import dive_fast.data.config, dive_fast.merge.config, dive_fast.quality.config, dive_fast.report.config",
        "import dive_fast.encoder.config, dive_fast.commands.encoder",
    ],
)
def test_a_fresh_process_loads_nothing_heavy(statement: str) -> None:
    code = f"""
import sys
try:
    {statement}
except SystemExit as stop:
    assert not stop.code
print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded:"
