"""10,000 people, from their photos to a planned run: `python -m benchmarks.people --out FILE`.

The shipped pocket adapter gets them, once by the shipped encoder from four photos each, with its phrase of many words a
person, and once with one word a person and random rows. The photos are of 500 rendered people, linked under other names.
Each step is a process of its own, so its peak of memory is its own:

- adapter: `encode`, or random rows that join the adapter;
- fuse, export (with its check), plan (both sides generated): the commands;
- first prompts: the engine is opened and the prompts of the first shard are encoded, as synth begins;
- diffusers: its pipeline opens the fused folder and encodes one prompt.

`load` is the machine's load before: where others compute, the CPU seconds say more than the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import metadata, options_of, write
from dive_fast.data.market import read_market
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "onnxruntime", "numpy")
WORDS = ("phrase", "one word")
RENDERED, PHOTOS = 500, 4


def photos(folder: Path, people: int) -> None:
    """Links photos of rendered people into a folder for each of `people` people."""
    spec = WorldSpec(
        seed=10, paired_ids=1, test_ids=1, external_ids=RENDERED, images_per_camera=1, market_images=PHOTOS
    )
    build_world(folder / "world", spec)
    shots: dict[str, list[Path]] = {}
    for sample in read_market(folder / "world" / "market"):
        shots.setdefault(sample.pid, []).append(sample.path)
    groups = list(shots.values())
    for number in range(people):
        person = folder / "photos" / f"new-{number:05d}"
        person.mkdir(parents=True)
        for path in groups[number % len(groups)]:
            os.link(path, person / path.name)


def adapter(folder: Path, people: int) -> None:
    """Adds people of one word, whose rows are normal, with the mean and the deviation of the shipped ones in each column."""
    import torch

    from dive_fast.models import load_adapter, save_adapter
    from dive_fast.models.adapter import merge_identities
    from dive_fast.models.phrase import ONE_WORD, Phrase

    shipped, phrase = load_adapter("pocket"), Phrase(ONE_WORD)
    identities = [phrase.identity(f"new-{number:05d}", f"new_{number:05d}") for number in range(people)]
    shape = people, shipped.embeddings.shape[1]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = shipped.embeddings.mean(0) + shipped.embeddings.std(0) * noise
    save_adapter(merge_identities(shipped, identities, rows), folder / "adapter")


def first_prompts(folder: Path) -> None:
    from dive_fast.engines import load_engine
    from dive_fast.synth.layout import shard_pairs
    from dive_fast.synth.plan import load_plan

    engine, plan = load_engine(folder / "engine", "onnxruntime"), load_plan(folder / "plan.json")
    pairs = [pair for pair, _ in shard_pairs(plan, plan.shards - 1)]
    engine.prompts.encode(
        engine.encode_text, [None, *((pair.pid, side) for pair in pairs for side in (pair.rgb, pair.ir))]
    )


def diffusers(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from dive_fast.models import PromptTable

    table = PromptTable.read(folder / "fused" / "prompts.json")
    prompt = table.prompt(table.identities[-1].pid, table.cameras[0].name)
    pipe = StableDiffusionPipeline.from_pretrained(folder / "fused", local_files_only=True)
    pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)


def steps(folder: Path, words: str, people: int) -> dict[str, tuple[str, ...]]:
    """The arguments of Python for each step, in order."""
    child = ("-m", "benchmarks.people", "--people", str(people), "--child", str(folder))
    command = ("-m", "dive_fast.cli")
    made = {name: str(folder / name) for name in ("adapter", "fused", "engine", "plan.json")}
    planning = ("--out", made["plan.json"], "--mode", "synthetic", "--pairs", "4", "--shard-size", "1000")
    encode = (*command, "encode", "--photos", f"folder:{folder / 'photos'}", "--out", made["adapter"])
    return {
        "adapter": encode if words == "phrase" else (*child, "adapter"),
        "fuse": (*command, "fuse", "--adapter", made["adapter"], "--out", made["fused"]),
        "export": (*command, "export", "--model", made["fused"], "--out", made["engine"]),
        "plan": (*command, "plan", "--model", made["engine"], *planning),
        "first prompts": (*child, "first prompts"),
        "diffusers": (*child, "diffusers"),
    }


def measured(arguments: tuple[str, ...]) -> dict[str, float]:
    """Seconds, seconds of processors and peak memory of Python with `arguments`, whose failure raises."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with exit code {process.returncode}")
    took = {"s": time.perf_counter() - began, "CPU s": used.ru_utime + used.ru_stime}
    return {name: round(value, 1) for name, value in took.items()} | {"peak MiB": round(used.ru_maxrss / 1024)}


def walk(words: str, people: int) -> dict[str, Any]:
    """The record of each step, and of the way to the plan."""
    with tempfile.TemporaryDirectory() as folder:
        if words == "phrase":
            photos(Path(folder), people)
        found: dict[str, Any] = {}
        for name, arguments in steps(Path(folder), words, people).items():
            found[name] = measured(arguments)
            print(f"{words}: {name}: {json.dumps(found[name])}", flush=True)
    planned = [found[name] for name in ("adapter", "fuse", "export", "plan")]
    sums = {name: round(sum(step[name] for step in planned), 1) for name in ("s", "CPU s")}
    return {**found, "to plan": sums | {"peak MiB": max(step["peak MiB"] for step in planned)}}


def main() -> None:
    parser = options_of(__doc__, people=10_000)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, name = Path(options.child[0]), options.child[1]
        kinds: dict[str, Callable[[], None]] = {
            "adapter": lambda: adapter(folder, options.people),
            "first prompts": lambda: first_prompts(folder),
            "diffusers": lambda: diffusers(folder),
        }
        kinds[name]()
        return
    threads, load = os.environ.get("OMP_NUM_THREADS", "all"), round(os.getloadavg()[0], 1)
    result = metadata(PACKAGES, people=options.people, threads=threads, load=load)
    write(options.out, result | {words: walk(words, options.people) for words in WORDS})


if __name__ == "__main__":
    main()
