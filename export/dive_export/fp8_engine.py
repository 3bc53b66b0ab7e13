"""An exported engine folder -> the same with FP8 or int8 layers in its UNet; and the torch graphs of an exported folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_export.artifact import Progress, already_there, file_hashes
from dive_export.calibration import Calibration, sampling_inputs
from dive_export.fp8 import quantize
from dive_export.fp8_report import REPORT, Fp8Report, LayerTime, read_report
from dive_export.graphs import Graph, graphs
from dive_export.options import CALIBRATION, Fp8Config, GraphOptions
from dive_export.tensorrt_folder import exported_spec
from dive_fast.io import write_json
from dive_fast.outputs import holds, output_folder
from dive_fast.progress import log
from dive_fast.sampling.config import Sampling
from dive_fast.types import EngineSpec, InputError, to_dict

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle
    from dive_fast.models.prompts import PromptKey


def exported_graphs(
    model: Path | str, engine: Path | str, decoder: Path | None = None
) -> tuple[ModelBundle, EngineSpec, dict[str, Graph]]:
    """Returns model, spec and torch graphs by part of an exported engine; raises `InputError` for another model.

    `decoder` is the tiny decoder that it was exported with.
    """
    from dive_fast.models import load_bundle
    from dive_fast.models.tiny_decoder import with_tiny_decoder

    spec = exported_spec(Path(engine))
    bundle = load_bundle(model)
    if decoder is not None:
        bundle, _ = with_tiny_decoder(bundle, decoder)
    if bundle.fingerprint != spec.model_fingerprint:
        raise InputError(
            f"engine {engine} was exported from model {spec.model_fingerprint[:12]}, {model} is "
            f"{bundle.fingerprint[:12]}; give the fused model, and the --decoder, that it was exported from"
        )
    if spec.precision not in ("fp32", "fp16", "bf16"):
        raise InputError(
            f"engine {engine} is {spec.precision}; give the one that was exported, before it was quantised"
        )
    exported: Any = spec  # read_spec has checked its form, the line above its precision
    options = GraphOptions(exported.variant, exported.precision, spec.optimizations, spec.any_size)
    size = (spec.profile.height, spec.profile.width)
    parts, _ = graphs(bundle, size, spec.profile.rows_max, options)
    return bundle, spec, {graph.part: graph for graph in parts}


def quantize_engine(
    engine: Path | str,
    model: Path | str,
    out: Path | str,
    config: Fp8Config | None = None,
    sampling: Sampling = CALIBRATION,
    images: int = 8,
    *,
    times: Mapping[str, LayerTime] | None = None,
    decoder: Path | None = None,
    progress: Progress = log,
) -> Fp8Report:
    """Writes to `out` the engine folder `engine` with UNet layers in FP8 or int8 (`fp8.quantize`); the report is `fp8.json`.

    `model` is the fused model that the engine was exported from, with the tiny decoder `decoder` if any. `sampling` makes
    `images` of its identities and cameras for calibration; every second one is held out. The other parts are copied. Raises
    `InputError` for a bf16 engine (int8: any but fp32), for a model with too few identities and cameras, and for an `out`
    that holds anything but the result of equal arguments, which is returned.
    """
    engine, out, config = Path(engine), Path(out), config or Fp8Config()
    bundle, spec, parts = exported_graphs(model, engine, decoder)
    if spec.precision == "bf16":
        raise InputError(f"quantize: {engine} is bf16; export it in fp16 or fp32")
    if config.to == "int8" and spec.precision != "fp32":
        raise InputError(f"quantize: {engine} is {spec.precision}, int8 is for engines in fp32; export it so")
    record = {"source": spec.sha256, "config": to_dict(config), "sampling": to_dict(sampling), "images": images}
    record |= {"times": None if times is None else {name: to_dict(time) for name, time in times.items()}}
    made = replace(spec, precision=config.to)
    if already_there("quantize", out, made, ("model_fingerprint", "precision"), record, progress) is not None:
        return read_report(out)
    file = spec.files["unet"]
    keys = _keys(bundle, images)
    scales, held_out = (
        sampling_inputs(bundle, parts["unet"], keys[half::2], range(half, images, 2), sampling) for half in (0, 1)
    )
    with output_folder(out, holds("engine.json")) as folder:
        for name in spec.sha256:
            if not name.startswith(file):  # the graph, or its weights beside it
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(engine / name, folder / name)
        report = quantize(
            engine / file, folder / file, Calibration(scales, held_out), config, times=times, progress=progress
        )
        write_json(folder / REPORT, to_dict(report))
        write_json(folder / "build.json", record)
        write_json(folder / "engine.json", to_dict(replace(made, sha256=file_hashes(folder))))
    return report


def _keys(bundle: ModelBundle, count: int) -> list[PromptKey]:
    """Returns `count` different (pid, camera), spread over all of them."""
    table = bundle.prompts
    keys, cameras = ((), 0) if table is None else (table.keys(), len(table.cameras))
    pairs = [key for camera in range(cameras) for key in keys[camera::cameras]]  # person by person for each camera
    if len(pairs) < count:
        raise InputError(
            f"quantize: the model has {len(pairs)} identities x cameras, --images is {count}; ask for fewer"
        )
    return [pairs[i * len(pairs) // count] for i in range(count)]
