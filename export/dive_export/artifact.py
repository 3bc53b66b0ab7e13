"""Exports an engine folder: written beside its place, moved there when complete."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import onnx
import torch

from dive_export.fp8_report import REPORT
from dive_export.graphs import Graph, graphs
from dive_export.onnx import OPSET, export_graph, measure_parity
from dive_export.options import GraphOptions
from dive_export.resources import Resources
from dive_fast.engines.engine_folder import check_files, read_spec
from dive_fast.io import canonical_json, is_empty, sha256_file, write_json
from dive_fast.json_files import read_json
from dive_fast.models import ModelBundle, load_bundle
from dive_fast.models.sampling_file import write_sampling
from dive_fast.models.tiny_decoder import RECORD, with_tiny_decoder
from dive_fast.outputs import holds, output_folder
from dive_fast.progress import log
from dive_fast.types import DiveError, EngineSpec, InputError, Profile, to_dict
from dive_fast.unet.graphs import cross_attentions

Progress = Callable[[str], None]
# What two exports of one engine have in common.
COMPARED = ("backend", "precision", "profile", "model_fingerprint", "files", "variant", "optimizations", "any_size")
# Files of the folder that no engine reads.
REPORTS = ("engine.json", "export.json", "parity.json", "blocks.json", REPORT)


def export_engine(
    fused: Path | str,
    out: Path | str,
    rows_max: int = 64,
    check: bool = True,
    *,
    size: tuple[int, int] | None = None,
    options: GraphOptions | None = None,
    rows_usual: int = 32,
    decoder: Path | None = None,
    progress: Progress = log,
) -> EngineSpec:
    """Exports a fused model folder to an engine folder: ONNX opset 23, for onnxruntime.

    `size` is (height, width) in pixels, by default the model's own; rows are free from 1 to `rows_max`, and a run takes
    `rows_usual` by default. `decoder` is the folder of a tiny decoder in the place of the model's own. With `check` each
    part is measured against torch (`parity.json`). `export.json` has time and memory of each part. `engine.json` is written
    last. An `out` that holds this very engine stays as it is; other content raises `InputError`, as does a model that is
    not fused or that an optimization does not fit. Raises `DiveError` for a missing package, a part over its error budget
    or a disk that cannot be written.
    """
    options = options or GraphOptions()
    fused, out = Path(fused), Path(out)
    if rows_max < 1:
        raise InputError(f"export: rows_max must be at least 1, got {rows_max}")
    needed = ["onnxscript", *(["onnxruntime"] if check else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise DiveError(f"export needs {', '.join(missing)}: pip install 'dive-fast[export,cpu]'")
    bundle = load_bundle(fused)
    if decoder is not None:
        bundle, tiny = with_tiny_decoder(bundle, decoder)
        progress(f"decoder {decoder}: {tiny.psnr:.1f} dB to the images of the model's own")
    if bundle.prompts is None:
        raise InputError(f"export: {fused} has no prompts.json; fuse an adapter into the base first (dive-fast fuse)")
    parts, (height, width) = graphs(bundle, size, rows_max, options)
    spec = _planned_spec(bundle, parts, Profile(1, min(rows_usual, rows_max), rows_max, height, width), options)
    found = already_there("export", out, spec, COMPARED, {}, progress)
    if found is not None:
        if check and not (out / "parity.json").is_file():
            _write_parity(parts, out, spec, progress)
        return found
    with output_folder(out, holds("engine.json")) as folder:
        report = {}
        for number, graph in enumerate(parts, start=1):
            report[graph.part] = _export_part(graph, folder, spec, f"{number} of {len(parts)}", progress)
        write_json(folder / "export.json", report)
        if check:
            _write_parity(parts, folder, spec, progress)
        _copy_metadata(bundle, fused, folder, spec.files)
        if decoder is not None:
            shutil.copyfile(decoder / RECORD, folder / "vae_decoder" / RECORD)  # build and quantize copy it
        spec = replace(spec, sha256=file_hashes(folder))
        write_json(folder / "engine.json", to_dict(spec))
    progress(f"engine {out} is finished: {height}x{width}, up to {rows_max} rows")
    return spec


def _planned_spec(bundle: ModelBundle, parts: list[Graph], profile: Profile, options: GraphOptions) -> EngineSpec:
    return EngineSpec(
        backend="onnxruntime",
        precision=options.precision,
        profile=profile,
        model_fingerprint=bundle.fingerprint,
        files={graph.part: f"{graph.part}/model.onnx" for graph in parts},
        versions={
            "diffusers": diffusers.__version__,
            "onnx": onnx.__version__,
            "opset": str(OPSET),
            "torch": torch.__version__,
        },
        variant=options.variant,
        optimizations=options.applied,
        any_size=options.any_size,
    )


def already_there(
    command: str, out: Path, spec: EngineSpec, fields: Collection[str], record: Mapping[str, Any], progress: Progress
) -> EngineSpec | None:
    """Returns the spec of the engine at `out`, None if nothing is there.

    Raises `InputError` for anything but a whole engine with the `fields` of `spec` and the entries of `record` in its
    `build.json`.
    """
    if is_empty(out):
        return None
    if not (out / "engine.json").is_file():
        raise InputError(f"{command}: {out} exists and is no engine folder; choose another --out or move it away")
    found = read_spec(out)
    other = [name for name in fields if getattr(found, name) != getattr(spec, name)]
    made = read_json(out / "build.json", "build") if (out / "build.json").is_file() else {}
    other += [name for name, value in record.items() if made.get(name) != json.loads(canonical_json(value))]
    if other:
        raise InputError(f"{command}: {out} holds another engine ({', '.join(other)} differ); choose another --out")
    check_files(out, found)
    progress(f"engine {out} is there already: same model, same settings")
    return found


def _export_part(
    graph: Graph, folder: Path, spec: EngineSpec, number: str, progress: Progress
) -> dict[str, float | None]:
    """Writes one part; returns its row of export.json: seconds, the process's peak MB, MB of files."""
    progress(f"export {number}: {graph.part} ...")
    path = folder / spec.files[graph.part]
    with Resources() as used:
        export_graph(graph, path, spec.precision)
    size = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
    progress(f"export {number}: {graph.part}, {size:.1f} MB in {used.seconds:.0f} s")
    return {"seconds": used.seconds, "peak_mb": used.peak_mb, "file_mb": size}


def _write_parity(parts: list[Graph], folder: Path, spec: EngineSpec, progress: Progress) -> None:
    report = {}
    for graph in parts:
        parity = measure_parity(graph, folder / spec.files[graph.part], spec.precision)
        progress(f"check {graph.part}: {parity.worst:.1e} from torch, {parity.budget:.1e} allowed")
        report[graph.part] = asdict(parity)
    write_json(folder / "parity.json", report)


def _copy_metadata(bundle: ModelBundle, fused: Path, folder: Path, parts: Collection[str]) -> None:
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(fused / name, folder / name)
    shutil.copyfile(fused / "prompts.json", folder / "prompts.json")
    if bundle.sampling is not None:
        write_sampling(bundle.sampling, folder)
    if bundle.student is not None:
        bundle.student.write(folder)
    if "prompt_bank" not in parts:  # optimum opens the plain variant only
        # transformers 4's CLIPTokenizer reads vocab.json only; the fast class reads our tokenizer.json.
        index = read_json(fused / "model_index.json", "model")
        write_json(folder / "model_index.json", {**index, "tokenizer": ["transformers", "CLIPTokenizerFast"]})
    for part in parts:
        if part == "prompt_bank":  # no network of the model: its config maps layers to columns
            layers = [{"name": name, "width": layer.to_k.out_features} for name, layer in cross_attentions(bundle.unet)]
            write_json(folder / part / "config.json", {"layers": layers})
        else:
            source = "vae" if part.startswith("vae") else part
            shutil.copyfile(fused / source / "config.json", folder / part / "config.json")


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns EngineSpec.sha256 of an engine folder: file hashes by relative path, without `REPORTS`."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: sha256_file(path) for name, path in files.items() if not path.name.startswith(".") and name not in REPORTS
    }
