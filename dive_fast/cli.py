"""The command `dive-fast`: finds and runs a command, and turns errors into one sentence and an exit code.

Exit codes: 0 done; 1 the work failed or was interrupted; 2 bad input. Only the module of the given command is imported.
"""

from __future__ import annotations

import ast
import sys
import warnings
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from dive_fast import __version__
from dive_fast.options import call
from dive_fast.progress import set_quiet, write_line
from dive_fast.types import DiveError, InputError, shown
from dive_fast.words import json_line

ABOUT = "RGB-infrared pairs of persons in bulk, from identities learned in RGB only. Start with `dive-fast demo`."
GROUPS = {
    "world": "The pocket world: seeded people, cameras and photos, for trying everything out.",
    "reid": "Person re-identification, infrared to visible: measures what synthetic infrared is worth.",
}
# The words of each command: its module in dive_fast.commands, and its function unless it is the last word.
COMMANDS = {
    "demo": "demo",
    "doctor": "machine",
    "world sheet": "world",
    "world make": "world",
    "world train-base": "world",
    "world train-tagger": "world",
    "world study": "world",
    "world quality": "kept:world_quality",
    "prepare": "prepare",
    "personalize": "model",
    "train-encoder": "encoder",
    "encode": "encoder",
    "virtual": "encoder",
    "import": "adapters:import_adapter",
    "fuse": "model",
    "distil": "distil",
    "distil-decoder": "distil",
    "export": "engine",
    "quantize": "engine",
    "build": "engine",
    "refit": "engine",
    "export-adapter": "adapters",
    "plan": "synth",
    "synth": "synth",
    "verify": "synth",
    "pack": "synth",
    "merge": "merge",
    "manifest": "merge",
    "score": "quality",
    "filter": "quality:filter_pairs",
    "compare-sets": "quality",
    "identity-kept": "kept",
    "card": "quality",
    "report": "report",
    "bench": "bench",
    "capacity": "bench",
    "reid train": "reid_train",
    "reid eval": "reid_eval:evaluate",
    "reid compare": "reid_compare",
    "reid trials": "reid_trials",
    "reid show": "reid_show",
}
_PACKAGE = Path(__file__).parent


def locate(command: str) -> tuple[str, str]:
    """Returns the module (in dive_fast.commands) and the function of a command."""
    module, _, function = COMMANDS[command].partition(":")
    return module, function or command.split()[-1].replace("-", "_")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits; the entry point of the console script."""
    words = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    summary: dict[str, Any] = {}
    try:
        code, sentence = _run(words), ""
    except DiveError as error:
        code, sentence, summary = error.exit_code, str(error), error.summary
    except KeyboardInterrupt:
        code, sentence = 1, "interrupted; finished work is kept, run the same command again to continue"
    except Exception as error:
        from dive_fast.environment.optional import missing

        lacking = missing(error.name or "") if isinstance(error, ModuleNotFoundError) else None
        if lacking is None:  # a bug, whose traceback is wanted
            _print_failure(words, f"{type(error).__name__}: {error}", 1, summary)
            raise
        code, sentence = 1, f"this command needs {lacking}"
    if sentence:
        print(f"dive-fast: {sentence}", file=sys.stderr)
        _print_failure(words, sentence, code, summary)
    raise SystemExit(code)


def _print_failure(words: list[str], sentence: str, code: int, summary: dict[str, Any]) -> None:
    """Prints the last line of a command that failed, where --json wants one."""
    if "--json" in words:
        print(json_line({**summary, "error": sentence, "exit_code": code}))


def _run(words: list[str]) -> int:
    group = words[0] if words and words[0] in GROUPS else ""
    rest = words[1:] if group else words
    if words == ["--version"]:
        print(f"dive-fast {__version__}")
    elif not rest or rest[0] in ("--help", "-h"):
        print(_overview(group))
        return 0 if rest else 2
    else:
        set_quiet("--quiet" in words)
        command = f"{group} {rest[0]}".strip()
        if command not in COMMANDS:
            raise InputError(f"no command {shown(command)}. See {f'dive-fast {group}'.strip()} --help.")
        module, function = locate(command)
        call(getattr(import_module(f"dive_fast.commands.{module}"), function), rest[1:], f"dive-fast {command}")
    return 0


def _overview(group: str) -> str:
    """Returns the help that lists the commands of a group; "" is the top, which lists the groups too."""
    start = f"{group} " if group else ""
    rows: dict[str, str] = {}
    for command in COMMANDS:
        if command.startswith(start):
            name, *below = command.removeprefix(start).split()
            rows[name] = GROUPS[name] if below else _summary(command)
    return "\n".join(
        [
            f"usage: dive-fast {start}COMMAND [OPTIONS]\n",
            f"{GROUPS[group] if group else ABOUT}\n",
            "Commands:",
            *(f"  {name:16}{text}" for name, text in rows.items()),
            *([] if group else ["\n--version shows the version; COMMAND --help shows a command's options."]),
        ]
    )


def _summary(command: str) -> str:
    """Returns the first line of a command's docstring, without importing its module."""
    module, name = locate(command)
    tree = ast.parse((_PACKAGE / "commands" / f"{module}.py").read_text("utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(function) or "").split("\n")[0]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a warning of this package without file and line, and others as Python does."""
    if category is UserWarning and filename.startswith(str(_PACKAGE)):
        text = f"dive-fast: {message}"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
    write_line(text)


if __name__ == "__main__":
    main()
