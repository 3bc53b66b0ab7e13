"""An exported engine folder -> a TensorRT engine folder: one plan per part, cached and written atomically."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dive_export.artifact import Progress, already_there
from dive_export.options import BuildConfig
from dive_export.tensorrt_cache import PlanCache
from dive_export.tensorrt_folder import COMPARED, write_engine
from dive_export.tensorrt_job import Build, free_space
from dive_export.tensorrt_profiles import activations, weights_size
from dive_export.tensorrt_refit import refit_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.outputs import holds, output_folder
from dive_fast.progress import log
from dive_fast.types import DiveError, EngineSpec

__all__ = ["BuildConfig", "Forecast", "PartForecast", "build_engine", "dry_run", "refit_engine"]


@dataclass(frozen=True)
class PartForecast:
    """What one part needs, in bytes; `activations` is an estimate (`tensorrt_profiles.activations`)."""

    part: str
    profiles: tuple[str, ...]
    weights: int
    activations: int
    cached: bool


@dataclass(frozen=True)
class Forecast:
    """What `build_engine` would do here. `disk` (an estimate) and `disk_free` are bytes; `missing` lists obstacles."""

    backend: str
    gpu: str | None
    parts: tuple[PartForecast, ...]
    disk: int
    disk_free: int
    missing: tuple[str, ...]


def build_engine(
    onnx_folder: Path | str, out: Path | str, config: BuildConfig | None = None, progress: Progress = log
) -> EngineSpec:
    """Builds a TensorRT engine folder at `out` from what `export_engine` wrote.

    A plan comes from the cache if one for the same graph, weights, profiles, GPU, version and options is there.
    `engine.json` is written last, and Ctrl-C ends the build at TensorRT's next step. An `out` with this very engine stays as
    it is. Raises `InputError` for a folder or rows that do not fit and for other content at `out`; `DiveError` with
    everything that is missing here, or naming part, node and reason.
    """
    config = config or BuildConfig()
    build = Build.from_export(Path(onnx_folder), config)
    out = Path(out)
    if not build.obstacles():  # else GPU and version are unknown
        found = already_there("build", out, build.spec, COMPARED, build.record(), progress)
        if found is not None:
            return found
    missing = build.missing(out)
    if missing:
        raise DiveError(f"build: {'; '.join(missing)}")
    module = trt.load(config.kind)
    with output_folder(out, holds("engine.json")) as folder:
        plans = build.plans(module, progress)
        spec = write_engine(folder, build.source, build.spec, build.record(), plans)
    progress(f"engine {out} is finished: {config.flavour} for {spec.gpu}, {spec.variant}, rows {list(spec.row_counts)}")
    return spec


def dry_run(onnx_folder: Path | str, out: Path | str, config: BuildConfig | None = None) -> Forecast:
    """Forecasts what `build_engine` would do, need and lack; writes nothing. Raises `InputError` as it does."""
    build = Build.from_export(Path(onnx_folder), config or BuildConfig())
    cache = PlanCache(build.config.cache_folder, log)
    found = []
    for part, todo in build.parts.items():
        lines = [", ".join(f"{name} {_range(dims)}" for name, dims in shapes.items()) for shapes in todo.profiles]
        need = activations(todo.graph, todo.profiles[-1])
        found.append(PartForecast(part, tuple(lines), weights_size(todo.graph), need, cache.has(build.keys[part])))
    missing = tuple(build.missing(Path(out)))
    return Forecast(build.spec.backend, build.spec.gpu, tuple(found), build.disk(), free_space(Path(out)), missing)


def _range(ranges: tuple[tuple[int, int, int], ...]) -> str:
    return "x".join(str(low) if low == high else f"{low}..{high}" for low, _, high in ranges)
