"""Who may import whom (docs/architecture.md), read off the source; and what a fresh `dive-fast --help` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"dive_fast": ROOT, "dive_kernels": ROOT / "kernels", "dive_export": ROOT / "export"}
BASICS = ("dive_fast.types", "dive_fast.io")
TRAINING = ("dive_fast.ranks", "dive_fast.scalars")
FRONT = ("dive_fast.__version__", "dive_fast.cli", "dive_fast.commands", "dive_fast.doctor", "dive_fast.facts")


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
    "dive_fast.types": Rule((), ()),
    "dive_fast.io": Rule(("dive_fast.types",), ()),
    "dive_fast.ranks": Rule(("dive_fast.types",), ("torch",)),
    "dive_fast.scalars": Rule(("dive_fast.types",), ("torch",)),
    "dive_fast.data": Rule(BASICS, ("PIL", "numpy")),
    "dive_fast.models": Rule((*BASICS, "dive_kernels")),
    "dive_fast.sampling": Rule(("dive_fast.types",), ("torch",)),
    "dive_fast.train": Rule((*BASICS, *TRAINING, "dive_fast.data", "dive_fast.models", "dive_fast.sampling")),
    "dive_fast.trt": Rule(BASICS, ()),
    "dive_fast.engines": Rule((*BASICS, "dive_fast.models.prompts", "dive_fast.trt")),
    "dive_fast.engines.torch_engine": Rule((*BASICS, "dive_fast.engines", "dive_fast.models", "dive_kernels")),
    "dive_fast.engines.compiled_engine": Rule((*BASICS, "dive_fast.engines", "dive_fast.models", "dive_kernels")),
    "dive_fast.engines.load": Rule((*BASICS, "dive_fast.engines", "dive_fast.models")),  # opens what torch_engine runs
    "dive_fast.synth": Rule(
        (*BASICS, "dive_fast.data", "dive_fast.engines", "dive_fast.models.prompts", "dive_fast.sampling")
    ),
    "dive_fast.synth.manifest": Rule((*BASICS, "dive_fast.synth.planfile", "dive_fast.synth.records")),
    "dive_fast.merge": Rule((*BASICS, "dive_fast.data", "dive_fast.synth.manifest", "dive_fast.synth.marks")),
    "dive_fast.reid": Rule(
        (*BASICS, *TRAINING, "dive_fast.data", "dive_fast.facts", "dive_fast.synth.manifest", "dive_fast.report.html")
    ),
    "dive_fast.quality": Rule(
        (
            *BASICS,
            "dive_fast.__version__",
            "dive_fast.data",
            "dive_fast.reid",
            "dive_fast.synth.manifest",
            "dive_fast.synth.records",  # is_inside
            "dive_fast.synth.marks",  # which image says that it is generated
            "dive_fast.report.html",  # pictures on the filter's page
        )
    ),
    "dive_fast.world": Rule(
        (*BASICS, *TRAINING, "dive_fast.data", "dive_fast.models", "dive_fast.sampling", "dive_fast.train")
    ),
    "dive_fast.bench": Rule(
        (
            *BASICS,
            "dive_fast.engines",
            "dive_fast.models",
            "dive_fast.sampling",
            "dive_fast.synth",
            "dive_export",  # onnxruntime, of our own and as a peer; how much memory a part of the work held
        )
    ),
    "dive_fast.bench.child": Rule(("dive_fast.engines", "dive_fast.sampling", "dive_export")),  # of old versions, too
    "dive_fast.cli": Rule((*BASICS, *FRONT), ("typer",), lazy=True),
    "dive_fast.commands": Rule((*BASICS, *FRONT), ("typer",), lazy=True),
    "dive_fast.doctor": Rule(("dive_fast.facts",), ()),
    "dive_fast.facts": Rule((), ()),
    "dive_fast.report": Rule((*BASICS, "dive_fast.data", "dive_fast.synth.manifest", "dive_fast.synth.planfile")),
    # The walk from end to end, for the demo and the study: they call every room, and only commands call them.
    "dive_fast.arms": Rule((*BASICS, "dive_fast.data")),
    "dive_fast.pipeline": Rule(("dive_fast", "dive_export")),
    "dive_fast.study": Rule(("dive_fast",)),
    "dive_fast.demo": Rule(("dive_fast",)),
    "dive_kernels": Rule((), ("torch", "triton", "cuda")),
    # Beside the model: the folder's checks and the stepwise run of a graph that engines have, and sampling for calibration.
    "dive_export": Rule(
        (
            *BASICS,
            "dive_fast.models",
            "dive_fast.sampling",
            "dive_fast.trt",
            "dive_kernels",
            "dive_fast.engines.onnx_engine",
            "dive_fast.engines.slices",
        )
    ),
}


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
        ("dive_fast.reid.train", "def f():\n    from dive_fast.synth import local", "x.py:2: dive_fast.reid may not"),
        ("dive_fast.synth.manifest", "from dive_fast.synth import plan", "dive_fast.synth.manifest may not import"),
        ("dive_fast.models.lora", "import dive_export.onnx", "dive_fast.models may not import dive_export.onnx"),
        ("dive_fast.data.sysu", "from . import names", "relative import '..names'"),
        ("dive_fast.cli", "import torch", "dive_fast.cli may not import torch"),
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


HEAVY = ("torch", "diffusers", "transformers", "peft", "onnxruntime", "onnx", "matplotlib", "numpy", "PIL", "triton")


@pytest.mark.parametrize("statement", ["import dive_fast", "from dive_fast.cli import main; main(['--help'])"])
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
