"""A run's folder: the state it resumes from, and the weights and record that it ends with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dive_fast.io import atomic_path, canonical_json, read_json, sha256_file, write_json, write_jsonl
from dive_fast.reid.config import ReidConfig, config_from_dict
from dive_fast.reid.dataset import ImageSet
from dive_fast.reid.model import ReidModel
from dive_fast.reid.sampler import PairSampler
from dive_fast.types import InputError

WEIGHTS, RECORD, STATE, LOG = "model.safetensors", "reid.json", "state.pt", "log.jsonl"


def finished(out: Path, run: dict[str, Any]) -> bool:
    """Whether `out` holds the result of `run`; that of another run raises `InputError`."""
    if not (out / RECORD).exists():
        return False
    record = read_json(out / RECORD, "reid checkpoint")
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in _plain(run).items()):
        raise _other_run(out)
    return True


def save(
    out: Path,
    model: ReidModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    rows: list[dict[str, float]],
    run: dict[str, Any],
) -> None:
    """Writes what `resume` needs to go on after `step` steps, and the log so far."""
    write_jsonl(out / LOG, rows)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "rows": rows,
        "run": canonical_json(run),
    }
    with atomic_path(out / STATE) as path:
        torch.save(state, path)


def resume(
    out: Path, model: ReidModel, optimizer: torch.optim.Optimizer, run: dict[str, Any]
) -> tuple[int, list[dict[str, float]]]:
    """Loads the last save into `model` and `optimizer`; returns the steps done and their log."""
    if not (out / STATE).exists():
        return 0, []
    try:
        state = torch.load(out / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{out / STATE} is damaged ({type(error).__name__}); delete it to train afresh") from error
    if state["run"] != canonical_json(run):
        raise _other_run(out)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["rows"]


def finish(
    out: Path,
    model: ReidModel,
    images: ImageSet,
    sampler: PairSampler,
    steps: int,
    rows: list[dict[str, float]],
    run: dict[str, Any],
) -> None:
    """Writes the log, the weights and, last, the record that makes the run a finished one."""
    write_jsonl(out / LOG, rows)
    with atomic_path(out / WEIGHTS) as path:
        save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, path)
    record = {
        **run,
        "pids": list(images.pids),
        "images": len(images),
        "infrared": int(images.infrared.sum()),
        "synthetic": int(images.synthetic.sum()),
        "dropped": list(sampler.dropped),
        "steps": steps,
        "loss": rows[-1]["loss"],
        "sha256": sha256_file(out / WEIGHTS),
    }
    write_json(out / RECORD, record)
    (out / STATE).unlink(missing_ok=True)


def _other_run(out: Path) -> InputError:
    return InputError(f"{out} holds a run with another config or other images; choose another out or delete it")


def _plain(value: Any) -> Any:
    """`value` as it comes back from JSON (tuples as lists)."""
    return json.loads(canonical_json(value))


def load_model(checkpoint: Path | str, device: str = "cpu") -> tuple[ReidModel, ReidConfig, dict[str, Any]]:
    """The trained model in evaluation mode, its config, and `reid.json`; a damaged checkpoint raises `InputError`."""
    checkpoint = Path(checkpoint)
    record = read_json(checkpoint / RECORD, "reid checkpoint")
    where = str(checkpoint / RECORD)
    if not isinstance(record, dict) or not {"config", "pids", "sha256"} <= set(record):
        raise InputError(f"{where}: config, pids or sha256 is missing; train again")
    config = config_from_dict(record["config"], where)
    weights = checkpoint / WEIGHTS
    if not weights.is_file() or sha256_file(weights) != record["sha256"]:
        raise InputError(f"{weights} is missing or not the file that {RECORD} describes; train again")
    model = ReidModel(replace(config.model, weights=None), len(record["pids"]))  # pretrained ones are long absorbed
    model.load_state_dict(load_file(weights))
    return model.eval().to(device), config, record
