"""The walk from photos to pairs in one place, for the demo and the study: learn, fuse, export, plan, synthesize."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dive_fast.engines import Engine, load_engine
from dive_fast.models import fuse, load_adapter, load_bundle
from dive_fast.models.adapter import Adapter
from dive_fast.models.bundle import save_bundle
from dive_fast.sampling.config import STRENGTH, Sampling
from dive_fast.synth.local import Summary, synthesize
from dive_fast.synth.manifest import samples as manifest_samples
from dive_fast.synth.plan import make_plan
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.personalize import personalize
from dive_fast.types import PairMode, Sample


@dataclass(frozen=True)
class PairConfig:
    """How pairs are made; `per_camera` counts pairs per identity and infrared camera."""

    mode: PairMode = "real-rgb"
    per_camera: int = 5
    sampling: Sampling = field(default_factory=Sampling)
    strength: float = STRENGTH
    seed: int = 0
    rows: int = 64
    infrared: tuple[str, ...] = ("cam3", "cam6")
    visible: tuple[str, ...] = ("cam1", "cam4")  # synthetic mode only


class Timings:
    """Seconds by stage, in the order in which the stages ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 1)


def learn_missing(
    model: str | Path, adapter: str | Path, photos: Sequence[Sample], out: Path, config: PersonalizeConfig
) -> Adapter:
    """The adapter, extended by those people of `photos` whom it does not know yet; only their rows learn."""
    known = load_adapter(adapter)
    pids = {identity.pid for identity in known.identities}
    new = [s for s in photos if s.pid not in pids]
    if not new:
        return known
    return personalize(load_bundle(model), new, out, config, onto=known)


def build_engine(model: str | Path, adapter: Adapter, work: Path, rows: int, threads: int | None = None) -> Engine:
    """Fuses and exports into folders of `work` named by the adapter (so each is made once), and opens the engine."""
    from dive_export import export_engine

    name = adapter.fingerprint[:12]
    fused, engine = work / f"fused-{name}", work / f"engine-{name}"
    if not fused.is_dir():  # save_bundle leaves a whole folder or none
        save_bundle(fuse(load_bundle(model), adapter), fused)
    export_engine(fused, engine, rows_max=rows)
    return load_engine(engine, threads=threads)


def make_pairs(
    engine: Engine, photos: Sequence[Sample], photo_root: Path, out: Path, config: PairConfig
) -> tuple[list[Sample], Summary]:
    """Pairs of the people of `photos` in `out` (resumed if begun); the generated samples and what the run took."""
    height, width = engine.spec.profile.height, engine.spec.profile.width
    plan = make_plan(
        mode=config.mode,
        pids=sorted({s.pid for s in photos}),
        cameras=engine.prompts.table.cameras,
        ir=config.infrared,
        rgb=config.visible if config.mode == "synthetic" else (),
        pairs_per_identity=config.per_camera,
        seed=config.seed,
        sampling=config.sampling,
        height=height,
        width=width,
        model_fingerprint=engine.spec.model_fingerprint,
        photos=None if config.mode == "synthetic" else photos,
        photo_root=None if config.mode == "synthetic" else photo_root,
        strength=config.strength,
    )
    summary = synthesize(plan, engine, out, rows=config.rows)
    return [s for s in manifest_samples(out) if s.source == "synthetic"], summary
