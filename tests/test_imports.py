"""Who may import whom (docs/architecture.md), read off the source; and what a fresh `dive-fast --help` loads."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"dive_fast": ROOT, "dive_kernels": ROOT / "kernels", "dive_export": ROOT / "export"}
BASICS = ("dive_fast.types", "dive_fast.settings", "dive_fast.io")
GROUND = (*BASICS, "dive_fast.distributed", "dive_fast.tensorboard")
FRONT = (
    "dive_fast.__version__",
    "dive_fast.cli",
    "dive_fast.commands",
    "dive_fast.engines.registry",
    "dive_fast.environment",
    "dive_fast.options",
)


@dataclass(frozen=True)
class Rule:
    """What a module may import beside the standard library, itself and its own submodules; None = anything.

    With `lazy`, both lists hold for what runs on import only, and functions may import anything.
    """

    ours: tuple[str, ...]
    libraries: tuple[str, ...] | None = None
    lazy: bool = False


# The longest name that a module's own name starts with decides. A name allows its submodules too.
RULES: dict[str, Rule] = {
    "dive_fast": Rule((), ()),
    # ground
    "dive_fast.types": Rule((), ()),
    "dive_fast.settings": Rule(("dive_fast.types",), ()),
    "dive_fast.io": Rule(("dive_fast.types",), ()),
    "dive_fast.distributed": Rule(("dive_fast.types",), ("torch",)),
    "dive_fast.tensorboard": Rule(("dive_fast.types",), ("torch",)),
    "dive_fast.environment": Rule(("dive_fast.engines.registry",), ()),
    # rooms
    "dive_fast.data": Rule(BASICS, ("PIL", "numpy")),
    "dive_fast.sampling": Rule(("dive_fast.types", "dive_fast.settings"), ("torch",)),
    "dive_fast.unet": Rule(("dive_fast.types", "dive_kernels")),
    "dive_fast.models": Rule((*BASICS, "dive_fast.unet")),
    "dive_fast.train": Rule((*GROUND, "dive_fast.data", "dive_fast.models", "dive_fast.sampling")),
    "dive_fast.engines": Rule((*BASICS, "dive_fast.models.prompts", "dive_fast.sampling")),
    "dive_fast.engines.registry": Rule(("dive_fast.types",), ()),
    # The backends that run torch.
    "dive_fast.engines.torch_engine": Rule(
        (*BASICS, "dive_fast.engines", "dive_fast.models", "dive_fast.sampling", "dive_fast.unet", "dive_kernels")
    ),
    "dive_fast.engines.compiled_engine": Rule(
        (*BASICS, "dive_fast.engines", "dive_fast.models", "dive_fast.sampling", "dive_fast.unet", "dive_kernels")
    ),
    "dive_fast.synth": Rule(
        (*BASICS, "dive_fast.data", "dive_fast.engines", "dive_fast.models.prompts", "dive_fast.sampling")
    ),
    "dive_fast.synth.manifest": Rule((*BASICS, "dive_fast.synth.planfile", "dive_fast.synth.records")),
    "dive_fast.merge": Rule(
        (*BASICS, "dive_fast.data", "dive_fast.report.rows", "dive_fast.synth.manifest", "dive_fast.synth.provenance")
    ),
    "dive_fast.report": Rule((*BASICS, "dive_fast.data", "dive_fast.synth.manifest")),
    "dive_fast.reid": Rule(
        (
            *GROUND,
            "dive_fast.data",
            "dive_fast.environment.packages",
            "dive_fast.synth.manifest",
            "dive_fast.report.html",
        )
    ),
    "dive_fast.quality": Rule(
        (
            *BASICS,
            "dive_fast.__version__",
            "dive_fast.data",
            "dive_fast.reid",
            "dive_fast.synth.manifest",
            "dive_fast.synth.records",
            "dive_fast.synth.provenance",
            "dive_fast.report.html",
            "dive_fast.report.rows",
        )
    ),
    "dive_fast.world": Rule((*GROUND, "dive_fast.data", "dive_fast.models", "dive_fast.sampling", "dive_fast.train")),
    "dive_fast.bench": Rule(
        (
            *BASICS,
            "dive_fast.engines",
            "dive_fast.models",
            "dive_fast.sampling",
            "dive_fast.synth",
            "dive_fast.unet",
            "dive_export",
        )
    ),
    # Runs the code of another checkout too, so it needs little of ours.
    "dive_fast.bench.child": Rule(("dive_fast.engines", "dive_fast.sampling", "dive_export")),
    "dive_kernels": Rule((), ("torch", "triton", "cuda")),
    "dive_export": Rule(
        (
            *BASICS,
            "dive_fast.models",
            "dive_fast.unet",
            "dive_fast.sampling",
            "dive_kernels",
            "dive_fast.engines.base",
            "dive_fast.engines.engine_folder",
            "dive_fast.engines.node_runner",
            "dive_fast.engines.tensorrt_api",
        )
    ),
    # What calls everything; NOBODY_IMPORTS holds the other direction.
    "dive_fast.experiments": Rule(("dive_fast", "dive_export")),
    "dive_fast.options": Rule(("dive_fast.types", "dive_fast.settings"), ()),
    "dive_fast.commands": Rule(("dive_fast", "dive_export"), (), lazy=True),
    "dive_fast.cli": Rule((*BASICS, *FRONT), (), lazy=True),
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


def imports(source: str, file: str) -> Iterator[Import]:
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

    yield from walk(ast.parse(source, file), True)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


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
        elif any(within(found.target, name) for name in FRONT_ONLY) and not any(
            within(module, name) for name in FRONT_ONLY
        ):
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
    ],
)  # fmt: skip
def test_the_checker_finds(module: str, source: str, reason: str) -> None:
    assert reason in "\n".join(violations(module, source, "x.py"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dive_fast.reid.data", "from dive_fast.synth.manifest import samples"),
        ("dive_fast.commands.model", "def f():\n    import torch, dive_export"),
        ("dive_fast.cli", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_the_checker_allows(module: str, source: str) -> None:
    assert not list(violations(module, source, "x.py"))


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
        targets = {found.target for found in imports(path.read_text(encoding="utf-8"), str(path))}
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
