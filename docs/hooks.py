"""What the site adds to docs/: pages and pictures of the repository, and a reference page for each room of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
ROOT_FILES = (
    "benchmarks/results/study/compare.png",
    "benchmarks/results/study/curve.png",
    "examples/pocket_world.ipynb",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name in ROOT_PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for name in ROOT_FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    rooms = reference()
    listed = "\n".join(f"- [{name}](reference/{name}.md)" for name in rooms)
    files.append(File.generated(config, "reference.md", content=f"# Reference\n\nMade from docstrings.\n\n{listed}\n"))
    for name in rooms:
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links from docs/ to what the site adds of the repository into links within the site."""
    for name in (*ROOT_PAGES, *ROOT_FILES):
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown


def reference() -> list[str]:
    """Returns the modules that get a page: the rooms and the files of the package's first level."""
    package = ROOT / "dive_fast"
    rooms = [folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()]
    files = [file.stem for file in package.glob("*.py") if not file.stem.startswith("_")]
    return sorted(f"dive_fast.{name}" for name in (*rooms, *files))
