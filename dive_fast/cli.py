"""The command `dive-fast`: assembles the commands, and turns errors into one sentence and an exit code.

0: done. 1: the work failed or was interrupted. 2: the input is bad. Rooms are imported inside the commands, so that
`--help` is instant and a missing package is only missed by the command that needs it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from dive_fast import __version__
from dive_fast.commands import (
    adapters,
    bench,
    demo,
    engine,
    machine,
    merge,
    model,
    prepare,
    quality,
    reid,
    report,
    synth,
    world,
)
from dive_fast.environment.packages import PACKAGES
from dive_fast.types import DiveError

_PACKAGE = str(Path(__file__).parent)


class _Root(TyperGroup):
    """Runs a command; what went wrong is said in one line, unless it is a bug, which keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DiveError as error:
            code, sentence = error.exit_code, str(error)
        except ModuleNotFoundError as error:
            extra = _extra_of(error.name)
            if extra is None:
                raise
            code, sentence = 1, f"{error.name} is not installed; pip install 'dive-fast[{extra}]'"
        except KeyboardInterrupt:
            code, sentence = 1, "interrupted; finished work is kept, run the same command again to continue"
        print(f"dive-fast: {sentence}", file=sys.stderr)
        raise typer.Exit(code)


def _extra_of(module: str | None) -> str | None:
    """The extra that brings a module that could not be found; None for a module that is none of ours to install."""
    extras = {wanted.module.split(".")[0]: wanted.extra for wanted in reversed(PACKAGES.values())}
    return extras.get((module or "").split(".")[0])


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are for the user, so without file and line; others look as Python shows them."""
    if category is UserWarning and filename.startswith(_PACKAGE):
        text = f"dive-fast: {message}\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dive-fast {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="dive-fast",
    help="RGB-infrared pairs of persons in bulk, from identities learned in RGB only. Start with `dive-fast demo`.",
    cls=_Root,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command()(demo.demo)
app.command()(machine.doctor)
app.add_typer(world.app, name="world")
app.command()(prepare.prepare)
app.command()(model.personalize)
app.command("import")(adapters.import_adapter)
app.command()(model.fuse)
app.command()(engine.export)
app.command()(engine.quantize)
app.command()(engine.build)
app.command()(engine.refit)
app.command("export-adapter")(adapters.export_adapter)
app.command()(synth.plan)
app.command()(synth.synth)
app.command()(synth.verify)
app.command()(synth.pack)
app.command()(merge.merge)
app.command()(merge.manifest)
app.command()(quality.score)
app.command("filter")(quality.filter_pairs)
app.command("compare-sets")(quality.compare_sets)
app.command()(quality.card)
app.command()(report.report)
app.command()(bench.bench)
app.command()(bench.capacity)
app.add_typer(reid.app, name="reid")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits; what the console script calls."""
    warnings.showwarning = _show_warning
    app(args=arguments, prog_name="dive-fast")


if __name__ == "__main__":
    main()
