"""A run's folder: the state it resumes from, and the weights and record that it ends with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dive_fast.io import atomic_path, canonical_json, read_json, sha256_file, write_json, write_jsonl
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.config import ReidConfig, config_from_dict
from dive_fast.types import InputError

WEIGHTS, BEST, RECORD, STATE, LOG = "model.safetensors", "best.safetensors", "reid.json", "state.pt", "log.jsonl"
Which = Literal["best", "last"]


@dataclass
class Progress:
    """How far a run is: `step` steps done, a row of the log for each, and the best validation so far with its weights.

    Those wait in the state, on the CPU, for the end of the run: a file of theirs could be newer than the state.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def finished(out: Path, run: dict[str, Any]) -> bool:
    """Whether `out` holds the result of `run`; that of another run raises `InputError`."""
    if not (out / RECORD).exists():
        return False
    record = read_json(out / RECORD, "reid checkpoint")
    if not isinstance(record, dict) or not _same(record, run):
        raise _other_run(out)
    return True


def save(out: Path, learner: dict[str, Any], progress: Progress, run: dict[str, Any]) -> None:
    """Writes what `resume` needs to go on, `learner` being what learns, and the log so far."""
    write_jsonl(out / LOG, progress.rows)
    with atomic_path(out / STATE) as path:
        torch.save({**learner, **vars(progress), "run": canonical_json(run)}, path)


def resume(out: Path, run: dict[str, Any]) -> tuple[dict[str, Any] | None, Progress]:
    """The last save: what learns (None if there is no save), and how far it is."""
    if not (out / STATE).exists():
        return None, Progress()
    try:
        state = torch.load(out / STATE, map_location="cpu", weights_only=True)
        stored = json.loads(state["run"])
        progress = Progress(state["step"], state["rows"], state.get("best"), state.get("best_weights", {}))
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{out / STATE} is damaged ({type(error).__name__}); delete it to train afresh") from error
    if not _same(stored, run):
        raise _other_run(out)
    return state, progress


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a model's tensors, on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def finish(out: Path, model: torch.nn.Module, progress: Progress, run: dict[str, Any], facts: dict[str, Any]) -> None:
    """Writes the log, the weights and, last, the record that makes the run a finished one."""
    write_jsonl(out / LOG, progress.rows)
    _write_weights(out / WEIGHTS, weights_of(model))
    record = {
        **run,
        **facts,
        "steps": progress.step,
        "loss": progress.rows[-1]["loss"],
        "sha256": sha256_file(out / WEIGHTS),
    }
    if progress.best is not None:
        _write_weights(out / BEST, progress.best_weights)
        record["best"] = {**progress.best, "file": BEST, "sha256": sha256_file(out / BEST)}
    write_json(out / RECORD, record)
    (out / STATE).unlink(missing_ok=True)


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    with atomic_path(path) as temporary:
        save_file(weights, temporary)


def _same(stored: Any, run: dict[str, Any]) -> bool:
    """Whether a record's config and images are those of `run`; a field that is younger than the record has its default."""
    run = json.loads(canonical_json(run))  # tuples as lists
    if not isinstance(stored, dict) or any(stored.get(key) != value for key, value in run.items() if key != "config"):
        return False
    config = stored.get("config")
    if config == run.get("config"):
        return True
    return isinstance(config, dict) and config_from_dict(config, RECORD) == config_from_dict(
        run.get("config"), "config"
    )


def _other_run(out: Path) -> InputError:
    return InputError(f"{out} holds a run with another config or other images; choose another out or delete it")


def load_model(
    checkpoint: Path | str, device: str = "cpu", which: Which | None = None
) -> tuple[ReidModel, ReidConfig, dict[str, Any]]:
    """The trained model in evaluation mode, its config, and `reid.json`; a damaged checkpoint raises `InputError`.

    `which` weights: those of the "last" step, or those that were "best" in validation; by default the best, if the run
    had a validation. The record's `sha256` is that of the weights loaded, and `which` says which they are.
    """
    checkpoint = Path(checkpoint)
    record = read_json(checkpoint / RECORD, "reid checkpoint")
    where = str(checkpoint / RECORD)
    if not isinstance(record, dict) or not {"config", "pids", "sha256"} <= set(record):
        raise InputError(f"{where}: config, pids or sha256 is missing; train again")
    config = config_from_dict(record["config"], where)
    which = which or ("best" if "best" in record else "last")
    name, described = (BEST, record.get("best")) if which == "best" else (WEIGHTS, record)
    if not isinstance(described, dict) or "sha256" not in described:
        raise InputError(f"{where}: the run had no validation, so no weights are the best; ask for the last ones")
    digest = described["sha256"]
    weights = checkpoint / name
    if not weights.is_file() or sha256_file(weights) != digest:
        raise InputError(f"{weights} is missing or not the file that {RECORD} describes; train again")
    model = ReidModel(replace(config.model, weights=None), len(record["pids"]))  # pretrained ones are long absorbed
    model.load_state_dict(load_file(weights))
    return model.eval().to(device), config, {**record, "sha256": digest, "which": which}
