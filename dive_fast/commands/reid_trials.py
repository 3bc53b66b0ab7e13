"""`dive-fast reid trials`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from dive_fast.commands.common import Device, Json, LastFile, PhotoSet, beside, finish, following, torch_device
from dive_fast.commands.reid_inputs import Recipe, Rerank, config_from, warn_of_pocket
from dive_fast.options import Changes
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import to_dict


def trials(
    real: Annotated[PhotoSet, "RegDB, as regdb:PATH; each trial trains and tests on lists of its own."],
    out: Annotated[Path, "Folder for a checkpoint per trial and trials.json."],
    config: Changes[ReidConfig],
    trials: Annotated[tuple[int, ...], "Trials, each with a model of its own."] = tuple(range(1, 11)),
    direction: Annotated[
        Literal["both", "ir-to-visible", "visible-to-ir"], "Direction in which the models are tested."
    ] = "both",
    recipe: Recipe = "pocket",
    rerank: Rerank = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train and test RegDB's ten models, one per trial; rerun to resume."""
    from dive_fast.reid.evaluation.rerank import RerankConfig
    from dive_fast.reid.evaluation.trials import DIRECTIONS, REPORT, run_trials

    if recipe == "pocket":
        warn_of_pocket("recipe pocket", "regdb")
    last = LastFile(out / REPORT, by_content=True)
    report = run_trials(
        real,
        config_from(recipe, config),
        out,
        trials=trials,
        directions=DIRECTIONS if direction == "both" else (direction,),
        rerank=RerankConfig() if rerank else None,
        dataset=f"regdb:{real.root}",
        device=torch_device(device),
    )
    shown = {"checkpoint": out / f"trial-{trials[0]}", "test": f"regdb:{real.root},trial={trials[0]}"}
    then = following("reid show", **shown, protocol="regdb", out=beside(out, "show"))
    finish(report.describe(), to_dict(report), json, then=then, kept=last.kept)
