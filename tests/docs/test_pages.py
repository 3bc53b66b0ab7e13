"""All pages: their command lines parse, the options they name exist, their links lead somewhere, and they wrap at 120."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from dive_fast import cli, options
from tests.support.cli import function_of, parse
from tests.support.pages import PAGES, ROOT, command_lines, prose

SOURCES = ("dive_fast", "export", "kernels", "benchmarks", "examples", "tests")
# Options of torchrun and accelerate, of other people's trainers, and of our benchmarks.
OTHERS = {"--nproc-per-node", "--multi_gpu", "--dataset", "--trial", "--table", "--only", "--cases"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


@cache
def flags() -> set[str]:
    """Every option of every command."""
    found = {option.flag for command in cli.COMMANDS for option in options.options(function_of(command))}
    return found | {f"--no-{flag[2:]}" for flag in found} | {"--help", "--json"}


def anchors(text: str) -> set[str]:
    """The places in a page that a link can name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_its_command_lines_parse(page: Path) -> None:
    for words in command_lines(page.read_text(encoding="utf-8")):
        parse([word.replace("$SLURM_ARRAY_TASK_ID", "0") for word in words])


def test_the_pages_have_command_lines() -> None:
    counts = {page.name: len(command_lines(page.read_text(encoding="utf-8"))) for page in PAGES}
    without = {"CONTRIBUTING.md", "architecture.md"}
    assert {name for name, count in counts.items() if not count} == without
    assert sum(counts.values()) >= 70


@every_page
def test_the_options_in_its_sentences_exist(page: Path) -> None:
    spans = re.findall(r"`([^`]+)`", prose(page.read_text(encoding="utf-8")))
    named = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named - flags() - OTHERS == set()


@every_page
def test_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


@every_page
def test_its_lines_wrap_at_120(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    # Tables are one line a row, and a word that does not fit, like a long link, has a line of its own.
    long = [line for line in text.splitlines() if len(line) > 120 and "|" not in line and " " in line.strip()]
    assert long == []


def test_the_pages_that_the_code_names_exist() -> None:
    files = [ROOT / "Makefile", *(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))]
    named = {page for file in files for page in re.findall(r"docs/[\w-]+\.md", file.read_text(encoding="utf-8"))}
    assert {"docs/engines.md", "docs/log.md"} <= named
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []
