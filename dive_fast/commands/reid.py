"""`dive-fast reid`: training, evaluating and comparing cross-modality re-identification models."""

from __future__ import annotations

import typer

from dive_fast.commands.reid_compare import compare
from dive_fast.commands.reid_eval import evaluate
from dive_fast.commands.reid_show import show
from dive_fast.commands.reid_train import train
from dive_fast.commands.reid_trials import trials

app = typer.Typer(help="Person re-identification, infrared to visible: what synthetic pairs are good for.")
app.command()(train)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(show)
app.command()(trials)
