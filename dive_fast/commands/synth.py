"""`dive-fast plan`, `synth`, `verify` and `pack`: plan pairs, synthesize them, and check what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.commands.common import (
    Backend,
    Device,
    EnginePrecision,
    Json,
    LastFile,
    Overwrite,
    PhotoSet,
    PresetName,
    Threads,
    beside,
    finish,
    following,
    preset_sampling,
)
from dive_fast.data.names import abbreviate
from dive_fast.data.sets import SET_HELP
from dive_fast.options import Changes
from dive_fast.progress import ProgressBar, log
from dive_fast.sampling.config import SD15, Sampling
from dive_fast.settings import PositiveFloat, PositiveInt, Reads
from dive_fast.synth.config import PlanConfig
from dive_fast.types import InputError, shown, to_dict
from dive_fast.words import count, duration

if TYPE_CHECKING:
    from dive_fast.synth import Summary, SynthesisPlan
    from dive_fast.synth.choose import PlannedModel


def plan(
    model: Annotated[Path, "Engine folder or fused model folder that will generate the images."],
    out: Annotated[Path, "Plan file to write (JSON)."],
    config: Changes[PlanConfig],
    photos: Annotated[PhotoSet | None, f"RGB photos, required unless the mode is synthetic: {SET_HELP}"] = None,
    preset: PresetName = None,
    overrides: Annotated[
        Path | None,
        'JSON file of single identities: {"0001": {"pairs": 36, "ir": ["cam3"]}, ...}; pairs 0 leaves one out.',
    ] = None,
    rate: Annotated[
        PositiveFloat | None, "Images/s that dive-fast bench measured of the engine, to forecast the time."
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Plan which pairs to generate: identity, cameras, seed and photo of each."""
    from dive_fast.synth import save_plan
    from dive_fast.synth.choose import choose, plan_chosen
    from dive_fast.synth.forecast import forecast
    from dive_fast.synth.plan import read_overrides

    known = _model(model)
    settings = config.apply_to(PlanConfig(sampling=preset_sampling(preset, model, known.usual_sampling)))
    chosen = choose(known, photos, settings)
    own = None if overrides is None else read_overrides(overrides)
    made = plan_chosen(known, chosen, photos, settings, own)
    last = LastFile(out)
    save_plan(made, out, overwrite)
    identities, cost = len(made.identities), forecast(made, rate)
    engines = "" if made.precision is None else f", for {made.precision} engines"
    finish(
        f"plan {out}: {count(len(made.pairs), 'pair')} of {count(identities, 'identity')} in "
        f"{count(made.shards, 'shard')}{engines}\n"
        f"{made.height}x{made.width}, {_describe_sampling(made.sampling, known.sampling)}\n{cost.describe()}",
        {
            "plan": out,
            "plan_id": made.plan_id,
            "pairs": len(made.pairs),
            "identities": identities,
            "shards": made.shards,
            "unreadable": chosen.unreadable,
            "sampling": to_dict(made.sampling),
            **to_dict(cost),
        },
        json,
        then=following("synth", plan=out, engine=model, out=beside(out, "pairs")),
        kept=last.kept,
    )


def _describe_sampling(planned: Sampling, own: Sampling | None) -> str:
    """Returns how a plan samples, and how the model does where no option says otherwise."""
    whose = "the model's own" if own is not None else "Stable Diffusion 1.5's, as the model records none"
    base = own or SD15
    return f"{planned.describe()} ({whose}{'' if planned == base else f': {base.describe()}'})"


def _model(folder: Path) -> PlannedModel:
    """Reads the small files of an engine folder; loads a fused model, whose fingerprint depends on its weights."""
    from dive_fast.synth.choose import PlannedModel

    if (folder / "engine.json").is_file():
        from dive_fast.engines.engine_folder import read_spec
        from dive_fast.models import PromptTable

        spec = read_spec(folder)
        size = spec.profile.height, spec.profile.width
        prompts = PromptTable.read(folder / "prompts.json")
        return PlannedModel(prompts, spec.model_fingerprint, size, folder)
    from dive_fast.models import load_bundle
    from dive_fast.train import photos

    bundle = load_bundle(folder)
    if bundle.prompts is None:
        raise InputError(f"{folder} knows no identities; fuse an adapter into it first (dive-fast fuse)")
    return PlannedModel(bundle.prompts, bundle.fingerprint, photos.image_size(bundle), folder)


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise InputError(f"must be I/N, as 0/8, got {shown(text)}")
    return int(number), int(of)


def synth(
    plan: Annotated[Path, "Plan file, from dive-fast plan."],
    engine: Annotated[Path, "Engine folder (onnxruntime, OpenVINO, TensorRT) or fused model folder (torch)."],
    out: Annotated[str, "Dataset to write, a folder or a URL (s3://, gs://): a SYSU-MM01 tree with a manifest."],
    backend: Backend = "auto",
    device: Device = "auto",
    precision: EnginePrecision = "auto",
    rows: Annotated[
        PositiveInt | None,
        "UNet rows per call, two per image with guidance; by default those that the engine is made for.",
    ] = None,
    threads: Threads = None,
    shards: Annotated[
        Annotated[tuple[int, int], Reads(_part, "I/N")] | None,
        "Only every N-th shard from the I-th on, I from 0; for array jobs, one process per part.",
    ] = None,
    ray: Annotated[
        str | None, "Ray cluster that runs it: auto, ray://HOST:10001, or local for this machine's GPUs or cores."
    ] = None,
    workers: Annotated[
        PositiveInt | None, "With --ray: engines; by default one per GPU, or without GPUs one per core."
    ] = None,
    check: Annotated[bool, "First verify what is finished, and generate damaged images again."] = False,
    check_finite: Annotated[
        bool, "Check the output of every network, and report the first layer that is not finite."
    ] = False,
    graphs: Annotated[bool, "torch-compiled, tensorrt: replay UNet calls as CUDA graphs."] = False,
    cache: Annotated[
        Path | None,
        "torch-compiled, onnxruntime-tensorrt, openvino: folder for what is compiled, which may be shared by machines; by "
        "default in the user's cache, for openvino none.",
    ] = None,
    json: Json = False,
) -> None:
    """Generate every pair of a plan; rerun to resume."""
    from dive_fast.engines import load_engine
    from dive_fast.models.student import check_sampling
    from dive_fast.synth import load_plan, synthesize
    from dive_fast.synth.local import part_of

    planned = load_plan(plan)
    check_sampling(engine, planned.sampling)
    part = None if shards is None else part_of(planned, *shards)
    options: dict[str, Any] = {
        "path": engine,
        "backend": backend,
        "device": device,
        "threads": threads,
        "precision": precision,
        "size": (planned.height, planned.width),
        "check_finite": check_finite,
        "cache": cache,
        "graphs": graphs,
    }
    if ray is not None:
        summary = _on_cluster(planned, options, out, rows, ray, workers, part is not None or check)
    else:
        if workers is not None:
            raise InputError("--workers requires --ray; without it one process runs one engine")
        opened = load_engine(**options)
        log(opened.describe())
        summary = synthesize(planned, opened, out, rows or opened.spec.profile.rows_opt, shards=part, check=check)
    if summary.rejected:
        log(
            f"note: {count(summary.rejected, 'pair')} rejected, as {count(len(summary.lost), 'photo')} could not be read "
            f"({abbreviate(summary.lost)}); bring the photos, then synth --check makes the pairs"
        )
    rest = "" if summary.finished else "; other parts of the plan are not finished yet"
    finish(
        f"dataset {out}: {count(summary.pairs, 'pair')}; made {count(summary.images, 'image')} in "
        f"{duration(summary.seconds)}, {summary.images_per_second:.2f} images/s{rest}",
        {"dataset": out, **to_dict(summary)},
        json,
        then=following("verify", out) if summary.finished else "the same command for the other parts (--shards)",
        kept=summary.finished and summary.resumed_shards == summary.shards,
    )


def _on_cluster(
    plan: SynthesisPlan,
    options: dict[str, Any],
    out: str,
    rows: int | None,
    address: str,
    workers: int | None,
    other: bool,
) -> Summary:
    from dive_fast.synth.cluster import Cluster, synthesize_on

    if other:
        raise InputError(
            "--ray distributes all shards; leave out --shards and --check (dive-fast verify --repair checks a dataset)"
        )
    gpus = {"cpu": 0.0, "cuda": 1.0}.get(options["device"])
    cluster = Cluster(None if address == "local" else address, workers, gpus)
    return synthesize_on(cluster, plan, options, out, rows)


def verify(
    dataset: Annotated[str, "Dataset folder or URL, from dive-fast synth."],
    /,
    repair: Annotated[bool, "Remove damaged files; synth then generates only those again."] = False,
    json: Json = False,
) -> None:
    """Check a dataset against its plan and hashes; exits with 1 and lists the problems if there are any."""
    from dive_fast.synth import verify as check
    from dive_fast.synth.folder import open_store, store_plan

    store = open_store(dataset)
    plan = store_plan(store)
    with ProgressBar(total=len(plan.pairs), unit="pair", desc="verify") as bar:
        health = check.verify(store, plan, bar.update)
    lines = [*health.problems, *([f"and {rest:,} more"] if (rest := health.found - len(health.problems)) > 0 else [])]
    if health.incomplete:
        pid, sides = next(iter(health.incomplete.items()))
        counts = ", ".join(f"{side} {made:,} of {planned:,}" for side, (made, planned) in sides.items())
        lines.append(f"{count(len(health.incomplete), 'identity')} incomplete, first {pid}: {counts}")
    if health.rejected:
        lines.append(
            f"{count(health.rejected, 'pair')} rejected, as photos could not be read; bring the photos, then synth --check "
            "makes the pairs"
        )
    removed = check.repair(store, health) if repair else 0
    if removed:
        lines.append(f"removed {count(removed, 'damaged file')}; run synth again, which generates only what is missing")
    text = "\n".join(lines) or f"dataset {dataset} is whole: every planned pair is there and unchanged"
    finish(
        text,
        {
            "dataset": dataset,
            "problems": health.problems,
            "found": health.found,
            "recorded": health.recorded,
            "rejected": health.rejected,
            "incomplete": health.incomplete,
            "removed": removed,
        },
        json,
        failure="" if health.whole else f"dataset {dataset}: {count(health.found, 'problem')}, listed above",
        then=_after_verify(dataset),
    )


def _after_verify(dataset: str) -> str:
    if "://" in dataset:
        return following("pack", dataset, out=beside(dataset, "tars"))
    return following("report", dataset, out=beside(dataset, "report"))


def pack(
    dataset: Annotated[str, "Finished dataset, folder or URL, from dive-fast synth."],
    /,
    out: Annotated[str, "Folder or URL for the tars; it must be new or hold tars of this dataset."],
    json: Json = False,
) -> None:
    """Write a dataset as WebDataset tars, one per shard, without the pairs that a filter dropped."""
    from dive_fast.synth.folder import open_store, store_plan
    from dive_fast.synth.manifest import dropped
    from dive_fast.synth.pack import INDEX
    from dive_fast.synth.pack import pack as write

    source, target = open_store(dataset), open_store(out)
    before = target.read(INDEX) if target.size(INDEX) else b""
    plan = store_plan(source)
    left_out = set() if "://" in dataset else dropped(dataset)
    with ProgressBar(total=len(plan.pairs), unit="pair", desc="pack") as bar:
        counts = write(source, plan, target, left_out, bar.update)
    then = following("verify", dataset) if "://" in dataset else following("card", dataset)
    text = f"tars {out}: {count(counts['pairs'], 'pair')} in {count(counts['tars'], 'tar')}"
    finish(text, {"out": out, **counts}, json, then=then, kept=target.read(INDEX) == before)
