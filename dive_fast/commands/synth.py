"""`dive-fast plan`, `synth` and `verify`: what is to be made, making it, and checking what was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from dive_fast.commands.common import (
    LAYOUT_HELP,
    PREFIX_HELP,
    Device,
    Json,
    Layout,
    finish,
    image_size,
    names,
    read_photos,
    say,
)
from dive_fast.commands.sampling import (
    DEFAULT,
    Guidance,
    GuidanceInterval,
    PresetName,
    Steps,
    chosen_preset,
)
from dive_fast.environment.packages import backends_here
from dive_fast.sampling.config import STRENGTH
from dive_fast.types import DiveError, InputError, PairMode

if TYPE_CHECKING:
    from dive_fast.models import PromptTable
    from dive_fast.synth import Summary, SynthesisPlan
    from dive_fast.types import Sample


class _Model(NamedTuple):
    """What a plan needs to know of a model."""

    table: PromptTable
    fingerprint: str
    size: tuple[int, int]


def plan(
    model: Annotated[Path, typer.Option(help="Engine folder or fused model folder that will make the images.")],
    out: Annotated[Path, typer.Option(help="Plan file to write (JSON).")],
    mode: Annotated[
        PairMode,
        typer.Option(
            help="real-rgb: a real photo and a generated infrared image; synthetic: both sides generated from one "
            "noise; photo-guided: as real-rgb, and the infrared image starts from the photo and keeps its pose."
        ),
    ] = "real-rgb",
    photos: Annotated[Path | None, typer.Option(help="RGB photos; needed unless the mode is synthetic.")] = None,
    photos_layout: Annotated[Layout, typer.Option(help=LAYOUT_HELP)] = "market",
    photos_camera: Annotated[str, typer.Option(help="The one camera name that the photos get.")] = "cam7",
    photos_prefix: Annotated[str, typer.Option(help=PREFIX_HELP + " The same as for personalize.")] = "",
    pids: Annotated[
        str | None,
        typer.Option(help="Identities, comma-separated; by default all that the model knows (and that have photos)."),
    ] = None,
    ir: Annotated[str | None, typer.Option(help="Infrared cameras, comma-separated; by default all.")] = None,
    rgb: Annotated[
        str | None, typer.Option(help="RGB cameras of generated RGB sides, comma-separated; by default all.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs per identity and infrared camera.")] = 18,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run; equal plans give equal images.")] = 0,
    preset: PresetName = None,
    steps: Steps = None,
    guidance: Guidance = DEFAULT.guidance,
    guidance_interval: GuidanceInterval = None,
    precision: Annotated[
        Literal["any", "fp32", "fp16", "bf16", "fp8"] | None,
        typer.Option(help="What engines of the plan must have; by default the preset's (turbo: fp8), else any."),
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="photo-guided: how far the infrared image may leave the photo.")
    ] = STRENGTH,
    size: Annotated[str | None, typer.Option(help="Image size HEIGHTxWIDTH; by default the model's own.")] = None,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Pairs a shard, the unit of claims and records; take 1000 or more for millions.")
    ] = 64,
    image_format: Annotated[
        Literal["png", "jpg"], typer.Option(help="Of generated images: png, lossless, or jpg (quality 95, smaller).")
    ] = "png",
    overrides: Annotated[
        Path | None,
        typer.Option(
            help='JSON file of single identities: {"0001": {"pairs": 36, "ir": ["cam3"]}, ...}; pairs 0: none.'
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Fix which pairs are to be made: person, cameras, seed and photo of each."""
    from dive_fast.synth import make_plan, save_plan
    from dive_fast.synth.plan import read_overrides

    facts = _model(model)
    chosen = chosen_preset(preset, steps, guidance, guidance_interval)
    wanted = chosen.precision if precision is None else None if precision == "any" else precision
    height, width = image_size(size) or facts.size
    listed = _photos(mode, photos, photos_layout, photos_camera, photos_prefix)
    made = make_plan(
        mode=mode,
        pids=_pids(names(pids), facts.table, listed),
        cameras=facts.table.cameras,
        ir=names(ir) or [camera.name for camera in facts.table.cameras if camera.modality == "ir"],
        rgb=names(rgb) or _rgb_cameras(mode, facts.table),
        pairs_per_identity=pairs,
        seed=seed,
        sampling=chosen.sampling,
        precision=wanted,
        height=height,
        width=width,
        model_fingerprint=facts.fingerprint,
        photos=listed,
        photo_root=photos,
        strength=strength,
        shard_size=shard_size,
        image_format=image_format,
        overrides=None if overrides is None else read_overrides(overrides),
    )
    save_plan(made, out)
    people = len(made.people)
    finish(
        f"plan {out}: {len(made.pairs):,} pairs of {people:,} identities in {made.shards:,} shards"
        f"{'' if wanted is None else f', for {wanted} engines'}",
        {"plan": out, "plan_id": made.plan_id, "pairs": len(made.pairs), "identities": people, "shards": made.shards},
        json,
    )


def _model(folder: Path) -> _Model:
    """From an engine folder by its small files alone; a fused model has to be opened, as its weights are its name."""
    if (folder / "engine.json").is_file():
        from dive_fast.engines.engine_folder import read_spec
        from dive_fast.models import PromptTable

        spec = read_spec(folder)
        size = spec.profile.height, spec.profile.width
        return _Model(PromptTable.read(folder / "prompts.json"), spec.model_fingerprint, size)
    from dive_fast.models import load_bundle
    from dive_fast.train import photos

    bundle = load_bundle(folder)
    if bundle.prompts is None:
        raise InputError(f"{folder} knows no identities; fuse an adapter into it first (dive-fast fuse)")
    return _Model(bundle.prompts, bundle.fingerprint, photos.image_size(bundle))


def _photos(mode: PairMode, root: Path | None, layout: Layout, camera: str, prefix: str) -> list[Sample] | None:
    if (root is None) != (mode == "synthetic"):
        need = "takes no" if mode == "synthetic" else "needs"
        raise InputError(f"--mode {mode} {need} --photos")
    return None if root is None else read_photos(root, layout, camera, prefix)


def _pids(wanted: list[str], table: PromptTable, photos: list[Sample] | None) -> list[str]:
    """The identities to make: those asked for, which the model must know, or all that can be made."""
    if wanted:
        return [table.identity(pid).pid for pid in wanted]
    known = [identity.pid for identity in table.identities]
    if photos is None:
        return known
    pictured = {sample.pid for sample in photos}
    usable = [pid for pid in known if pid in pictured]
    if not usable:
        raise InputError(f"none of the {len(pictured):,} identities in --photos is one of the model's {len(known):,}")
    if len(usable) < len(pictured):
        say(f"note: {len(pictured) - len(usable):,} identities with photos are unknown to the model and left out")
    return usable


def _rgb_cameras(mode: PairMode, table: PromptTable) -> list[str]:
    """All of the model's, where the RGB side is generated; a photo brings its own camera."""
    return [camera.name for camera in table.cameras if camera.modality == "rgb"] if mode == "synthetic" else []


def synth(
    plan: Annotated[Path, typer.Option(help="Plan file, from dive-fast plan.")],
    engine: Annotated[Path, typer.Option(help="Engine folder (onnxruntime, TensorRT) or fused model folder (torch).")],
    out: Annotated[
        str, typer.Option(help="Dataset to write, a folder or a URL (s3://, gs://): a SYSU-MM01 tree with a manifest.")
    ],
    backend: Annotated[
        Literal["auto", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "torch", "torch-compiled"],
        typer.Option(
            help="What runs the networks; auto: what the folder was made for. Installed here: "
            f"{', '.join(backends_here()) or 'none'}; dive-fast doctor says what works, and what the others lack."
        ),
    ] = "auto",
    device: Device = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"], typer.Option(help="Of torch; an engine folder has its own.")
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="UNet rows a call; guidance takes two an image.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default the backend's choice.")] = None,
    shards: Annotated[
        str | None,
        typer.Option(help="I/N: only every N-th shard from the I-th on, I from 0; for array jobs, one process a part."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster that runs it: auto, ray://HOST:10001, or local for this machine's GPUs or cores."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: engines; by default one a GPU, or without GPUs one a core.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="First verify what is finished, and make anew what is damaged.")
    ] = False,
    guard: Annotated[
        bool,
        typer.Option("--guard", help="Look at what every network answers; name the first layer that is not finite."),
    ] = False,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="torch-compiled, tensorrt: replay UNet calls as CUDA graphs.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="onnxruntime-tensorrt: folder for what TensorRT builds; by default in the user's cache."),
    ] = None,
    json: Json = False,
) -> None:
    """Make every pair of a plan; rerun to resume."""
    from dive_fast.engines import load_engine
    from dive_fast.synth import load_plan, synthesize
    from dive_fast.types import to_dict

    wanted = load_plan(plan)
    part = _part(wanted, shards)
    settings: dict[str, Any] = {
        "path": engine,
        "backend": backend,
        "device": device,
        "threads": threads,
        "precision": precision,
        "size": (wanted.height, wanted.width),
        "check_finite": guard,
        "cache": cache,
        "graphs": graphs,
    }
    if ray is not None:
        summary = _on_cluster(wanted, settings, out, rows, ray, workers, part is not None or check)
    else:
        if workers is not None:
            raise InputError("--workers is of --ray; one process runs one engine")
        opened = load_engine(**settings)
        say(opened.describe())
        summary = synthesize(wanted, opened, out, rows, shards=part, check=check)
    rest = "" if summary.finished else "; other parts of the plan are not finished yet"
    finish(
        f"dataset {out}: {summary.pairs:,} pairs; made {summary.images:,} images in {summary.seconds:.1f} s, "
        f"{summary.images_per_second:.2f} images/s{rest}",
        {"dataset": out, **to_dict(summary)},
        json,
    )


def _on_cluster(
    plan: SynthesisPlan, settings: dict[str, Any], out: str, rows: int, address: str, workers: int | None, other: bool
) -> Summary:
    from dive_fast.synth.cluster import Cluster, synthesize_on

    if other:
        raise InputError(
            "--ray hands out all shards itself; leave --shards and --check away (dive-fast verify --repair)"
        )
    gpus = {"cpu": 0.0, "cuda": 1.0}.get(settings["device"])
    cluster = Cluster(None if address == "local" else address, workers, gpus)
    return synthesize_on(cluster, plan, settings, out, rows)


def _part(plan: SynthesisPlan, shards: str | None) -> range | None:
    from dive_fast.synth.local import part_of

    if shards is None:
        return None
    number, slash, of = shards.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise InputError(f"--shards {shards!r} is not I/N, like 0/8")
    return part_of(plan, int(number), int(of))


def verify(
    dataset: Annotated[str, typer.Argument(help="Dataset folder or URL, from dive-fast synth.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that synth makes just that anew.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a dataset against its plan and hashes; exits with 1 and says what is wrong if anything is."""
    from tqdm import tqdm

    from dive_fast.synth import verify as check
    from dive_fast.synth.folder import open_store, store_plan

    store = open_store(dataset)
    plan = store_plan(store)
    with tqdm(total=len(plan.pairs), unit="pair", desc="verify") as bar:
        health = check.verify(store, plan, bar.update)
    lines = [*health.problems, *([f"and {rest:,} more"] if (rest := health.found - len(health.problems)) > 0 else [])]
    if health.incomplete:
        pid, sides = next(iter(health.incomplete.items()))
        counts = ", ".join(f"{side} {made:,} of {planned:,}" for side, (made, planned) in sides.items())
        lines.append(f"{len(health.incomplete):,} identities are incomplete, first {pid}: {counts}")
    removed = check.repair(store, health) if repair else 0
    if removed:
        lines.append(f"removed {removed:,} damaged files; run synth again, which makes just them anew")
    text = "\n".join(lines) or f"dataset {dataset} is whole: every planned pair is there and unchanged"
    finish(
        text,
        {
            "dataset": dataset,
            "problems": health.problems,
            "found": health.found,
            "recorded": health.recorded,
            "incomplete": health.incomplete,
            "removed": removed,
        },
        json,
    )
    if not health.whole:
        raise DiveError(f"dataset {dataset}: {health.found:,} problem(s), listed above")


def pack(
    dataset: Annotated[str, typer.Argument(help="Finished dataset, folder or URL, from dive-fast synth.")],
    out: Annotated[str, typer.Option(help="Folder or URL for the tars, which must be new, or this dataset's.")],
    json: Json = False,
) -> None:
    """Write a dataset as WebDataset tars, one a shard; pairs that a filter dropped are left out."""
    from tqdm import tqdm

    from dive_fast.synth.folder import open_store, store_plan
    from dive_fast.synth.manifest import dropped
    from dive_fast.synth.pack import pack as write

    source = open_store(dataset)
    plan = store_plan(source)
    left_out = set() if "://" in dataset else dropped(dataset)
    with tqdm(total=len(plan.pairs), unit="pair", desc="pack") as bar:
        counts = write(source, plan, open_store(out), left_out, bar.update)
    finish(f"tars {out}: {counts['pairs']:,} pairs in {counts['tars']:,} tars", {"out": out, **counts}, json)
