"""`dive-fast export`, `quantize`, `build` and `refit`: from a fused model to engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dive_export.options import CALIBRATION, RECIPES, BuildConfig, Fp8Config, GraphOptions
from dive_fast.commands.common import WITHOUT_DRY_RUN, Json, LastFile, beside, finish, following
from dive_fast.io import write_json
from dive_fast.options import Changes
from dive_fast.progress import log
from dive_fast.sampling.config import Sampling
from dive_fast.settings import ImageSize, OneOf, PositiveInt
from dive_fast.types import InputError, to_dict

if TYPE_CHECKING:
    from dive_export.tensorrt import Forecast
    from dive_fast.types import EngineSpec

TinyDecoder = Annotated[
    Path | None, "Tiny decoder of the engine, from dive-fast distil-decoder; by default the model's own decoder."
]


def export(
    model: Annotated[Path, "Fused model folder, from dive-fast fuse."],
    out: Annotated[Path, "Engine folder to write."],
    options: Changes[GraphOptions],
    recipe: Annotated[
        str,
        OneOf(tuple(RECIPES)),
        "Settings to start from: cpu, the defaults shown; gpu, variant kv-cache in fp16 for 144 rows. Options that are "
        "given override the recipe.",
    ] = "cpu",
    rows_max: Annotated[
        PositiveInt | None, "Most UNet rows per call, two per image with guidance; by default 64, with recipe gpu 144."
    ] = None,
    size: Annotated[ImageSize | None, "Image size; by default the model's own."] = None,
    decoder: TinyDecoder = None,
    check: Annotated[bool, "Measure each part against torch and refuse what is over budget."] = True,
    blocks: Annotated[bool, "Also measure the UNet block by block, into blocks.json, and show it."] = False,
    json: Json = False,
) -> None:
    """Export a fused model to an engine folder: ONNX opset 23, for onnxruntime and for dive-fast build."""
    from dive_export.artifact import export_engine

    last = LastFile(out / "engine.json")
    chosen = RECIPES[recipe]()
    spec = export_engine(
        model,
        out,
        chosen.rows_max if rows_max is None else rows_max,
        check,
        size=size,
        options=options.apply_to(chosen.options),
        decoder=decoder,
        rows_usual=chosen.rows_usual,
    )
    text = _describe(out, spec)
    if blocks:
        text = f"{_block_report(model, out, decoder)}\n{text}"
    finish(text, {"engine": out, **to_dict(spec)}, json, then=_planning(out), kept=last.kept)


def _planning(engine: Path) -> str:
    """Returns the command that uses an engine folder next."""
    return following("plan", model=engine, photos="folder:PHOTOS", out=beside(engine, "plan.json"))


def _block_report(model: Path, out: Path, decoder: Path | None) -> str:
    """Measures an exported UNet block by block, writes `blocks.json` and returns the numbers as a table."""
    from dive_export.fp8_engine import exported_graphs
    from dive_export.probe import graph_parity, table

    _, _, graphs = exported_graphs(model, out, decoder)
    found = graph_parity(graphs["unet"], out / "unet" / "model.onnx")
    write_json(out / "blocks.json", [to_dict(row) for row in found])
    return table(found)


def _describe(out: Path, spec: EngineSpec) -> str:
    profile = spec.profile
    rows = f"rows {', '.join(map(str, spec.row_counts))}" if spec.row_counts else f"up to {profile.rows_max} rows"
    optimizations = f", optimizations: {', '.join(spec.optimizations)}" if spec.optimizations else ""
    where = f" for {spec.gpu}" if spec.gpu else ""
    return (
        f"engine {out}: {spec.backend} {spec.precision}{where}, variant {spec.variant}, {profile.height}x{profile.width}"
        f"{' or any other' if spec.any_size else ''}, {rows}{optimizations}"
    )


def build(
    engine: Annotated[Path, "Exported engine folder (ONNX), from dive-fast export."],
    out: Annotated[Path, "TensorRT engine folder to write."],
    config: BuildConfig,
    dry_run: Annotated[
        bool, "Show profiles, memory and disk needs and what is missing, without building anything."
    ] = False,
    json: Json = False,
) -> None:
    """Build a TensorRT engine from an exported one, with a cache; rerun to continue."""
    from dive_export import tensorrt

    if dry_run:
        forecast = tensorrt.dry_run(engine, out, config)
        finish(_forecast_table(forecast), {"engine": out, **to_dict(forecast)}, json, then=WITHOUT_DRY_RUN)
        return
    last = LastFile(out / "engine.json")
    spec = tensorrt.build_engine(engine, out, config, log)
    finish(_describe(out, spec), {"engine": out, **to_dict(spec)}, json, then=_planning(out), kept=last.kept)


def _forecast_table(forecast: Forecast) -> str:
    """Returns the forecast for a reader; figures marked ~ are estimates."""
    lines = [f"{forecast.backend} for {forecast.gpu or 'the GPU of the machine that builds'}"]
    for part in forecast.parts:
        made = "from the cache" if part.cached else "to be built"
        lines.append(
            f"{part.part}: {made}, weights {part.weights / 1e6:,.1f} MB, activations ~{part.activations / 1e6:,.1f} MB"
        )
        lines += [f"  profile {number}: {shapes}" for number, shapes in enumerate(part.profiles, start=1)]
    lines.append(f"disk ~{forecast.disk / 1e9:,.2f} GB, free {forecast.disk_free / 1e9:,.1f} GB")
    lines += [f"missing: {reason}" for reason in forecast.missing] or ["nothing is missing"]
    return "\n".join(lines)


def refit(
    engine: Annotated[Path, "TensorRT engine folder, from dive-fast build --refittable."],
    weights: Annotated[Path, "Exported engine folder (ONNX) of the same graphs with another adapter's weights."],
    out: Annotated[Path, "TensorRT engine folder to write; --engine is not changed."],
    json: Json = False,
) -> None:
    """Put another adapter's weights into a refittable engine, without a build."""
    from dive_export import tensorrt

    last = LastFile(out / "engine.json")
    spec = tensorrt.refit_engine(engine, weights, out, log)
    finish(_describe(out, spec), {"engine": out, **to_dict(spec)}, json, then=_planning(out), kept=last.kept)


def quantize(
    engine: Annotated[Path, "Exported engine folder (ONNX, fp16 or fp32), from dive-fast export."],
    model: Annotated[Path, "Fused model folder that the engine was exported from; it samples the calibration inputs."],
    out: Annotated[Path, "Engine folder to write, its UNet with FP8 or int8 layers."],
    config: Fp8Config,
    sampling: Sampling = CALIBRATION,
    decoder: TinyDecoder = None,
    images: Annotated[
        PositiveInt, "Images sampled for calibration, an even number: half set scales, half are held out."
    ] = 8,
    times: Annotated[
        Path | None, "Timing table of a GPU (docs/precision.md): layers that FP8 does not speed up stay."
    ] = None,
    json: Json = False,
) -> None:
    """Put the UNet's layers into FP8, or int8 for a CPU, as far as the error allows; docs/precision.md."""
    from dive_export.fp8_engine import quantize_engine
    from dive_export.fp8_report import read_times
    from dive_fast.models.sampling_file import read_sampling
    from dive_fast.models.student import check_sampling, read_student

    if sampling == CALIBRATION and read_student(model) is not None:
        sampling = read_sampling(model) or sampling
    check_sampling(model, sampling)
    if images % 2:
        raise InputError(f"--images must be even, got {images}: half set the scales, half measure the error")
    table = None if times is None else read_times(times)
    last = LastFile(out / "engine.json")
    report = quantize_engine(engine, model, out, config, sampling, images, times=table, decoder=decoder, progress=log)
    text = (
        f"engine {out}: {len(report.quantised)} of {len(report.layers)} layers in {report.to}, "
        f"error {report.error:.1%} of {report.budget:.1%} allowed"
    )
    finish(text, {"engine": out, **to_dict(report)}, json, then=_planning(out), kept=last.kept)
