"""What the commands that train have in common: dry runs, loss plots, and processes that leave the report to the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from dive_fast.commands.common import WITHOUT_DRY_RUN, LastFile, finish

if TYPE_CHECKING:
    from dive_fast.train.forecast import Forecast

Plot = Annotated[Path | None, "PNG file to draw the loss curve into."]
DryRun = Annotated[bool, "Only report what the run would take, from a few timed steps; write nothing."]
R = TypeVar("R")


@dataclass(frozen=True)
class Training:
    """A training that writes `record` last, in its folder; made before any work, which a plot could not be written after."""

    record: Path
    plot: Path | None
    dry_run: bool
    json: bool
    phases: Sequence[str] = ("identities", "personalize")
    last: LastFile = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", LastFile(self.record))
        if self.plot is not None:
            import matplotlib  # noqa: F401  # a missing one is told now

            from dive_fast.outputs import PNG, check_new

            check_new(self.plot, PNG, overwrite=self.record.is_file())  # a finished run draws anew

    def run(self, learn: Callable[[], R], forecast: Callable[[], Forecast]) -> R | None:
        """Trains and draws the losses, or reports the forecast of a dry run.

        Returns what was trained; None after a dry run, and in all processes but the first.
        """
        from dive_fast.distributed import leading

        if self.dry_run:
            expected = forecast()
            if leading():
                finish(expected.text(), expected.summary(), self.json, then=WITHOUT_DRY_RUN)
            return None
        made = learn()
        if not leading():
            return None
        self._draw_losses()
        return made

    def _draw_losses(self) -> None:
        if self.plot is not None:
            from dive_fast.outputs import PNG, output_file
            from dive_fast.train.curves import plot_curves
            from dive_fast.train.run import loss_curves

            with output_file(self.plot, PNG) as fresh:
                plot_curves(loss_curves(self.record.parent, self.phases), fresh)
