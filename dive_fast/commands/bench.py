"""`dive-fast bench` and `dive-fast capacity`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.bench.config import BenchConfig, preset_of
from dive_fast.bench.fleet import Fleet
from dive_fast.commands.common import (
    Backend,
    Device,
    EnginePrecision,
    Json,
    LastFile,
    Overwrite,
    PresetName,
    Threads,
    beside,
    finish,
    following,
    preset_sampling,
    torch_device,
)
from dive_fast.options import Changes
from dive_fast.outputs import check_new, json_with
from dive_fast.progress import ProgressBar, log
from dive_fast.sampling.config import Sampling
from dive_fast.settings import NonNegativeFloat, NonNegativeInt, Part, PositiveFloat, PositiveInt
from dive_fast.types import InputError, shown, to_dict

if TYPE_CHECKING:
    from dive_fast.bench.run import Choice, Subject

COMPARE_ROWS = (2, 32)


def bench(
    config: Changes[BenchConfig],
    engine: Annotated[
        Path | None, "Engine folder to measure, from dive-fast export or build, or a fused model."
    ] = None,
    model: Annotated[
        str | None,
        "Fused model to measure, and of the baselines: a folder, pocket, or sd15 (random weights of Stable Diffusion 1.5's "
        "size, 4.3 GB on disk meanwhile). By default sd15 on a GPU and pocket on a CPU. Beside a student's --engine, its "
        "teacher may be given.",
    ] = None,
    backend: Backend = "auto",
    device: Device = "auto",
    precision: EnginePrecision = "auto",
    threads: Threads = None,
    preset: PresetName = None,
    compare: Annotated[str | None, "Git commit whose speed is compared with this working tree's, on --model."] = None,
    fail_below: Annotated[
        NonNegativeFloat | None,
        "With --compare: exit with 1 if batches are fewer times as fast, and slower in every round.",
    ] = None,
    out: Annotated[Path | None, "Folder for bench.json, bench.csv and plots."] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure an engine: images/s, stages, memory, fraction of the machine's peaks; beside baselines or another commit."""
    from dive_fast.bench.compare import FEWEST_ROUNDS
    from dive_fast.models.files import resolve
    from dive_fast.models.sampling_file import read_sampling
    from dive_fast.models.student import check_sampling

    folder = engine or resolve(model or "pocket", "pocket-base")
    sampling = preset_sampling(preset, folder, read_sampling(folder) or Sampling())
    base = BenchConfig(sampling=sampling, rows=BenchConfig.rows if compare is None else COMPARE_ROWS)
    measured = config.apply_to(base)
    check_sampling(folder, measured.sampling)
    for name in measured.presets:
        check_sampling(folder if model is None else Path(model), preset_of(name).applied_to(measured.sampling))
    if fail_below is not None and (compare is None or measured.rounds < FEWEST_ROUNDS):
        raise InputError(f"--fail-below requires --compare and at least {FEWEST_ROUNDS} --rounds: fewer are noise")
    if out is not None:
        check_new(out / ("bench.json" if compare is None else "compare.json"), json_with("hardware"), overwrite)
    from dive_fast.bench import run  # loads torch

    choice = run.Choice(engine, model, backend, device, torch_device(device), precision, threads)
    with tempfile.TemporaryDirectory(prefix="dive-bench-") as temporary:
        work = Path(temporary)
        if compare is None:
            subject = run.open_subject(choice, measured, work, log)
            log(f"sampling: {measured.sampling.describe()}")
            _measure(subject, measured, out, work, json)
        elif engine is not None or measured.has_baselines or precision != "auto":
            raise InputError(
                "--compare measures a --model with two source trees; leave out --engine, --baselines, --presets and "
                "--precision"
            )
        else:
            _compare(compare, choice, measured, fail_below, out, work, json)


def _measure(subject: Subject, config: BenchConfig, out: Path | None, work: Path, json: bool) -> None:
    from dive_fast.bench import plots, results, run

    if out is not None:
        import matplotlib  # noqa: F401 - a missing package ends the command before the measurement
    log(subject.engine.describe())
    with ProgressBar(total=run.parts(config), desc="bench", unit="part") as bar:

        def advance(part: str) -> None:
            bar.set_postfix_str(part)
            bar.update()

        def keep(found: results.BenchResult) -> None:
            if out is not None:
                results.write_files(found, out)
                plots.plot_bench(found, out)

        found = run.run_bench(subject, config, work, log, advance, keep)
    keep(found)
    then = "the same command with --out FOLDER, which dive-fast capacity reads"
    if out is not None:
        then = following("capacity", result=out / "bench.json", pairs=1_000_000)
    finish(results.text(found), {**results.record(found), "out": out}, json, then=then)


def _compare(
    ref: str,
    choice: Choice,
    config: BenchConfig,
    fail_below: float | None,
    out: Path | None,
    work: Path,
    json: bool,
) -> None:
    from dive_fast.bench import compare, machine, run
    from dive_fast.io import write_json

    there = work / "tree"
    commit = compare.other_tree(ref, there)
    name, folder = run.model_folder(choice.model or "auto", choice.computes_on, work)
    kind, why = run.chosen_backend(choice.backend, choice.computes_on)
    log(f"{name}, backend {kind} ({why}), {commit[:12]} against this working tree")
    task = compare.Task(
        str(folder.resolve()) if folder.is_dir() else str(folder),
        kind,
        choice.computes_on,
        config.rows,
        config.sampling,
        choice.threads,
        config.repeats,
    )
    with ProgressBar(total=2 * config.rounds, desc="compare", unit="process") as bar:

        def advance(part: str) -> None:
            bar.set_postfix_str(part)
            bar.update()

        found = compare.compare_trees(there, task, work, config.rounds, advance=advance)
    record = {
        "model": name,
        "task": {key: value for key, value in to_dict(task).items() if key != "model"},
        "commit there": commit,
        "commit here": machine.commit(),
        "hardware": machine.hardware(choice.computes_on),
        "versions": machine.versions(),
        "rounds": config.rounds,
        "differences": [to_dict(difference) for difference in found],
    }
    if out is not None:
        write_json(out / "compare.json", record)
    worst = compare.regression(found, fail_below or 0.0)
    failure = ""
    if worst is not None:
        found_rate = f"batches of {worst.rows} rows are {worst.faster.median:.3f} times as fast"
        failure = f"--compare {ref}: {found_rate}, {fail_below} is asked for"
    finish(
        "\n".join(compare.lines(found, commit)),
        record,
        json,
        failure=failure,
        then="the same command without --compare",
    )


def capacity(
    fleet: Annotated[Changes[Fleet], Part(skip=("pairs", "rate", "bytes_per_image"))],
    pairs: Annotated[PositiveInt | None, "Pairs to generate; by default those of --plan."] = None,
    plan: Annotated[Path | None, "Plan file whose pairs, mode and shards are counted."] = None,
    rate: Annotated[PositiveFloat | None, "Measured images/s of one worker; by default that of --result."] = None,
    bytes_per_image: Annotated[
        PositiveFloat | None, "Bytes of an image on the disk; by default those of --result."
    ] = None,
    result: Annotated[Path | None, "bench.json of dive-fast bench: its fastest rate, and its bytes per image."] = None,
    gpus: Annotated[tuple[int, ...], "Numbers of workers, one GPU (or, for a CPU's rate, one CPU) each."] = (
        1,
        8,
        64,
        1000,
    ),
    seed: Annotated[NonNegativeInt, "Seed of the simulation that checks the closed form."] = 0,
    out: Annotated[Path | None, "Folder for capacity.json and capacity.png."] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Predict time, GPU-hours and disk of a job on 1 to 1,000 GPUs, and where disk or network binds."""
    from dive_fast.bench import plots
    from dive_fast.bench.capacity import measured, predict, table
    from dive_fast.bench.results import finite
    from dive_fast.io import readable_json
    from dive_fast.outputs import json_with, write_output

    if out is not None:
        import matplotlib  # noqa: F401
    known = {} if result is None else measured(result)
    known |= {} if plan is None else _planned(plan, result if rate is None else None)
    given = {"pairs": pairs, "rate": rate, "bytes_per_image": bytes_per_image}
    known |= {name: value for name, value in given.items() if value is not None}
    if not given.keys() <= known.keys():
        raise InputError(
            "capacity: give --pairs or --plan, and --rate and --bytes-per-image or --result with a bench.json that has both"
        )
    job = fleet.apply_to(Fleet(**known))
    found = [predict(job, workers, seed) for workers in gpus]
    record = finite(
        {
            "kind": "prediction",
            "fleet": to_dict(job),
            "disk bytes": job.images * job.bytes_per_image,
            "binds": {"what": job.shared[0], "workers": job.binds_at},
            "seed": seed,
            "workers": [to_dict(prediction) for prediction in found],
        }
    )
    last = LastFile(None if out is None else out / "capacity.json")
    if out is not None:
        write_output(out / "capacity.json", readable_json(record), json_with("fleet", "workers"), overwrite)
        plots.plot_capacity(job, found, out / "capacity.png")
    doubt = "capacity: the simulation does not agree with the closed form, see the table; trust neither"
    failure = "" if all(prediction.agrees for prediction in found) else doubt
    finish(table(job, found), record, json, failure=failure, then=_after_capacity(job, plan), kept=last.kept)


def _after_capacity(job: Fleet, plan: Path | None) -> str:
    """Returns the command that starts the job whose size was predicted."""
    if plan is not None:
        return following("synth", plan=plan, engine="ENGINE", out=beside(plan, "pairs"))
    photos = None if job.mode == "synthetic" else "folder:PHOTOS"
    return following("plan", model="ENGINE", mode=job.mode, photos=photos, out="plan.json")


def _planned(plan: Path, result: Path | None) -> dict[str, Any]:
    """Returns the fields of a `Fleet` that a plan decides; warns of a `result` whose rate is that of another sampling."""
    from dive_fast.bench.capacity import measured_sampling
    from dive_fast.io import canonical_json
    from dive_fast.synth import load_plan

    planned = load_plan(plan)
    own = measured_sampling(result) if result is not None else None
    if own is not None and canonical_json(own) != canonical_json(to_dict(planned.sampling)):
        steps, guidance = shown(own.get("steps")), shown(own.get("guidance"))
        log(
            f"note: --result was measured with {steps} steps and guidance {guidance}, the plan has "
            f"{planned.sampling.describe()}: bench with the plan's --steps and --guidance for its rate"
        )
    return {"pairs": len(planned.pairs), "mode": planned.mode, "shard_size": planned.shard_size}
