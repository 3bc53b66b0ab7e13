"""A run's folder: the state that it resumes from, and the final weights and record."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from dive_fast.io import (
    atomic_encode,
    atomic_write,
    canonical_json,
    clear_disk_errors,
    sha256_file,
    write_json,
    write_jsonl,
)
from dive_fast.json_files import parse_json, read_json
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.models.weights import read_state as read_weights
from dive_fast.reid.training.config import ReidConfig, config_from_dict
from dive_fast.settings import has_type
from dive_fast.training_state import damaged_state, read_state, step_of
from dive_fast.types import InputError, shown

WEIGHTS, BEST, RECORD, STATE, LOG = "model.safetensors", "best.safetensors", "reid.json", "state.pt", "log.jsonl"
Which = Literal["best", "last"]


@dataclass
class Progress:
    """The steps done, a log row for each, and the best validation so far with its weights.

    The best weights stay in the state, on the CPU, until the run ends: a file of theirs could be newer than the state.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def finished(out: Path, run: dict[str, Any]) -> bool:
    """Returns whether `out` holds the result of `run`; raises `InputError` for the result of another run."""
    if not (out / RECORD).exists():
        return False
    _check_same(read_json(out / RECORD, "reid checkpoint"), run, out)
    with clear_disk_errors(out):
        (out / STATE).unlink(missing_ok=True)  # of a run that was killed at its very end
    return True


def start(out: Path, state: dict[str, Any], run: dict[str, Any]) -> None:
    """Marks `out` as the folder of `run` by its first state; raises `InputError` for files that no run left there."""
    foreign = [name for name in (WEIGHTS, BEST, LOG) if (out / name).exists()]
    if foreign:
        raise InputError(f"{out / foreign[0]} is of no run that is known here; choose another --out or move it away")
    save(out, state, Progress(), run)


def save(out: Path, state: dict[str, Any], progress: Progress, run: dict[str, Any]) -> None:
    """Writes what `resume` returns, and the log."""
    atomic_encode(out / STATE, partial(torch.save, {**state, **vars(progress), "run": canonical_json(run)}))
    write_jsonl(out / LOG, progress.rows)


def resume(out: Path, run: dict[str, Any]) -> tuple[dict[str, Any] | None, Progress]:
    """Returns the train state of the last save (None without one) and the progress."""
    if not (out / STATE).exists():
        return None, Progress()
    state = read_state(out / STATE)
    with damaged_state(out / STATE):
        stored = parse_json(state["run"].encode())
        progress = Progress(**{f.name: state[f.name] for f in fields(Progress)})
        _check_progress(progress, state["model"])
    _check_same(stored, run, out)
    return state, progress


def _check_progress(progress: Progress, weights: dict[str, Tensor]) -> None:
    """Raises an error of any kind for progress that no training of a model with these weights made."""
    rows, best = progress.rows, progress.best
    if [row["step"] for row in rows] != list(range(1, step_of(vars(progress), len(rows)) + 1)):
        raise ValueError("its log is not of its steps")
    logged = [*rows, {"val_map": 0.0} if best is None else best]
    if not has_type(logged, list[dict[str, float]]) or any("loss" not in row for row in rows):
        raise ValueError("its log holds no numbers")
    if not all(math.isfinite(value) for row in logged for value in row.values()):
        raise ValueError("its log holds numbers that are not finite")
    if best is not None and ("val_map" not in best or _shapes(progress.best_weights) != _shapes(weights)):
        raise ValueError("its best weights have no score, or are of another model")


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Returns a copy of a model's tensors, on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def finish(
    out: Path, model: torch.nn.Module, progress: Progress, run: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Writes the log, the weights and, last, the record, which marks the run as finished."""
    write_jsonl(out / LOG, progress.rows)
    _write_weights(out / WEIGHTS, weights_of(model))
    record = {
        **run,
        **metadata,
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
    atomic_write(path, save_tensors(weights))


def _check_same(stored: Any, run: dict[str, Any], out: Path) -> None:
    """Raises `InputError` unless a record has the config and images of `run`."""
    run = json.loads(canonical_json(run))  # tuples as lists
    if not isinstance(stored, dict) or any(stored.get(key) != value for key, value in run.items()):
        raise InputError(f"{out} holds a run with another config or other images; choose another --out or delete it")


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Returns `reid.json` of a finished training; another or a damaged one raises `InputError`."""
    path = checkpoint / RECORD
    record = read_json(path, "reid checkpoint")
    if not isinstance(record, dict) or not {"config", "pids", "sha256"} <= set(record):
        raise InputError(f"{path}: config, pids or sha256 is missing; train again")
    pids = record["pids"]
    if not isinstance(pids, list) or not pids or not all(isinstance(pid, str) for pid in pids):
        raise InputError(f"{path} lists no identities (pids) of a training; train again")
    return record


def checkpoint_config(checkpoint: Path) -> ReidConfig:
    """Returns the settings of a finished training; a damaged checkpoint raises `InputError`."""
    return config_from_dict(read_record(checkpoint)["config"], str(checkpoint / RECORD))


def _fill(model: ReidModel, path: Path) -> None:
    """Loads a model's weights; raises `InputError` unless the file holds each of them, and nothing else."""
    state, wanted = read_weights(path), model.state_dict()
    wrong = sorted(
        {*state, *wanted} - {name for name in state if name in wanted and state[name].shape == wanted[name].shape}
    )
    if wrong:
        raise InputError(f"{path} lacks {shown(wrong[0])} of this model, or holds another in its place; train again")
    model.load_state_dict(state)


def load_model(
    checkpoint: Path | str, device: str = "cpu", which: Which | None = None
) -> tuple[ReidModel, ReidConfig, dict[str, Any]]:
    """Returns the trained model in evaluation mode, its config, and `reid.json`.

    `which` selects the weights of the "last" step or the "best" in validation; by default the best if the run had a
    validation. The record's `sha256` is that of the loaded weights, and `which` says which they are. Raises `InputError`
    for a damaged checkpoint.
    """
    checkpoint = Path(checkpoint)
    record = read_record(checkpoint)
    where = str(checkpoint / RECORD)
    config = config_from_dict(record["config"], where)
    which = which or ("best" if "best" in record else "last")
    name, described = (BEST, record.get("best")) if which == "best" else (WEIGHTS, record)
    if not isinstance(described, dict) or "sha256" not in described:
        raise InputError(f"{where}: the run had no validation, so it has no best weights; load the last ones")
    digest = described["sha256"]
    weights = checkpoint / name
    if not weights.is_file() or sha256_file(weights) != digest:
        raise InputError(f"{weights} is missing or not the file that {RECORD} describes; train again")
    model = ReidModel(
        replace(config.model, weights=None), len(record["pids"])
    )  # no pretrained weights: these replace them
    _fill(model, weights)
    return model.eval().to(device), config, {**record, "sha256": digest, "which": which}
