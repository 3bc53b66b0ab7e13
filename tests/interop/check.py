"""`make interop`: engine folders opened by optimum, and optimum's exports opened by us, image by image.

Three steps in two environments, as optimum's pins clash with ours; each reads what the one before left in FOLDER:

    make FOLDER      (.venv)          the pocket model fused and exported, rendered by torch and by onnxruntime
    optimum FOLDER   (.venv-interop)  optimum renders our engine, exports the fused model itself and renders that
    open FOLDER      (.venv)          our engine opens optimum's export and renders the same

All render the same prompts from the same noise with DPM-Solver++. Images are compared as floats in 0..1: all are the
same arithmetic in float32 but for its order, so they may differ by rounding alone, as it grows over the steps. How far
that goes is measured, not guessed: by how far torch's images are from onnxruntime's. Twice that is allowed, for every pair.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

STEPS, GUIDANCE, PEOPLE, CAMERA = 12, 3.0, 2, "cam3"


def make(folder: Path) -> None:
    """Our engine and our images of it: `engine/`, `fused/`, `facts.json`, `ours.npz`."""
    from dive_export import export_engine
    from dive_fast.engines import load_engine
    from dive_fast.models import fuse, load_adapter, load_bundle, save_bundle
    from dive_fast.sampling import initial_noise

    shutil.rmtree(folder / "fused", ignore_errors=True)
    save_bundle(fuse(load_bundle("pocket"), load_adapter("pocket")), folder / "fused")
    shutil.rmtree(folder / "engine", ignore_errors=True)
    export_engine(folder / "fused", folder / "engine", rows_max=2 * PEOPLE, check=False)
    if not (folder / "engine" / "model_index.json").is_file():
        raise SystemExit("interop: the export wrote no model_index.json, without which optimum opens no folder")
    engines = {"onnxruntime": load_engine(folder / "engine"), "torch": load_engine(folder / "fused")}
    engine = engines["onnxruntime"]
    people = [identity.pid for identity in engine.prompts.table.identities][:PEOPLE]
    noise = initial_noise(range(PEOPLE), engine.latent_shape).numpy()
    images = {name: ours(engine, people) for name, engine in engines.items()}
    budget = 2 * float(np.abs(images["torch"] - images["onnxruntime"]).max())
    if not 0 < budget < 0.01:
        raise SystemExit(f"interop: torch and onnxruntime are {budget / 2:.1e} apart: nothing can be compared by them")
    facts = {
        "people": people,
        "prompts": [engine.prompts.table.prompt(pid, CAMERA) for pid in people],
        "height": engine.spec.profile.height,
        "width": engine.spec.profile.width,
        "budget": budget,
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    np.savez(folder / "ours.npz", noise=noise, images=images["onnxruntime"])
    print(f"interop: torch and onnxruntime are {budget / 2:.1e} apart, {budget:.1e} is allowed")


def ours(engine: Any, people: list[str]) -> np.ndarray:
    """Images [B, H, W, 3] in 0..1 by an engine of ours, before they become bytes."""
    from tests.support.engines import floats, latents_of

    keys = [(pid, CAMERA) for pid in people]
    return np.asarray(floats(engine, latents_of(engine, keys, range(PEOPLE), STEPS, GUIDANCE)))


def optimum(folder: Path) -> None:
    """Our engine rendered by optimum, and optimum's own export of the fused model: `theirs/`, `theirs.npz`."""
    from diffusers.utils import logging
    from optimum.exporters.onnx import main_export

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    facts, given = read(folder)
    images = by_optimum(folder / "engine", facts, given["noise"])
    compare("our engine, opened by optimum", images, given["images"], facts)
    fused = json.loads((folder / "fused" / "model_index.json").read_text())
    # transformers 4's CLIPTokenizer is the slow one, which reads vocab.json; ours is a tokenizer.json.
    fused["tokenizer"] = ["transformers", "CLIPTokenizerFast"]
    (folder / "fused" / "model_index.json").write_text(json.dumps(fused))
    shutil.rmtree(folder / "theirs", ignore_errors=True)
    options = {"task": "text-to-image", "do_validation": False, "local_files_only": True}
    main_export(str(folder / "fused"), folder / "theirs", **options)
    images = by_optimum(folder / "theirs", facts, given["noise"])
    shutil.copyfile(folder / "fused" / "prompts.json", folder / "theirs" / "prompts.json")
    np.savez(folder / "theirs.npz", images=images)


def by_optimum(folder: Path, facts: dict[str, Any], noise: np.ndarray) -> np.ndarray:
    import torch
    from diffusers import DPMSolverMultistepScheduler
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    pipe = ORTStableDiffusionPipeline.from_pretrained(folder, export=False, local_files_only=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    images: np.ndarray = pipe(
        facts["prompts"],
        height=facts["height"],
        width=facts["width"],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise),
        output_type="np",
    ).images
    return images


def open_theirs(folder: Path) -> None:
    """Optimum's export as an engine of ours, against optimum's images of it and against ours of our own export."""
    from dive_fast.engines import load_engine

    facts, given = read(folder)
    engine = load_engine(folder / "theirs", size=(facts["height"], facts["width"]))
    print(f"interop: {engine.describe()}")
    images = ours(engine, facts["people"])
    theirs = np.load(folder / "theirs.npz")["images"]
    compare("optimum's export, opened by us and by optimum", images, theirs, facts)
    # Saved by diffusers, PNDM's own default spacing of timesteps is written out, and DPM-Solver++ takes it for a choice. So
    # the two folders' images differ by their schedules; under one schedule they must not.
    engine.scheduler_config = json.loads((folder / "engine" / "scheduler" / "scheduler_config.json").read_text())
    images = ours(engine, facts["people"])
    compare("optimum's export and ours, both opened by us", images, given["images"], facts)


def read(folder: Path) -> tuple[dict[str, Any], Any]:
    return json.loads((folder / "facts.json").read_text()), np.load(folder / "ours.npz")


def compare(what: str, images: np.ndarray, others: np.ndarray, facts: dict[str, Any]) -> None:
    """Prints how far they are apart and ends the program if that is too far, or if there is nothing to be seen."""
    if images.shape != others.shape or others.std() < 0.02 or np.abs(others[0] - others[1]).max() < 0.05:
        raise SystemExit(f"interop: {what}: no pictures to compare, {images.shape} and {others.shape}")
    apart = float(np.abs(images - others).max())
    print(f"interop: {what}: {apart:.1e} apart, {facts['budget']:.1e} allowed")
    if not apart <= facts["budget"]:
        raise SystemExit(f"interop: {what}: the images differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("make", "optimum", "open"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    {"make": make, "optimum": optimum, "open": open_theirs}[options.step](options.folder)


if __name__ == "__main__":
    sys.exit(main())
