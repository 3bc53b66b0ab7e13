"""`dive-fast world`: the pocket world, its sheets, and the training of the pocket base model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, numbers, torch_device

app = typer.Typer(help="The pocket world: seeded people, cameras and photos, for trying everything out.")
Seed = Annotated[int, typer.Option(min=0, help="Seed of the world: other people, other photos.")]


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="Folder to write: sysu/, market/ and oracle/.")],
    seed: Seed = 0,
    paired_ids: Annotated[int, typer.Option(min=1, help="People with real RGB and infrared, to train on.")] = 48,
    test_ids: Annotated[int, typer.Option(min=1, help="Held-out people with both.")] = 40,
    external_ids: Annotated[int, typer.Option(min=1, help="People with RGB only.")] = 160,
    images_per_camera: Annotated[int, typer.Option(min=1, help="Photos per paired or test person and camera.")] = 10,
    market_images: Annotated[int, typer.Option(min=1, help="Photos per external person.")] = 10,
    json: Json = False,
) -> None:
    """Render a SYSU-MM01 tree, a Market-1501 tree and the true infrared that a real city lacks; rerun to resume."""
    from tqdm import tqdm

    from dive_fast.world.config import WorldSpec
    from dive_fast.world.trees import build_world

    spec = WorldSpec(seed, paired_ids, test_ids, external_ids, images_per_camera, market_images)
    with tqdm(desc="render", unit="image") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        images = build_world(out, spec, progress)
    finish(f"world {out}: {images:,} images", {"world": out, "images": images}, json)


@app.command()
def sheet(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    pids: Annotated[str, typer.Option(help="People, comma-separated numbers.")] = "1,2,3,4",
    seed: Seed = 0,
    zoom: Annotated[int, typer.Option(min=1, max=8, help="Enlargement.")] = 2,
    json: Json = False,
) -> None:
    """Draw some people through all six cameras, to look at."""
    from dive_fast.io import atomic_path
    from dive_fast.world.sheets import identity_sheet

    wanted = numbers(pids)
    picture = identity_sheet(seed, wanted, zoom=zoom)
    with atomic_path(out) as temporary:
        picture.save(temporary, "PNG")
    finish(f"sheet {out}: {len(wanted)} people", {"sheet": out, "people": len(wanted)}, json)


@app.command("train-base")
def train_base(
    out: Annotated[Path, typer.Option(help="Model folder to write, in Stable Diffusion 1.5's layout.")],
    work: Annotated[Path, typer.Option(help="Folder for images, latents and states; a rerun resumes from it.")],
    vae_steps: Annotated[int, typer.Option(min=1, help="Training steps of the autoencoder's decoder.")] = 6000,
    text_steps: Annotated[int, typer.Option(min=1, help="Training steps of the text encoder.")] = 4000,
    unet_steps: Annotated[int, typer.Option(min=1, help="Training steps of the UNet.")] = 12000,
    vae_batch: Annotated[int, typer.Option(min=1, help="Images a step of the decoder.")] = 32,
    text_batch: Annotated[int, typer.Option(min=1, help="Captions a step of the text encoder.")] = 256,
    unet_batch: Annotated[int, typer.Option(min=1, help="Images a step of the UNet.")] = 256,
    unet_lr: Annotated[
        float, typer.Option(min=0, help="Peak learning rate of the UNet; 7e-4 at batches of 16.")
    ] = 1e-3,
    vae_images: Annotated[int, typer.Option(min=1, help="Rendered images for the autoencoder.")] = 20000,
    unet_images: Annotated[int, typer.Option(min=1, help="Rendered images for the UNet.")] = 100000,
    unet_grey: Annotated[
        float, typer.Option(min=0, max=1, help="Share of grey photos among them; never what infrared shows.")
    ] = 0.35,
    start: Annotated[
        str | None,
        typer.Option(help="Base model whose UNet goes on learning, all else in it kept; pocket is the shipped one."),
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train the pocket base model, or train one on: minutes on a GPU, days on two CPU cores, resumable; or torchrun."""
    from dive_fast.distributed import leading, process_group
    from dive_fast.world.base import train as base_train
    from dive_fast.world.base.config import BaseTrainConfig

    default = BaseTrainConfig()
    config = replace(
        default,
        vae=replace(default.vae, steps=vae_steps, batch=vae_batch),
        text=replace(default.text, steps=text_steps, batch=text_batch),
        unet=replace(default.unet, steps=unet_steps, batch=unet_batch, lr=unet_lr),
        vae_images=vae_images,
        unet_images=unet_images,
        unet_grey=unet_grey,
        start=start,
    )
    computes_on = torch_device(device)
    with process_group(computes_on):
        report = base_train.train_base(config, out, work, computes_on)
        if leading():
            finish(f"base model {out}", {"model": out, "autoencoder": report}, json)


@app.command("train-tagger")
def train_tagger(
    out: Annotated[Path, typer.Option(help="Tagger folder to write.")],
    work: Annotated[Path, typer.Option(help="Folder for images and states; a rerun resumes from it.")],
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2600,
    batch: Annotated[int, typer.Option(min=1, help="Photos a step.")] = 64,
    images: Annotated[int, typer.Option(min=1, help="Rendered photos.")] = 48000,
    json: Json = False,
) -> None:
    """Train the classifier that reads a person's words off photos (personalize --words-from); 20 minutes on a CPU."""
    from dive_fast.world.base.config import TaggerConfig
    from dive_fast.world.base.tagger_train import train_tagger as train

    report = train(TaggerConfig(steps=steps, batch=batch, images=images), out, work)
    finish(f"tagger {out}: {report['right']:.0%} of words right", {"tagger": out, **report}, json)


@app.command()
def study(
    out: Annotated[Path, typer.Option(help="Folder for the world, the pairs, every ReID training and the table.")],
    model: Annotated[str, typer.Option(help="Base model folder; pocket is the shipped one.")] = "pocket",
    adapter: Annotated[
        str, typer.Option(help="Trained adapter to start from, or none to train one on the world's own photos.")
    ] = "pocket",
    world_seed: Seed = 0,
    per_camera: Annotated[int, typer.Option(min=1, help="Infrared images per external person and camera.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="DPM-Solver++ steps.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="Scale of classifier-free guidance.")] = 2.0,
    learn_steps: Annotated[
        int,
        typer.Option(
            min=1, help="Training steps for people whom the adapter lacks; from none, of its LoRA, some 2000."
        ),
    ] = 60,
    reid_steps: Annotated[int, typer.Option(min=1, help="Training steps of each ReID model.")] = 1000,
    seeds: Annotated[str, typer.Option(help="ReID seeds, comma-separated; every arm runs with each.")] = "0,1,2",
    workers: Annotated[int, typer.Option(min=1, help="ReID trainings at once, sharing the cores.")] = 2,
    json: Json = False,
) -> None:
    """Measure what the synthetic infrared is worth: ReID with none, with grey, with ours, with the truth."""
    from dive_fast.commands.reid_compare import show_comparison
    from dive_fast.experiments import study as room
    from dive_fast.experiments.config import StudyConfig

    default = StudyConfig()
    config = replace(
        default,
        world=replace(default.world, seed=world_seed),
        model=model,
        adapter=None if adapter == "none" else adapter,
        learn=replace(default.learn, steps=learn_steps),
        pairs=replace(default.pairs, per_camera=per_camera, steps=steps, guidance=guidance),
        reid=replace(default.reid, steps=reid_steps),
        seeds=tuple(numbers(seeds)),
        workers=workers,
    )
    room.run_study(config, out)
    show_comparison(out / "compare", json)
