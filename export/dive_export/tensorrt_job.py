"""Plans a TensorRT build: each part's profiles and cache key, and what is missing here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dive_export import trt_plugin
from dive_export.artifact import Progress
from dive_export.kernel_node import kernel_nodes
from dive_export.options import BuildConfig
from dive_export.tensorrt_build import PartBuild, build_plan
from dive_export.tensorrt_cache import Plan, PlanCache, graph_hash
from dive_export.tensorrt_folder import exported_spec
from dive_export.tensorrt_profiles import axis_sizes, profiles, weights_size
from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.engine_folder import parts
from dive_fast.engines.node_runner import read_graph
from dive_fast.io import canonical_json, sha256_bytes
from dive_fast.types import EngineSpec, InputError, Profile, to_dict

COMPATIBILITY = {"none": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere": "AMPERE_PLUS"}
FORMAT = 1  # of the plans' keys; a new number invalidates every cached plan
# Bytes of a plan beside its weights, per profile; measured 1.6 to 6.0 MB (tests/support/tiny.py, tensorrt-rtx).
CODE_SIZE = 8 << 20


@dataclass(frozen=True)
class Build:
    """A planned build: the spec without hashes, and each part's job and cache key."""

    source: Path
    config: BuildConfig
    spec: EngineSpec
    parts: dict[str, PartBuild]
    keys: dict[str, str]
    without_kernels: list[str] = field(default_factory=list)  # why the requested kernels cannot be used

    @classmethod
    def from_export(cls, source: Path, config: BuildConfig) -> Build:
        """Plans the build of an exported folder; raises `InputError` if the folder and `config` do not fit."""
        exported = exported_spec(source)
        limit = exported.profile.rows_max
        beyond = sorted({n for n in (*config.rows, *config.vae_rows, *config.text_rows) if n > limit})
        if beyond:
            raise InputError(
                f"build: rows {', '.join(map(str, beyond))} > rows_max {limit} of {source}; "
                f"choose row counts up to {limit}, or export again with rows_max {beyond[-1]}"
            )
        gpu = _plan_for(config)
        spec = _planned_spec(exported, config, gpu)
        kernels, reasons = _kernels(source, exported, config)
        jobs = {part: _part_build(part, source, exported, config, gpu, kernels) for part in parts(exported)}
        keys = {part: _key(todo, exported, config, gpu) for part, todo in jobs.items()}
        return cls(source, config, spec, jobs, keys, reasons)

    def record(self) -> dict[str, Any]:
        """Returns `build.json`: keys, config and kernels by part; `write_engine` adds the refittable weights."""
        config = {**to_dict(self.config), "cache": None}
        kernels = {part: todo.kernels for part, todo in self.parts.items() if todo.kernels}
        asked = config.pop("kernels")  # a key of its own, so folders without kernels stay the same
        return {"keys": self.keys, "config": config, **({"kernels": kernels} if asked else {})}

    def disk(self) -> int:
        """Estimates the bytes: every plan twice (once in the cache), and the weights of stripped plans."""
        code = sum(CODE_SIZE * len(todo.profiles) for todo in self.parts.values())
        weights = sum(weights_size(todo.graph) for todo in self.parts.values())
        return 2 * code + (1 if self.config.refittable else 2) * weights

    def obstacles(self) -> list[str]:
        """Returns every reason why TensorRT cannot build here."""
        kind = self.config.kind
        found = trt.reasons(kind)
        gpu, why = trt.find_gpu()
        if gpu is None and not kind.builds_without_gpu:
            found.append(f"{kind.name} builds on the GPU that runs the engine, and {why}")
        elif gpu is None and self.config.refittable:
            found.append(f"{kind.name} builds refittable plans with a GPU only, and {why}")
        return found + [reason for reason in self.without_kernels if reason not in found]

    def missing(self, out: Path) -> list[str]:
        """Returns `obstacles`, and whether the disk is too small."""
        free, need = free_space(out), self.disk()
        short = f"about {need / 1e6:.0f} MB of disk are needed at {out}, {free / 1e6:.0f} MB are free"
        return self.obstacles() + ([short] if free < need else [])

    def plans(self, module: Any, progress: Progress) -> dict[str, Plan]:
        """Returns a plan for each part, from the cache or built and then cached."""
        cache = PlanCache(self.config.cache_folder, progress)
        made = {}
        for number, (part, todo) in enumerate(self.parts.items(), start=1):
            head = f"build {number} of {len(self.parts)}: {part}"
            plan = cache.get(self.keys[part], todo.graph)
            if plan is None:
                progress(f"{head}, {len(todo.profiles)} profiles ...")
                plan = build_plan(self.config.kind, module, todo, progress)
                cache.put(self.keys[part], plan)
                progress(f"{head}, {len(plan.data) / 1e6:.1f} MB")
            else:
                progress(f"{head}, {len(plan.data) / 1e6:.1f} MB from the cache")
            if plan.refittable:
                trt.open_plan(module, plan.data, f"the new plan of {part}", todo.graph, plan.refittable)
            made[part] = plan
        return made


def _plan_for(config: BuildConfig) -> str | None:
    """Returns EngineSpec.gpu of the plans; None if it depends on a GPU and there is none."""
    if config.kind.builds_without_gpu:
        return trt.ANY_AMPERE if config.target is None else f"compute capability {config.target}"
    gpu, _ = trt.find_gpu()
    if gpu is None:
        return None
    wide = {"same-capability": f"compute capability {gpu.capability}", "ampere": trt.ANY_AMPERE}
    return wide.get(config.compatibility, gpu.label)


def _planned_spec(exported: EngineSpec, config: BuildConfig, gpu: str | None) -> EngineSpec:
    own = exported.profile
    return replace(
        exported,
        backend=config.flavour,
        profile=Profile(1, config.rows[-1], config.rows[-1], own.height, own.width),
        files={part: f"{part}/model.plan" for part in parts(exported)},
        versions={**exported.versions, config.flavour: trt.version(config.kind) or "not installed"},
        gpu=gpu,
        sha256={},
        row_counts=config.rows,
        any_size=False,
    )


def _kernels(source: Path, exported: EngineSpec, config: BuildConfig) -> tuple[dict[str, str], list[str]]:
    """Returns the compiled kernels of the UNet by name, with their build hashes, and every reason against them here."""
    if not config.kernels:
        return {}, []
    path = source / exported.files["unet"]
    graph = read_graph(path).graph
    if not kernel_nodes(graph):
        raise InputError(
            f"build: {path} has no node for the kernels; export it again with --variant kv-cache --kernels"
        )
    if exported.any_size:
        raise InputError(f"build: the kernels need fixed sizes, {source} has free ones; export it without --any-size")
    reasons = trt_plugin.why_not(config.kind)
    gpu, why = trt.find_gpu()
    kernels = trt_plugin.compiled()
    if gpu is None:
        return {}, [*reasons, f"kernels are chosen for the GPU that runs the engine, and {why}"]
    if kernels is None:
        return {}, reasons
    try:
        calls = trt_plugin.calls(graph, config.rows[-1], gpu, kernels)
    except ValueError as error:
        return {}, [*reasons, str(error)]
    return {call.kernel.name: call.kernel.build for call in calls.values()}, reasons


def _part_build(
    part: str, source: Path, exported: EngineSpec, config: BuildConfig, gpu: str | None, kernels: dict[str, str]
) -> PartBuild:
    graph = source / exported.files[part]
    place = sha256_bytes(f"{config.flavour} {trt.version(config.kind)} {gpu}".encode())[:16]
    return PartBuild(
        part=part,
        graph=graph,
        profiles=profiles(part, graph, exported, axis_sizes(part, exported, config)),
        refittable=config.refittable,
        compatibility=COMPATIBILITY[config.compatibility],
        target=config.target,
        level=config.level,
        workspace=config.workspace,
        timings=config.cache_folder / "timings" / f"{place}.bin",
        kernels=kernels if part == "unet" else {},
    )


def _key(todo: PartBuild, exported: EngineSpec, config: BuildConfig, gpu: str | None) -> str:
    files = {name: digest for name, digest in exported.sha256.items() if name.startswith(f"{todo.part}/model.onnx.")}
    inputs = {
        "format": FORMAT,
        "graph": graph_hash(todo.graph, None if config.refittable else files),
        "profiles": todo.profiles,
        "gpu": gpu,
        "flavour": config.flavour,
        "version": trt.version(config.kind),
        "options": [todo.refittable, todo.compatibility, todo.target, todo.level, todo.workspace],
        **({"kernels": todo.kernels} if todo.kernels else {}),
    }
    return sha256_bytes(canonical_json(inputs).encode())


def free_space(out: Path) -> int:
    """Returns the free bytes at `out`, which need not exist."""
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(place).free
