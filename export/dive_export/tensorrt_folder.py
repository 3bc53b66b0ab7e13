"""The TensorRT engine folder: taken from an exported one and written whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from dive_export.artifact import file_hashes
from dive_export.tensorrt_cache import Plan
from dive_fast.engines.engine_folder import check_files, read_spec
from dive_fast.io import write_json
from dive_fast.types import EngineSpec, InputError, to_dict

# Fields of the spec that show whether a folder at --out holds the engine to be built.
COMPARED = ("backend", "model_fingerprint", "versions", "gpu")


def write_engine(
    folder: Path, source: Path, spec: EngineSpec, record: dict[str, Any], plans: dict[str, Plan]
) -> EngineSpec:
    """Fills `folder` with plans, and with all of `source` but its graphs; those too where a plan lacks its weights."""
    stripped = [part for part, plan in plans.items() if plan.refittable]
    for name in read_spec(source).sha256:
        part, _, file = name.partition("/")
        if not file.startswith("model.onnx") or part in stripped:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    for part, plan in plans.items():
        (folder / spec.files[part]).write_bytes(plan.data)
    record = {
        **record,
        "refittable": {part: plan.refittable for part, plan in plans.items()},
        "fixed": {part: plan.fixed for part, plan in plans.items()},
    }
    write_json(folder / "build.json", record)
    spec = replace(spec, sha256=file_hashes(folder))
    write_json(folder / "engine.json", to_dict(spec))
    return spec


def exported_spec(folder: Path) -> EngineSpec:
    """The spec of a folder that `export_engine` wrote, after a look at every file; anything else raises `InputError`."""
    spec = read_spec(folder)
    if spec.backend != "onnxruntime":
        raise InputError(f"build: {folder} is a {spec.backend} engine; give the exported one (dive-fast export)")
    if spec.precision == "int8":
        raise InputError(f"build: {folder} is int8, for openvino on a CPU; give the engine before dive-fast quantize")
    check_files(folder, spec)
    return spec
