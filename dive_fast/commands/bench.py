"""`dive-fast bench` and `dive-fast capacity`."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import Device, Json, finish, numbers, say, torch_device
from dive_fast.commands.sampling import (
    DEFAULT,
    Guidance,
    GuidanceInterval,
    PresetName,
    Steps,
    chosen_preset,
)
from dive_fast.types import DiveError, InputError, to_dict

if TYPE_CHECKING:
    from dive_fast.bench.run import BenchConfig, Subject

ROWS, COMPARE_ROWS = "2,8,32,64", "2,32"
FEWEST_TURNS = 5  # as dive_fast.bench.compare has it; written again, because --help imports no room


def bench(
    engine: Annotated[
        Path | None, typer.Option(help="Engine folder to measure, from dive-fast export or build, or a fused model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Fused model to measure, and of peers: a folder, pocket, or sd15 (random weights of Stable Diffusion 1.5's "
            "size, 4.3 GB on disk meanwhile). By default sd15 on a GPU and pocket on a CPU."
        ),
    ] = None,
    backend: Annotated[
        Literal["auto", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "torch", "torch-compiled"],
        typer.Option(help="What runs the networks; auto, for a model: torch-compiled on a GPU, else onnxruntime."),
    ] = "auto",
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"], typer.Option(help="Of a model; an engine folder has its own.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default the backend's choice.")] = None,
    rows: Annotated[
        str | None, typer.Option(help=f"UNet rows a call, comma-separated: {ROWS}; with --compare {COMPARE_ROWS}.")
    ] = None,
    preset: PresetName = None,
    steps: Steps = None,
    guidance: Guidance = DEFAULT.guidance,
    guidance_interval: GuidanceInterval = None,
    image_format: Annotated[Literal["png", "jpg"], typer.Option(help="What images are written as.")] = "png",
    repeats: Annotated[int, typer.Option(min=1, help="Timed UNet calls of each row count.")] = 10,
    turns: Annotated[int, typer.Option(min=1, help="Timed batches of each row count, and turns of the peers.")] = 5,
    peers: Annotated[
        str,
        typer.Option(
            help="Measured on equal terms: all, none, or some of reference,tuned,compiled,onnxruntime,tensorrt."
        ),
    ] = "none",
    peer_rows: Annotated[int, typer.Option(min=1, help="UNet rows a call of the peers; DiVE's 18 images are 36.")] = 36,
    tensorrt: Annotated[Path | None, typer.Option(help="Built engine folder for the peer tensorrt.")] = None,
    presets: Annotated[
        str,
        typer.Option(
            help="Run in the same turns as the peers, on as many rows: all, none, or some of exact,fast,turbo. Their images "
            "are others; docs/presets.md says what they are worth."
        ),
    ] = "none",
    compare: Annotated[
        str | None, typer.Option(help="Git commit whose speed is compared with this working tree's, on --model.")
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            min=0, help="With --compare: exit with 1 if batches are fewer times as fast, and slower in every turn."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, bench.csv and plots.")] = None,
    json: Json = False,
) -> None:
    """Measure an engine: images/s, stages, memory, share of the machine's own ceilings; beside peers, or another commit."""
    from dive_fast.bench.peers import chosen
    from dive_fast.bench.run import BenchConfig
    from dive_fast.sampling.config import PRESETS

    if fail_below is not None and (compare is None or turns < FEWEST_TURNS):
        raise InputError(
            f"--fail-below is of --compare with at least {FEWEST_TURNS} --turns, which tell noise from a loss"
        )
    where = torch_device(device)
    wanted = chosen_preset(preset, steps, guidance, guidance_interval)
    config = BenchConfig(
        rows=tuple(numbers(rows or (ROWS if compare is None else COMPARE_ROWS))),
        sampling=wanted.sampling,
        image_format=image_format,
        repeats=repeats,
        turns=turns,
        peers=chosen(peers),
        peer_rows=peer_rows,
        tensorrt=tensorrt,
        presets=chosen(presets, tuple(PRESETS), "--presets"),
    )
    with tempfile.TemporaryDirectory(prefix="dive-bench-") as folder:
        work = Path(folder)
        if compare is None:
            subject = _subject(engine, model, backend, device, where, precision, threads, config, work)
            if preset is not None:
                say(f"preset {preset}: {wanted.describe(subject.engine.spec.precision)}")
            _measure(subject, config, out, work, json)
        elif engine is not None or config.competes or precision != "auto":
            raise InputError(
                "--compare runs a --model by two source trees; leave out --engine, --peers, --presets and --precision"
            )
        else:
            _compare(compare, model or "auto", backend, where, threads, config, fail_below, out, work, json)


def _subject(
    engine: Path | None,
    model: str | None,
    backend: str,
    device: str,
    where: str,
    precision: str,
    threads: int | None,
    config: BenchConfig,
    work: Path,
) -> Subject:
    """What is measured, opened; `where` is `device` with auto resolved."""
    from dive_fast.bench import run

    if engine is not None:
        from dive_fast.engines import load_engine

        fused = run.model_folder(model, where, work)[1] if model is not None else _weights(engine)
        opened = load_engine(engine, backend, device, threads, precision=precision)
        return run.Subject(str(engine), opened, engine, fused)
    name, folder = run.model_folder(model or "auto", where, work)
    kind, why = run.chosen_backend(backend, where)
    say(f"{name}, backend {kind} ({why})")
    most = max(*config.rows, config.peer_rows if config.competes else 1)
    return run.open_model(name, folder, kind, where, precision, threads, most, work)


def _weights(engine: Path) -> Path | None:
    """The folder itself, where it is a fused model and not graphs alone."""
    return engine if (engine / "model_index.json").is_file() and any((engine / "unet").glob("*.safetensors")) else None


def _measure(subject: Subject, config: BenchConfig, out: Path | None, work: Path, json: bool) -> None:
    from tqdm import tqdm

    from dive_fast.bench import plots, results, run

    if out is not None:
        plots.require_matplotlib()
    say(subject.engine.describe())
    with tqdm(total=run.parts(config), desc="bench", unit="part") as bar:

        def advance(part: str) -> None:
            bar.set_postfix_str(part)
            bar.update()

        def keep(found: results.BenchResult) -> None:
            if out is not None:
                results.write_files(found, out)
                plots.plot_bench(found, out)

        found = run.run_bench(subject, config, work, say, advance, keep)
    keep(found)
    finish(results.text(found), {**results.record(found), "out": out}, json)


def _compare(
    ref: str,
    model: str,
    backend: str,
    device: str,
    threads: int | None,
    config: BenchConfig,
    fail_below: float | None,
    out: Path | None,
    work: Path,
    json: bool,
) -> None:
    from tqdm import tqdm

    from dive_fast.bench import compare, machine, run
    from dive_fast.io import write_json

    there = work / "tree"
    commit = compare.other_tree(ref, there)
    name, folder = run.model_folder(model, device, work)
    kind, why = run.chosen_backend(backend, device)
    say(f"{name}, backend {kind} ({why}), {commit[:12]} against this working tree")
    task = compare.Task(
        str(folder.resolve()) if folder.is_dir() else str(folder),
        kind,
        device,
        config.rows,
        config.sampling,
        threads,
        config.repeats,
    )
    with tqdm(total=2 * config.turns, desc="compare", unit="process") as bar:

        def advance(part: str) -> None:
            bar.set_postfix_str(part)
            bar.update()

        found = compare.compare_trees(there, task, work, config.turns, advance=advance)
    record = {
        "model": name,
        "task": {key: value for key, value in to_dict(task).items() if key != "model"},
        "commit there": commit,
        "commit here": machine.commit(),
        "hardware": machine.hardware(device),
        "versions": machine.versions(),
        "turns": config.turns,
        "differences": [to_dict(difference) for difference in found],
    }
    if out is not None:
        write_json(out / "compare.json", record)
    finish("\n".join(compare.lines(found, commit)), record, json)
    worst = compare.regression(found, fail_below or 0.0)
    if worst is not None:
        raise DiveError(
            f"--compare {ref}: batches of {worst.rows} rows are {worst.faster.median:.3f} times as fast, "
            f"{fail_below} is asked for"
        )


def capacity(
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to make.")],
    rate: Annotated[
        float | None, typer.Option(help="Measured images/s of one GPU; by default that of --result.")
    ] = None,
    bytes_per_image: Annotated[
        float | None, typer.Option(help="Bytes of an image on the disk; by default those of --result.")
    ] = None,
    result: Annotated[
        Path | None, typer.Option(help="bench.json of dive-fast bench: its fastest rate, and its bytes an image.")
    ] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of workers, one GPU each, comma-separated.")] = "1,8,64,1000",
    images_per_pair: Annotated[int, typer.Option(min=1, max=2, help="Generated sides of a pair; with real RGB 1.")] = 2,
    disk_write: Annotated[float, typer.Option(help="MB/s that the one disk of all workers writes.")] = math.inf,
    network: Annotated[float, typer.Option(help="Gb/s from all workers together to that disk.")] = math.inf,
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs a shard, as dive-fast plan has it.")] = 64,
    startup: Annotated[float, typer.Option(min=0, help="Seconds until a worker computes, after a failure too.")] = 60.0,
    mtbf_hours: Annotated[float, typer.Option(help="Mean hours between failures of one worker.")] = math.inf,
    rate_spread: Annotated[
        float, typer.Option(min=0, help="Standard deviation of the workers' rates over their mean.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulation that checks the closed form.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for capacity.json and capacity.png.")] = None,
    json: Json = False,
) -> None:
    """Predict time, GPU-hours and disk of a job on 1 to 1,000 GPUs, and where disk or network binds."""
    from dive_fast.bench import plots
    from dive_fast.bench.capacity import Fleet, measured, predict, table
    from dive_fast.bench.results import finite
    from dive_fast.io import write_json

    if out is not None:
        plots.require_matplotlib()
    known = (None, None) if result is None else measured(result)
    images_per_second, size = (given or found for given, found in zip((rate, bytes_per_image), known, strict=True))
    if images_per_second is None or size is None:
        raise InputError("capacity: give --rate and --bytes-per-image, or --result with a bench.json that has both")
    fleet = Fleet(
        images_per_second,
        pairs,
        size,
        images_per_pair,
        disk_write,
        network,
        shard_size,
        startup,
        mtbf_hours,
        rate_spread,
    )
    found = [predict(fleet, workers, seed) for workers in numbers(gpus)]
    record = finite(
        {
            "kind": "prediction",
            "fleet": to_dict(fleet),
            "disk bytes": fleet.images * fleet.bytes_per_image,
            "binds": {"what": fleet.shared[0], "workers": fleet.binds_at},
            "seed": seed,
            "workers": [to_dict(prediction) for prediction in found],
        }
    )
    if out is not None:
        write_json(out / "capacity.json", record)
        plots.plot_capacity(fleet, found, out / "capacity.png")
    finish(table(fleet, found), record, json)
    if not all(prediction.agrees for prediction in found):
        raise DiveError("capacity: the simulation does not agree with the closed form, see the table; trust neither")
