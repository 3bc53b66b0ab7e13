"""Plots of a bench and of a capacity plan, as PNG; colours as the gallery's (`report/plots.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dive_fast.io import atomic_encode

if TYPE_CHECKING:
    from dive_fast.bench.baselines import BaselineResult, BaselineResults, PresetResult
    from dive_fast.bench.capacity import Prediction
    from dive_fast.bench.fleet import Fleet
    from dive_fast.bench.results import BenchResult
    from dive_fast.bench.timing import Quantiles

INK, GRID = "#22272e", "#e5e7eb"
COLOURS = ("#4c8bd6", "#2a9d8f", "#e08e45", "#b86bd1", "#d65f5f", "#8a9a3b")
FAILED = "#9ca3af"


def plot_bench(result: BenchResult, out: Path) -> None:
    """Draws images-per-second.png, stages.png and roofline.png, and with baselines baselines.png, in the folder `out`."""
    _rates(result, out / "images-per-second.png")
    _stages(result, out / "stages.png")
    _roofline(result, out / "roofline.png")
    if result.baselines is not None:
        _baselines(result.baselines, out / "baselines.png")


def _rates(result: BenchResult, path: Path) -> None:
    rows = [str(row.rows) for row in result.rows]
    rates = [row.images_per_second for row in result.rows]
    with figure(path, f"Images a second by rows a call: {result.model}, {result.backend} {result.precision}") as axes:
        axes.bar(rows, [r.p50 for r in rates], width=0.5, color=COLOURS[0], label="median")
        ends = [[r.p50 - r.p5 for r in rates], [r.p95 - r.p50 for r in rates]]
        axes.errorbar(rows, [r.p50 for r in rates], yerr=ends, fmt="none", ecolor=INK, capsize=4, linewidth=1)
        axes.set(xlabel="UNet rows a call; bars: median, lines: 5 % to 95 %", ylabel="images/s")


def _stages(result: BenchResult, path: Path) -> None:
    rows = [str(row.rows) for row in result.rows]
    with figure(path, "Time an image, by stage") as axes:
        base = [0.0] * len(rows)
        for stage, colour in zip(result.rows[0].stages_ms, COLOURS, strict=False):
            values = [row.stages_ms[stage].p50 / row.images for row in result.rows]
            axes.bar(rows, values, width=0.5, bottom=base, color=colour, label=stage)
            base = [b + v for b, v in zip(base, values, strict=True)]
        axes.set(xlabel="UNet rows a call (writing runs beside the rest in synthesis)", ylabel="ms an image, median")
        _legend(axes)


def _roofline(result: BenchResult, path: Path) -> None:
    rows = result.rows
    with figure(path, "Fraction of the roofline bound: counted work at this machine's measured peaks") as axes:
        for shift, name, colour in ((-0.2, "UNet call", COLOURS[0]), (0.2, "whole batch", COLOURS[1])):
            bounds = [row.unet_bound if name == "UNet call" else row.batch_bound for row in rows]
            places = [at + shift for at in range(len(rows))]
            axes.bar(places, [100 * bound.fraction for bound in bounds], width=0.38, color=colour, label=name)
        axes.set_xticks(range(len(rows)), [str(row.rows) for row in rows])
        axes.axhline(100, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel="UNet rows a call", ylabel="% of the bound")
        _legend(axes)


def _baselines(found: BaselineResults, path: Path) -> None:
    bars = [*map(_baseline_bar, found.results), *map(_preset_bar, found.presets)]
    title = f"Baselines at {found.rows} rows; grey: parity failed{'; orange: other images' if found.presets else ''}"
    with figure(path, title, grid="x", height=1.4 + 0.45 * len(bars)) as axes:
        for at, (_, rate, colour, words) in enumerate(bars):
            axes.barh(at, rate.p50, height=0.6, color=colour)
            axes.errorbar(rate.p50, at, xerr=[[rate.p50 - rate.p5], [rate.p95 - rate.p50]], ecolor=INK, capsize=3)
            axes.annotate(
                words, (rate.p95, at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.65 * max(rate.p95 for _, rate, *_ in bars))
        axes.set_xlabel("images/s; bars: median, lines: 5 % to 95 %")


def _baseline_bar(baseline: BaselineResult) -> tuple[str, Quantiles, str, str]:
    """Name, rate, colour and words of a bar."""
    rate = baseline.images_per_second
    ratio = "" if baseline.ours_faster is None else f", ours {baseline.ours_faster.median:.2f}x"
    colour = FAILED if not baseline.parity.passed else COLOURS[baseline.name == "ours"]
    return baseline.name, rate, colour, f"{rate.p50:.3g}/s, {baseline.parity.psnr:.0f} dB{ratio}"


def _preset_bar(preset: PresetResult) -> tuple[str, Quantiles, str, str]:
    rate = preset.images_per_second
    faster = ", ".join(f"{ratio.median:.2f}x {name}" for name, ratio in list(preset.faster.items())[:2])
    return preset.name, rate, COLOURS[2], f"{rate.p50:.3g}/s{', ' if faster else ''}{faster}"


def plot_capacity(fleet: Fleet, predictions: Sequence[Prediction], path: Path) -> None:
    """Efficiency by workers: the closed form as a line, the simulation as dots, and where the shared limit begins."""
    from dive_fast.bench.capacity import predict

    asked = sorted(p.workers for p in predictions)
    most = max(asked[-1], 2)
    curve = sorted({round(most ** (step / 120)) for step in range(121)} | set(asked))
    with figure(path, "Efficiency by workers (a prediction)") as axes:
        line = [100 * predict(fleet, workers, None).efficiency for workers in curve]
        axes.plot(curve, line, color=COLOURS[0], label="closed form")
        dots = [(p.workers, 100 * p.simulated_efficiency) for p in predictions if p.simulated_efficiency is not None]
        axes.scatter([x for x, _ in dots], [y for _, y in dots], s=22, color=COLOURS[2], zorder=3, label="simulated")
        if fleet.binds_at <= most:
            axes.axvline(
                fleet.binds_at,
                color=INK,
                linewidth=1,
                linestyle=(0, (4, 3)),
                label=f"{fleet.shared[0]} binds: {fleet.binds_at:,.0f}",
            )
        axes.set_xscale("log")
        axes.set_xticks(asked, [f"{workers:,}" for workers in asked])
        axes.set_xticks([], minor=True)
        axes.set(xlabel=f"workers (one {fleet.device} each)", ylabel="% of workers x the measured rate", ylim=(0, 105))
        _legend(axes)


def _legend(axes: Any) -> None:
    """Beside the plot, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))


@contextmanager
def figure(path: Path, title: str, grid: Literal["x", "y"] = "y", height: float = 3.2) -> Iterator[Any]:
    """Axes to draw on; written as the PNG `path` when the block ends."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.8, height), dpi=160, layout="constrained")
    axes = canvas.add_subplot()
    yield axes
    axes.set_title(title.replace("$", r"\$"), loc="left", color=INK, fontsize=10)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelcolor=INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    atomic_encode(path, lambda stream: canvas.savefig(stream, format="png", facecolor="white"))
