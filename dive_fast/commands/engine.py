"""`dive-fast export`, `quantize`, `build` and `refit`: from a fused model to engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import Json, finish, image_size, names, numbers, say
from dive_fast.io import write_json
from dive_fast.types import InputError, to_dict

if TYPE_CHECKING:
    from dive_export.tensorrt import Forecast
    from dive_fast.types import EngineSpec

GIB = 1 << 30
SAVINGS_HELP = (
    "Exact savings in the UNet's graph, comma-separated, or none; by default all that the form allows: time_table, "
    "shared_prefix (form bank), unit_scale, fused_qkv."
)


def export(
    model: Annotated[Path, typer.Option(help="Fused model folder, from dive-fast fuse.")],
    out: Annotated[Path, typer.Option(help="Engine folder to write.")],
    rows_max: Annotated[int, typer.Option(min=1, help="Most UNet rows a call; guidance takes two an image.")] = 64,
    size: Annotated[str | None, typer.Option(help="Image size HEIGHTxWIDTH; by default the model's own.")] = None,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Leave height and width free in the graphs; --size is then the default.")
    ] = False,
    form: Annotated[
        Literal["plain", "bank"],
        typer.Option(
            help="What the UNet reads of the prompts: plain, their embeddings (optimum's names), or bank, keys and values "
            "computed once for all steps."
        ),
    ] = "plain",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Type of weights and of what goes in and out.")
    ] = "fp32",
    savings: Annotated[str | None, typer.Option(help=SAVINGS_HELP)] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Form bank: one node a cross-attention, for which dive-fast build --kernels takes our kernel (saving "
            "kv_gather). Other runtimes run it too, but gain nothing.",
        ),
    ] = False,
    check: Annotated[bool, typer.Option(help="Measure each part against torch and refuse what is over budget.")] = True,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Also measure the UNet block by block, into blocks.json, and show it.")
    ] = False,
    json: Json = False,
) -> None:
    """Export a fused model to an engine folder: ONNX opset 23, for onnxruntime and for dive-fast build."""
    from dive_export import GraphOptions, export_engine

    removed = None if savings is None else () if savings == "none" else tuple(names(savings))
    options = GraphOptions(form=form, precision=precision, removed=removed, any_size=any_size, kernels=kernels)
    spec = export_engine(model, out, rows_max, check, size=image_size(size), options=options)
    text = _described(out, spec)
    if blocks:
        text = f"{_block_report(model, out)}\n{text}"
    finish(text, {"engine": out, **to_dict(spec)}, json)


def _block_report(model: Path, out: Path) -> str:
    """Measures an exported UNet block by block, keeps the numbers in `blocks.json` and gives them as a table."""
    from dive_export.fp8_engine import exported_graphs
    from dive_export.probe import graph_parity, table

    _, _, graphs = exported_graphs(model, out)
    found = graph_parity(graphs["unet"], out / "unet" / "model.onnx")
    write_json(out / "blocks.json", [to_dict(row) for row in found])
    return table(found)


def _described(out: Path, spec: EngineSpec) -> str:
    profile = spec.profile
    rows = f"rows {', '.join(map(str, spec.row_counts))}" if spec.row_counts else f"up to {profile.rows_max} rows"
    savings = f", saved: {', '.join(spec.removed)}" if spec.removed else ""
    where = f" for {spec.gpu}" if spec.gpu else ""
    return (
        f"engine {out}: {spec.backend} {spec.precision}{where}, form {spec.form}, {profile.height}x{profile.width}"
        f"{' or any other' if spec.any_size else ''}, {rows}{savings}"
    )


def build(
    engine: Annotated[Path, typer.Option(help="Exported engine folder (ONNX), from dive-fast export.")],
    out: Annotated[Path, typer.Option(help="TensorRT engine folder to write.")],
    flavour: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(
            help="tensorrt, for data-centre GPUs too, or tensorrt-rtx, for RTX cards, which builds without a GPU."
        ),
    ] = "tensorrt",
    rows: Annotated[
        str, typer.Option(help="The UNet's row counts, comma-separated: a static profile each; calls are padded up.")
    ] = "36,72,144",
    vae_rows: Annotated[str, typer.Option(help="The same for both halves of the VAE.")] = "1,18",
    text_rows: Annotated[str, typer.Option(help="The same for the text encoder, in prompts.")] = "1,64",
    prompts_max: Annotated[int, typer.Option(min=1, help="Form bank: most prompts in a bank.")] = 1024,
    refittable: Annotated[
        bool,
        typer.Option("--refittable", help="Keep weights out of the plans: another adapter needs dive-fast refit only."),
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="tensorrt: take our compiled cross-attention kernel for a UNet exported with --kernels (docs/tensorrt.md).",
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(help="tensorrt-rtx: compute capability to build for, as 8.9; by default Ampere and later."),
    ] = None,
    compatibility: Annotated[
        str,
        typer.Option(help="tensorrt: which GPUs may run the plans: none (this one), same-capability, ampere; slower."),
    ] = "none",
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="How hard TensorRT searches; by default as it likes.")
    ] = None,
    workspace: Annotated[
        float | None, typer.Option(min=0.01, help="Most GPU memory for a layer's scratch, in GiB.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of plans and timings built before; by default in the user's cache.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show profiles, memory and disk needs and what is missing; build nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Build a TensorRT engine from an exported one, with a cache; rerun to continue."""
    from dive_export import tensorrt

    config = tensorrt.BuildConfig(
        flavour=flavour,
        rows=tuple(numbers(rows)),
        vae_rows=tuple(numbers(vae_rows)),
        text_rows=tuple(numbers(text_rows)),
        prompts_max=prompts_max,
        refittable=refittable,
        kernels=kernels,
        target=target,
        compatibility=compatibility,
        level=level,
        workspace=None if workspace is None else int(workspace * GIB),
        cache=cache,
    )
    if dry_run:
        forecast = tensorrt.dry_run(engine, out, config)
        finish(_forecast_table(forecast), {"engine": out, **to_dict(forecast)}, json)
        return
    spec = tensorrt.build_engine(engine, out, config, say)
    finish(_described(out, spec), {"engine": out, **to_dict(spec)}, json)


def _forecast_table(forecast: Forecast) -> str:
    """The forecast for a reader; figures marked ~ are estimates."""
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
    engine: Annotated[Path, typer.Option(help="TensorRT engine folder that dive-fast build --refittable made.")],
    weights: Annotated[Path, typer.Option(help="Exported engine folder (ONNX) of the same graphs, another adapter's.")],
    out: Annotated[Path, typer.Option(help="TensorRT engine folder to write; the first one stays as it is.")],
    json: Json = False,
) -> None:
    """Give another adapter's weights to a refittable engine, without a build; the given engine is left untouched."""
    from dive_export import tensorrt

    spec = tensorrt.refit_engine(engine, weights, out, say)
    finish(_described(out, spec), {"engine": out, **to_dict(spec)}, json)


def quantize(
    engine: Annotated[Path, typer.Option(help="Exported engine folder (ONNX, fp16 or fp32), from dive-fast export.")],
    model: Annotated[Path, typer.Option(help="The fused model folder that it was exported from: it makes the inputs.")],
    out: Annotated[Path, typer.Option(help="Engine folder to write, its UNet with FP8 layers.")],
    budget: Annotated[
        float, typer.Option(min=0, help="Most error of the UNet's output on held-out inputs, over its own size.")
    ] = 0.05,
    percentile: Annotated[
        float, typer.Option(min=0, max=100, help="Of activations, becomes FP8's largest value; 100: the largest one.")
    ] = 100.0,
    people: Annotated[
        int, typer.Option(min=2, help="Images sampled for inputs; half set scales, half are held out.")
    ] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of that sampling.")] = 10,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance of that sampling.")] = 2.0,
    times: Annotated[
        Path | None, typer.Option(help="Timing table of a GPU (docs/precision.md): layers FP8 does not speed up stay.")
    ] = None,
    json: Json = False,
) -> None:
    """Put the UNet's layers into FP8 by explicit quantisation, as far as the error allows; docs/precision.md."""
    from dive_export.fp8 import Fp8Config, read_times
    from dive_export.fp8_engine import Sampling, quantize_engine

    if people % 2:
        raise InputError(f"--people must be even, got {people}: half set the scales, half measure the error")
    report = quantize_engine(
        engine,
        model,
        out,
        Fp8Config(budget=budget, percentile=percentile),
        Sampling(people, steps, guidance),
        times=None if times is None else read_times(times),
        progress=say,
    )
    text = (
        f"engine {out}: {len(report.quantised)} of {len(report.layers)} layers in FP8, "
        f"error {report.error:.1%} of {report.budget:.1%} allowed"
    )
    finish(text, {"engine": out, **to_dict(report)}, json)
