"""Writes a refittable engine with another adapter's weights, to another folder: the same plans, other weights.

The plans hold no weights; the runtime refits them from the folder's graphs when it opens the engine.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dive_export.artifact import Progress, already_there
from dive_export.tensorrt_cache import Plan, bare, constant, structure
from dive_export.tensorrt_folder import COMPARED, exported_spec, write_engine
from dive_fast.engines import tensorrt_api as trt
from dive_fast.engines.engine_folder import check_files, read_spec
from dive_fast.engines.node_runner import read_graph
from dive_fast.json_files import read_json
from dive_fast.outputs import holds, output_folder
from dive_fast.progress import log
from dive_fast.types import EngineSpec, InputError

SAME = ("precision", "variant", "optimizations")


def refit_engine(engine: Path | str, onnx_folder: Path | str, out: Path | str, progress: Progress = log) -> EngineSpec:
    """Writes to `out` the refittable TensorRT engine `engine` with the weights and prompts of the export `onnx_folder`.

    The export must have the same graphs. On the engine's GPU, every plan is refitted once before `engine.json` is written.
    Raises `InputError` for an engine that is not refittable, and with the first difference of graphs or built-in constants;
    `DiveError` if a refit would leave a weight unset.
    """
    engine, source, out = Path(engine), Path(onnx_folder), Path(out)
    spec, record = refittable_spec(engine)
    other = exported_spec(source)
    for name in SAME:
        if getattr(spec, name) != getattr(other, name):
            raise InputError(f"refit: {source} has {name} {getattr(other, name)}, {engine} {getattr(spec, name)}")
    wanted = replace(spec, model_fingerprint=other.model_fingerprint)
    kept: dict[str, Any] = {name: record[name] for name in ("keys", "config", "kernels") if name in record}
    found = already_there("refit", out, wanted, COMPARED, kept, progress)
    if found is not None:
        return found
    for part, names in record["refittable"].items():
        difference = first_difference(engine / part / "model.onnx", source / other.files[part], set(names))
        if difference:
            raise InputError(f"refit: {source} does not fit {engine}, {part}: {difference}; build its engine instead")
    plans = {
        part: Plan((engine / spec.files[part]).read_bytes(), names, record["fixed"][part])
        for part, names in record["refittable"].items()
    }
    with output_folder(out, holds("engine.json")) as folder:
        made = write_engine(folder, source, wanted, kept, plans)
        progress(try_refit(folder, made, plans))
    progress(f"engine {out} is finished: the plans of {engine} with the weights of {source}")
    return made


def refittable_spec(engine: Path) -> tuple[EngineSpec, dict[str, Any]]:
    """Reads spec and `build.json` of an engine; raises `InputError` unless all its plans are stripped."""
    spec = read_spec(engine)
    if spec.backend not in trt.FLAVOURS:
        raise InputError(f"refit: {engine} is a {spec.backend} engine; give one that dive-fast build made")
    check_files(engine, spec)
    record = read_json(engine / "build.json", "build")
    tables = ("keys", "config", "refittable", "fixed")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), dict) for name in tables):
        raise InputError(f"refit: {engine}/build.json is not what dive-fast build wrote; build the engine again")
    lists = record["refittable"].values()
    if not (set(record["refittable"]) <= set(spec.files) & set(record["fixed"]) and all(map(_is_names, lists))):
        raise InputError(f"refit: {engine}/build.json names other parts than its engine; build the engine again")
    whole = [part for part in spec.files if not record["refittable"].get(part)]
    if whole:
        raise InputError(f"refit: {', '.join(whole)} of {engine} hold their weights; build it with refittable")
    return spec, record


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def try_refit(folder: Path, spec: EngineSpec, plans: dict[str, Plan]) -> str:
    """Refits every plan in memory as the runtime does; returns what was done, or why it cannot be tried here."""
    kind = trt.FLAVOURS[spec.backend]
    gpu, why_not = trt.find_gpu()
    unfit = trt.reasons(kind) + (trt.misfits(kind, spec.gpu, gpu) if gpu else [why_not])
    if unfit:
        return f"the refit was not tried here: {'; '.join(unfit)}"
    module = trt.load(kind)
    for part, plan in plans.items():
        trt.open_plan(module, plan.data, f"the plan of {part}", folder / part / "model.onnx", plan.refittable)
    return f"refitted the weights of {len(plans)} plans"


def first_difference(old: Path, new: Path, refittable: set[str]) -> str:
    """Describes the first difference of two ONNX graphs but for the values of `refittable` weights; "" if none."""
    one, two = read_graph(old), read_graph(new)
    for (what, ours), theirs in zip(structure(one).items(), structure(two).values(), strict=True):
        for i, (a, b) in enumerate(zip_longest(ours, theirs)):
            if a is None or b is None:
                return f"it has {len(theirs)} {what}s, not {len(ours)}"
            if bare(a) != bare(b):
                return f"{what} {i} ({getattr(b, 'name', '') or b}) differs"
    for a, b in zip_longest(one.graph.initializer, two.graph.initializer):
        if a is None or b is None:
            return f"it has {len(two.graph.initializer)} weights, not {len(one.graph.initializer)}"
        if (a.name, a.data_type, list(a.dims)) != (b.name, b.data_type, list(b.dims)):
            return f"weight {b.name} {list(b.dims)} is in place of {a.name} {list(a.dims)}"
        if a.name not in refittable and constant(a, old.parent) != constant(b, new.parent):
            return f"{a.name} has another value, and is part of the plan"
    return ""
