"""Our engine and its baselines on the same images: equal noise, rows, steps and precision; first parity, then times."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dive_fast.bench import diffusers_baseline
from dive_fast.bench.batch import bench_plan, render, start_batch
from dive_fast.bench.config import BASELINES, BenchConfig, preset_of
from dive_fast.bench.parity import Allowance, Parity, exact_images, parity, worst_rms
from dive_fast.bench.timing import Quantiles, Ratio, interleaved, quantiles, ratio
from dive_fast.engines import Engine, load_engine
from dive_fast.engines.base import Request
from dive_fast.engines.torch_engine import DTYPES
from dive_fast.io import brief
from dive_fast.sampling.config import PRESETS, Sampling
from dive_fast.synth.clock import StageClock
from dive_fast.types import DiveError, InputError
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle
    from dive_fast.synth.planfile import SynthesisPlan
    from dive_fast.synth.render import Start

Run = Callable[["Start"], NDArray[np.uint8]]
Advance = Callable[[str], object]
OURS = "ours"


@dataclass(frozen=True)
class Other:
    """What makes other images than the baselines: a preset, or a student. `note` says what else is its own."""

    name: str
    engine: Engine
    sampling: Sampling
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """What every baseline runs on. `bundle` is the fused model, copied for each; `folder` holds it saved.

    `work` is a folder for what baselines make. Our engine runs the config's presets in the same rounds; they make other
    images than its sampling, so the report names them apart. With a `student` all else is its teacher's.
    """

    engine: Engine
    bundle: ModelBundle
    folder: Path
    work: Path
    config: BenchConfig
    student: Other | None = None

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def precision(self) -> str:
        return self.engine.spec.precision

    @property
    def request(self) -> Request:
        profile = self.engine.spec.profile
        return Request(self.config.baseline_rows, profile.height, profile.width)

    @property
    def size(self) -> tuple[int, int]:
        return self.request.height, self.request.width


@dataclass(frozen=True)
class BaselineResult:
    """`ours_faster` is our engine's speed over this baseline's, round by round; None where parity failed."""

    name: str
    how: str
    ms: Quantiles
    images_per_second: Quantiles
    parity: Parity
    ours_faster: Ratio | None


@dataclass(frozen=True)
class PresetResult:
    """`faster` is its speed over plain sampling's, round by round, by our engine and by each baseline that passed parity; a
    student's over the presets', too. It makes other images, so it has no parity; docs/speed.md says what they are worth.
    """

    name: str
    how: str
    ms: Quantiles
    images_per_second: Quantiles
    faster: dict[str, Ratio]


@dataclass(frozen=True)
class BaselineResults:
    """`left_out` has the reason for every baseline that is not in `results`.

    `sampling` and `model_fingerprint` are those of `results`, with `teacher` of the teacher of the student in `presets`.
    """

    rows: int
    images: int
    precision: str
    sampling: Sampling
    model_fingerprint: str
    teacher: bool
    least_psnr: float
    results: list[BaselineResult]
    left_out: dict[str, str] = field(default_factory=dict)
    presets: list[PresetResult] = field(default_factory=list)


def measure_baselines(setup: Setup, advance: Advance = lambda _: None) -> BaselineResults:
    """Every baseline makes the same batch: images of one prompt, as DiVE's calls are, which is its best case.

    First the exact images, then each one's parity, then the timed rounds from prompts to pixels; our engine encodes its
    prompts at every call, too. A baseline that cannot run is left out with its reason. Raises `DiveError` where our own
    engine cannot run.
    """
    config, sampling = setup.config, setup.config.sampling
    rows, images = config.baseline_rows, sampling.images(config.baseline_rows)
    engines = [setup.engine, *([setup.student.engine] if setup.student else [])]
    reasons = [reason for engine in engines for reason in engine.unsupported(setup.request)]
    if images < 1:
        reasons.append(f"{rows} rows hold no image with guidance {sampling.guidance}")
    if not sampling.every_step_guided:
        reasons.append(
            "no baseline leaves out guidance at some steps; give the preset as --presets, beside plain steps"
        )
    if setup.precision not in DTYPES:
        reasons.append(f"our engine is {setup.precision}, in which no baseline runs; give one of {', '.join(DTYPES)}")
    if reasons:
        raise InputError(f"bench, baselines: {'; '.join(reasons)}")
    plan = bench_plan(setup.engine, images, sampling, identities=1)
    start = start_batch(plan, setup.engine, images, ("ir",))
    exact = exact_images(copy.deepcopy(setup.bundle), plan, start, setup.precision, setup.device)
    advance("exact images")
    plain = diffusers_baseline.plain(setup.bundle, plan, setup.device, setup.precision)
    allowance = Allowance(worst_rms(plain(start), exact))
    del plain
    advance("plain diffusers")
    runs: dict[str, Run] = {OURS: _by(setup.engine, plan)}
    found = {OURS: parity(runs[OURS](start), exact, allowance)}
    left_out: dict[str, str] = {}
    for name in config.baselines:
        try:
            run = RUNNERS[name](setup, plan)
            found[name] = parity(run(start), exact, allowance)
            runs[name] = run
        except (DiveError, ImportError, RuntimeError, ValueError) as error:  # torch's compilers raise RuntimeErrors
            left_out[name] = f"{type(error).__name__}: {brief(error)}"
        advance(name)
    others = {other.name: other for other in _others(setup)}
    made = dict.fromkeys(runs, images) | {name: other.sampling.images(rows) for name, other in others.items()}
    calls: dict[str, Callable[[], object]] = {name: partial(run, start) for name, run in runs.items()}
    calls |= {name: _other_call(other, made[name]) for name, other in others.items()}
    times = interleaved(calls, config.rounds, setup.device.type)
    advance("rounds")
    each = {name: [ms / made[name] for ms in taken] for name, taken in times.items()}
    right = [name for name in found if found[name].passed and found[OURS].passed]
    results = [
        BaselineResult(
            name,
            setup.engine.describe() if name == OURS else BASELINES[name],
            *_speed(times[name], images),
            found[name],
            ratio(each[name], each[OURS]) if name in right and name != OURS else None,
        )
        for name in runs
    ]
    presets = [name for name, other in others.items() if right and other is not setup.student]  # beside a student
    timed = [
        PresetResult(
            name,
            f"{other.sampling.describe()}, {count(made[name], 'image')} a call, {other.engine.spec.precision}{other.note}",
            *_speed(times[name], made[name]),
            {than: ratio(each[than], each[name]) for than in [*right, *(presets if other is setup.student else ())]},
        )
        for name, other in others.items()
    ]
    return BaselineResults(
        rows,
        images,
        setup.precision,
        sampling,
        setup.bundle.fingerprint,
        setup.student is not None,
        allowance.psnr,
        results,
        left_out,
        timed,
    )


def _others(setup: Setup) -> list[Other]:
    """Presets of our engine, then the student."""
    sampling = setup.config.sampling
    presets = [
        Other(
            f"preset {name}" if name in PRESETS else f"{name} steps", setup.engine, preset_of(name).applied_to(sampling)
        )
        for name in setup.config.presets
    ]
    return [*presets, *([setup.student] if setup.student else [])]


def _other_call(other: Other, images: int) -> Callable[[], object]:
    """A batch of `images` images, as the baselines' of one prompt; those of a preset start from the baselines' noise."""
    plan = bench_plan(other.engine, images, other.sampling, identities=1)
    return partial(_by(other.engine, plan), start_batch(plan, other.engine, images, ("ir",)))


def _speed(times: list[float], images: int) -> tuple[Quantiles, Quantiles]:
    """Milliseconds, and images/s."""
    return quantiles(times), quantiles([1e3 * images / ms for ms in times])


def _by(engine: Engine, plan: SynthesisPlan) -> Run:
    return lambda start: render(engine, plan, start, StageClock("encode", "denoise", "decode"))


def _diffusers(make: Callable[..., Run]) -> Callable[[Setup, SynthesisPlan], Run]:
    return lambda setup, plan: make(setup.bundle, plan, setup.device, setup.precision)


def _compiled(setup: Setup, plan: SynthesisPlan) -> Run:
    from dive_fast.engines.torch_engine import TorchEngine

    own = copy.deepcopy(setup.bundle)
    own.unet.compile(**diffusers_baseline.COMPILE)
    return _by(TorchEngine(own, setup.device, setup.precision, setup.size), plan)


def _onnxruntime(setup: Setup, plan: SynthesisPlan) -> Run:
    if setup.engine.spec.backend == "onnxruntime" and setup.engine.spec.variant == "plain":
        raise DiveError("our own engine is just that")
    if setup.precision == "bf16" and setup.device.type == "cpu":
        raise DiveError("onnxruntime has no bf16 on a CPU")
    from dive_export import GraphOptions, export_engine
    from dive_fast.engines.onnx_engine import why_not

    reasons = why_not("onnxruntime", setup.device.type)  # before the export, which takes minutes
    if reasons:
        raise DiveError("; ".join(reasons))
    options: Any = GraphOptions(precision=setup.precision)  # type: ignore[arg-type]  # one of DTYPES
    out = setup.work / "onnxruntime"
    export_engine(setup.folder, out, setup.config.baseline_rows, check=False, size=setup.size, options=options)
    return _by(_same(load_engine(out, "onnxruntime", setup.device.type), setup), plan)


def _tensorrt(setup: Setup, plan: SynthesisPlan) -> Run:
    folder = setup.config.tensorrt
    if folder is None:
        raise DiveError("no TensorRT engine was given; build one (dive-fast build) and give it as --tensorrt FOLDER")
    engine = load_engine(folder)
    if not engine.spec.backend.startswith("tensorrt"):
        raise InputError(f"--tensorrt {folder} is for {engine.spec.backend}; give what dive-fast build wrote")
    return _by(_same(engine, setup), plan)


def _same(engine: Engine, setup: Setup) -> Engine:
    """`engine`, if it is of the same model, precision and size, and takes as many rows; else `DiveError`."""
    reasons = engine.unsupported(setup.request)
    for what in ("model_fingerprint", "precision"):
        own, wanted = getattr(engine.spec, what), getattr(setup.engine.spec, what)
        if own != wanted:
            reasons.append(f"its {what.replace('_', ' ')} is {own[:12]}, ours is {wanted[:12]}")
    if reasons:
        raise DiveError("; ".join(reasons))
    return engine


RUNNERS: dict[str, Callable[[Setup, SynthesisPlan], Run]] = {
    "reference": _diffusers(diffusers_baseline.reference),
    "tuned": _diffusers(diffusers_baseline.tuned),
    "compiled": _compiled,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}
