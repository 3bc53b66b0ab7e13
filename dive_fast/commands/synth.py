"""`dive-fast plan`, `synth` and `verify`: what is to be made, making it, and checking what was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

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
from dive_fast.facts import backends_here
from dive_fast.types import DiveError, InputError, PairMode

if TYPE_CHECKING:
    from dive_fast.models import PromptTable
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
    steps: Annotated[int, typer.Option(min=1, help="DPM-Solver++ steps; DiVE on Stable Diffusion 1.5: 50.")] = 20,
    guidance: Annotated[
        float, typer.Option(min=0, help="Scale of classifier-free guidance, 1 = none; DiVE on Stable Diffusion: 7.5.")
    ] = 2.0,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="photo-guided: how far the infrared image may leave the photo.")
    ] = 0.7,
    size: Annotated[str | None, typer.Option(help="Image size HEIGHTxWIDTH; by default the model's own.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs a shard; a stopped run redoes at most one.")] = 64,
    json: Json = False,
) -> None:
    """Fix which pairs are to be made: person, cameras, seed and photo of each."""
    from dive_fast.synth import make_plan, save_plan

    facts = _model(model)
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
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        model_fingerprint=facts.fingerprint,
        photos=listed,
        photo_root=photos,
        strength=strength,
        shard_size=shard_size,
    )
    save_plan(made, out)
    people = len({pair.pid for pair in made.pairs})
    finish(
        f"plan {out}: {len(made.pairs):,} pairs of {people:,} identities in {made.shards:,} shards",
        {"plan": out, "plan_id": made.plan_id, "pairs": len(made.pairs), "identities": people, "shards": made.shards},
        json,
    )


def _model(folder: Path) -> _Model:
    """From an engine folder by its small files alone; a fused model has to be opened, as its weights are its name."""
    if (folder / "engine.json").is_file():
        from dive_fast.engines.onnx_engine import read_spec
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
    out: Annotated[Path, typer.Option(help="Dataset folder to write: a SYSU-MM01 tree with a manifest.")],
    backend: Annotated[
        Literal["auto", "onnxruntime", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx", "torch"],
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
    guard: Annotated[
        bool,
        typer.Option("--guard", help="Look at what every network answers; name the first layer that is not finite."),
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
    size = wanted.height, wanted.width
    opened = load_engine(engine, backend, device, threads, precision=precision, size=size, guard=guard, cache=cache)
    say(opened.describe())
    summary = synthesize(wanted, opened, out, rows)
    finish(
        f"dataset {out}: {summary.pairs:,} pairs; made {summary.images:,} images in {summary.seconds:.1f} s, "
        f"{summary.images_per_second:.2f} images/s",
        {"dataset": out, **to_dict(summary)},
        json,
    )


def verify(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, from dive-fast synth.")],
    json: Json = False,
) -> None:
    """Check a dataset against its plan and hashes; exits with 1 and says what is wrong if anything is."""
    from dive_fast.synth.manifest import verify as problems_of

    problems = problems_of(dataset)
    text = "\n".join(problems) or f"dataset {dataset} is whole: every planned pair is there and unchanged"
    finish(text, {"dataset": dataset, "problems": problems}, json)
    if problems:
        raise DiveError(f"dataset {dataset}: {len(problems):,} problem(s), listed above")
