"""`dive-fast world study`: measures what synthetic infrared is worth, with one recipe and equal seeds for every arm."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dive_fast.experiments.config import StudyConfig
from dive_fast.experiments.pipeline import run_walk
from dive_fast.io import write_json


def run_study(config: StudyConfig, out: Path) -> dict[str, Any]:
    """Runs the walk in `out`, or resumes it; writes and returns `out/study.json`."""
    walk = run_walk(config, out)
    result = {
        "config": asdict(config),
        "seconds": walk.timings.seconds,
        "synth": asdict(walk.summary),
        "comparison": asdict(walk.comparison),
    }
    write_json(out / "study.json", result)
    return result
