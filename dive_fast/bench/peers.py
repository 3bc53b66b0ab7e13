"""Our engine and its peers on the same images: equal noise, rows, steps and precision, parity first, then time in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dive_fast.bench import diffusers_peer
from dive_fast.bench.batch import bench_plan, render, start_of
from dive_fast.bench.config import BASELINES
from dive_fast.bench.parity import Allowance, Parity, exact_images, parity, worst_rms
from dive_fast.bench.timing import Ratio, Spread, interleaved, ratio, spread
from dive_fast.engines import Engine, load_engine
from dive_fast.engines.base import Request
from dive_fast.engines.torch_engine import DTYPES
from dive_fast.io import brief
from dive_fast.sampling.config import PRESETS, Sampling
from dive_fast.synth.clock import StageClock
from dive_fast.types import DiveError, InputError

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle
    from dive_fast.synth.planfile import SynthesisPlan
    from dive_fast.synth.render import Start

Run = Callable[["Start"], NDArray[np.uint8]]
Advance = Callable[[str], object]
OURS = "ours"


@dataclass(frozen=True)
class Contest:
    """What is competed for. `bundle` is the fused model of all, which is copied for each; `folder` holds it saved.

    `work` is a folder for what peers make, `tensorrt` that of a built engine. `presets` are run by our engine in the same
    turns: other images than those of `sampling`, which a ratio must never hide.
    """

    engine: Engine
    bundle: ModelBundle
    folder: Path
    work: Path
    sampling: Sampling
    rows: int = 36
    tensorrt: Path | None = None
    presets: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def precision(self) -> str:
        return self.engine.spec.precision


@dataclass(frozen=True)
class PeerResult:
    """`ours_faster` is how many times as fast as this peer our engine was, turn by turn; None where parity failed."""

    name: str
    how: str
    ms: Spread
    images_per_second: Spread
    parity: Parity
    ours_faster: Ratio | None


@dataclass(frozen=True)
class PresetResult:
    """`faster` is how many times as fast as plain sampling it was, turn by turn: ours, and that of each peer whose images
    are right. Its own images are others, so it has no parity; what they are worth, docs/presets.md says.
    """

    name: str
    how: str
    ms: Spread
    images_per_second: Spread
    faster: dict[str, Ratio]


@dataclass(frozen=True)
class ContestResult:
    """`left_out` says of every peer that is not in `results` why."""

    rows: int
    images: int
    precision: str
    least_psnr: float
    results: list[PeerResult]
    left_out: dict[str, str] = field(default_factory=dict)
    presets: list[PresetResult] = field(default_factory=list)


def compete(contest: Contest, peers: Sequence[str], turns: int, advance: Advance = lambda _: None) -> ContestResult:
    """Every peer that runs here makes the same batch: one prompt's images, as DiVE's calls are, its best case.

    First the exact images, then each one's parity, then `turns` timed turns, each from prompts to pixels; our engine, too,
    encodes its prompts at every call. A peer that cannot run is told with its reason. Raises `DiveError` where our own
    engine cannot.
    """
    images = contest.sampling.images(contest.rows)
    reasons = contest.engine.unsupported(_request(contest.engine, contest.rows))
    if images < 1:
        reasons.append(f"{contest.rows} rows hold no image with guidance {contest.sampling.guidance}")
    if not contest.sampling.every_step_guided:
        reasons.append("no peer leaves out guidance at some steps; give the preset as --presets, beside plain steps")
    if contest.precision not in DTYPES:
        reasons.append(f"our engine is {contest.precision}, in which no peer runs; give one of {', '.join(DTYPES)}")
    if reasons:
        raise InputError(f"bench, peers: {'; '.join(reasons)}")
    plan = bench_plan(contest.engine, images, contest.sampling, people=1)
    start = start_of(plan, contest.engine, images, ("ir",))
    exact = exact_images(copy.deepcopy(contest.bundle), plan, start, contest.precision, contest.device)
    advance("exact images")
    measure = diffusers_peer.plain(contest.bundle, plan, contest.device, contest.precision)
    allowance = Allowance(worst_rms(measure(start), exact))
    del measure
    advance("plain diffusers")
    runs: dict[str, Run] = {OURS: _by(contest.engine, plan)}
    found = {OURS: parity(runs[OURS](start), exact, allowance)}
    left_out: dict[str, str] = {}
    for name in peers:
        try:
            run = MAKE[name](contest, plan)
            found[name] = parity(run(start), exact, allowance)
            runs[name] = run
        except (DiveError, ImportError, RuntimeError, ValueError) as error:  # torch's compilers raise RuntimeErrors
            left_out[name] = f"{type(error).__name__}: {brief(error)}"
        advance(name)
    others = _presets(contest, images, start)
    calls = {name: partial(run, start) for name, run in runs.items()}
    times = interleaved({**calls, **others}, turns, contest.device.type)
    advance("turns")
    results = [_result(name, contest, images, times, found) for name in runs]
    right = [name for name in runs if found[name].passed and found[OURS].passed]
    presets = [_preset_result(name, contest, images, times, right) for name in others]
    return ContestResult(contest.rows, images, contest.precision, allowance.psnr, results, left_out, presets)


def _presets(contest: Contest, images: int, start: Start) -> dict[str, Callable[[], NDArray[np.uint8]]]:
    """The presets by our engine, from the noise of `start`."""
    runs: dict[str, Callable[[], NDArray[np.uint8]]] = {}
    for name in contest.presets:
        sampling = replace(PRESETS[name].sampling, guidance=contest.sampling.guidance)
        plan = bench_plan(contest.engine, images, sampling, people=1)
        runs[f"preset {name}"] = partial(_by(contest.engine, plan), start)
    return runs


def _preset_result(
    name: str, contest: Contest, images: int, times: dict[str, list[float]], right: Sequence[str]
) -> PresetResult:
    preset = PRESETS[name.removeprefix("preset ")]
    preset = replace(preset, sampling=replace(preset.sampling, guidance=contest.sampling.guidance))
    return PresetResult(
        name,
        preset.describe(contest.precision),
        spread(times[name]),
        spread([1e3 * images / ms for ms in times[name]]),
        {other: ratio(times[other], times[name]) for other in right},
    )


def _result(
    name: str, contest: Contest, images: int, times: dict[str, list[float]], found: dict[str, Parity]
) -> PeerResult:
    fair = found[OURS].passed and found[name].passed and name != OURS
    return PeerResult(
        name,
        contest.engine.describe() if name == OURS else BASELINES[name],
        spread(times[name]),
        spread([1e3 * images / ms for ms in times[name]]),
        found[name],
        ratio(times[name], times[OURS]) if fair else None,
    )


def _by(engine: Engine, plan: SynthesisPlan) -> Run:
    return lambda start: render(engine, plan, start, StageClock("encode", "denoise", "decode"))


def _request(engine: Engine, rows: int) -> Request:
    return Request(rows, engine.spec.profile.height, engine.spec.profile.width)


def _size(contest: Contest) -> tuple[int, int]:
    profile = contest.engine.spec.profile
    return profile.height, profile.width


def _diffusers(make: Callable[..., Run]) -> Callable[[Contest, SynthesisPlan], Run]:
    return lambda contest, plan: make(contest.bundle, plan, contest.device, contest.precision)


def _compiled(contest: Contest, plan: SynthesisPlan) -> Run:
    from dive_fast.engines.torch_engine import TorchEngine

    own = copy.deepcopy(contest.bundle)
    own.unet.compile(**diffusers_peer.COMPILE)
    return _by(TorchEngine(own, contest.device, contest.precision, _size(contest)), plan)


def _onnxruntime(contest: Contest, plan: SynthesisPlan) -> Run:
    if contest.engine.spec.backend == "onnxruntime" and contest.engine.spec.form == "plain":
        raise DiveError("our own engine is just that")
    from dive_export import GraphOptions, export_engine

    options: Any = GraphOptions(precision=contest.precision)  # type: ignore[arg-type]
    out = contest.work / "onnxruntime"
    export_engine(contest.folder, out, contest.rows, check=False, size=_size(contest), options=options)
    return _by(_same(load_engine(out, device=contest.device.type), contest), plan)


def _tensorrt(contest: Contest, plan: SynthesisPlan) -> Run:
    if contest.tensorrt is None:
        raise DiveError("no TensorRT engine was given; build one (dive-fast build) and give it as --tensorrt FOLDER")
    engine = load_engine(contest.tensorrt)
    if not engine.spec.backend.startswith("tensorrt"):
        raise InputError(f"--tensorrt {contest.tensorrt} is for {engine.spec.backend}; give what dive-fast build wrote")
    return _by(_same(engine, contest), plan)


def _same(engine: Engine, contest: Contest) -> Engine:
    """`engine`, if it is of the same model, precision and size, and takes as many rows; else `DiveError`."""
    reasons = engine.unsupported(_request(contest.engine, contest.rows))
    for what in ("model_fingerprint", "precision"):
        own, wanted = getattr(engine.spec, what), getattr(contest.engine.spec, what)
        if own != wanted:
            reasons.append(f"its {what.replace('_', ' ')} is {own[:12]}, ours is {wanted[:12]}")
    if reasons:
        raise DiveError("; ".join(reasons))
    return engine


MAKE: dict[str, Callable[[Contest, SynthesisPlan], Run]] = {
    "reference": _diffusers(diffusers_peer.reference),
    "tuned": _diffusers(diffusers_peer.tuned),
    "compiled": _compiled,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}
