"""The study: the walk in a folder that is tied to its settings, and how paired-only gains from longer training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dive_fast.encoder.folder import Encoder
from dive_fast.experiments.arms import BASELINE, heldout_sides, oracle_infrared, paired_photos
from dive_fast.experiments.config import StudyConfig
from dive_fast.experiments.networks import open_networks
from dive_fast.experiments.pictures import plot_people
from dive_fast.experiments.pipeline import Walk, run_walk
from dive_fast.io import brief, canonical_json, write_json
from dive_fast.json_files import read_json
from dive_fast.models import Adapter, load_bundle
from dive_fast.outputs import claim_folder
from dive_fast.reid.comparison.lengths import train_lengths
from dive_fast.reid.comparison.plots import plot_lengths
from dive_fast.types import InputError, shown, to_dict

SETTINGS = "settings.json"
_FREE = ("seeds", "curve", "autoencoder", "workers")  # add or leave out whole runs, or change rounding at most


def run_study(config: StudyConfig, out: Path) -> dict[str, Any]:
    """Runs the study in `out`, or resumes it; writes and returns `out/study.json`.

    Draws some people, `out/people.png`, and mAP of paired-only by length of training, `out/curve.png`. Finished
    work is not repeated. More seeds, lengths of the curve and the arm autoencoder may be added to a study. Raises
    `InputError` before any work, as `open_study`.
    """
    with open_study(config, out):
        walk = run_walk(config, out)
        plot_people(walk.photos, walk.infrared, oracle_infrared(walk.world, 1), out / "people.png")
        curve = _curve(config, walk, out) if config.curve else {}
        result = {
            "config": asdict(config),
            "seconds": walk.timings.seconds,
            "synth": asdict(walk.summary),
            "quality": walk.quality,
            "comparison": asdict(walk.comparison),
            "curve": [{"steps": steps, "map": score} for steps, score in curve.items()],
        }
        write_json(out / "study.json", result)
    return result


@contextmanager
def open_study(config: StudyConfig, out: Path) -> Iterator[None]:
    """Makes `out` the folder of a study with these settings, or checks that it is, and locks it for the block.

    Removes what a killed run left half written. Raises `InputError` for a folder of other settings or other files, and as
    `open_networks`.
    """
    adapter, encoder = open_networks(config)
    settings, path = study_settings(config, adapter, encoder), out / SETTINGS
    if path.exists():
        _check_same(read_json(path, "study"), settings, out)
    with claim_folder(out, SETTINGS, settings, "study", sources=()):
        yield


def study_settings(config: StudyConfig, adapter: Adapter | None, encoder: Encoder | None) -> dict[str, Any]:
    """Returns what every result of a study depends on, by dotted name; networks by fingerprint, as JSON has it."""
    values = {name: value for name, value in to_dict(config).items() if name not in _FREE}
    values["model"] = load_bundle(config.model).fingerprint[:12]
    values["adapter"] = None if adapter is None else adapter.fingerprint[:12]
    values["encoder"] = None if encoder is None else encoder.fingerprint[:12]
    return dict(_flat(json.loads(canonical_json(values))))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_same(stored: object, settings: dict[str, Any], out: Path) -> None:
    """Raises `InputError` that names the settings that differ."""
    if not isinstance(stored, dict):
        raise InputError(f"{out / SETTINGS} holds no settings of a study; delete it or choose another --out")
    names = [name for name in sorted({*stored, *settings}) if stored.get(name) != settings.get(name)]
    if names:
        first = (f"{brief(name, 80)} {shown(stored.get(name))} (now {shown(settings.get(name))})" for name in names[:5])
        differing = f"{', '.join(first)}{', ...' if len(names) > 5 else ''}"
        raise InputError(
            f"{out} holds a study with other settings: {differing}; give the same settings to resume it, or choose another"
            " --out"
        )


def _curve(config: StudyConfig, walk: Walk, out: Path) -> dict[int, float]:
    """Trains paired-only for every length of the curve, and draws mAP in percent by steps."""
    query, gallery = heldout_sides(walk.world)
    reid = replace(config.reid, seed=config.seeds[0])
    lengths = sorted(set(config.curve))
    with walk.timings.stage("curve"):
        samples, folder = paired_photos(walk.world), out / "compare"
        maps = train_lengths(BASELINE, samples, query, gallery, reid, lengths, folder, workers=config.workers)
    plot_lengths(maps, BASELINE, config.reid.steps, out / "curve.png")
    return maps
