"""The TensorRT engine folder: taken from an exported one, recognised when it is there already, written whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from dive_export.artifact import Progress, file_hashes
from dive_export.tensorrt_cache import Plan
from dive_fast.engines.engine_folder import check_files, read_spec
from dive_fast.io import canonical_json, read_json, write_json
from dive_fast.types import EngineSpec, InputError, to_dict


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
    check_files(folder, spec)
    return spec


def already_there(out: Path, spec: EngineSpec, record: dict[str, Any], progress: Progress) -> EngineSpec | None:
    """The engine at `out` if it is the one wanted and whole, None if nothing is there; else raises `InputError`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / "engine.json").is_file():
        raise InputError(f"build: {out} exists and is no engine folder; choose another --out or move it away")
    found = read_spec(out)
    other = [name for name in ("backend", "model_fingerprint", "versions", "gpu") if _differ(name, found, spec)]
    made = read_json(out / "build.json", "build") if (out / "build.json").is_file() else {}
    other += [name for name, value in record.items() if made.get(name) != canonical(value)]
    if other:
        raise InputError(f"build: {out} holds another engine ({', '.join(other)} differ); choose another --out")
    check_files(out, found)
    progress(f"engine {out} is there already: same graphs, same settings")
    return found


def canonical(value: Any) -> Any:
    """`value` as JSON gives it back."""
    return json.loads(canonical_json(value))


def _differ(name: str, one: EngineSpec, other: EngineSpec) -> bool:
    return bool(getattr(one, name) != getattr(other, name))
