"""Bulk synthesis around the engine: `python -m benchmarks.bulk --out FILE` (about 25 minutes; parts of it by --only).

plan    ten million pairs: planned, written, read, any shard found, the remaining work found; seconds and peak memory.
resume  a finished dataset of 100,000 records: how long a rerun takes to find that there is nothing to do.
job     the whole job against the bare engine on the pocket model, calls of the same batches without files: the share of
        the engine's own rate that is left, on this disk and on one slowed down to what the engine writes three times over;
        and two peers, in turns: the reference's way (prompt by prompt, a call at a time, files written before the next call)
        on the same engine, and diffusers' pipeline (eager torch) under `datasets`' map, whose images a dataset keeps.
ray     two workers of one core each against one worker pinned to one core, and what these cores can give at all: two
        such workers at once without Ray. A Ray job's start (Ray, workers, engines) is told apart: the rate is that of a
        job beyond what a small one takes.

All on random noise and real photos of the pocket world; a figure is a median of the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.machine import median_ratio, medians, metadata, options_of, sample, timed, write
from dive_fast.bench.batch import bench_plan
from dive_fast.bench.run import model_folder
from dive_fast.engines import Engine, load_engine
from dive_fast.sampling import Sampling, Schedule, initial_noise
from dive_fast.synth import synthesize
from dive_fast.synth.clock import StageClock
from dive_fast.synth.folder import claim_folder, open_store
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.local import _Run
from dive_fast.synth.manifest import shard_lines, shard_name
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.synth.store import LocalStore
from dive_fast.types import PairRecord

ROWS, STEPS, GUIDANCE = 32, 10, 2.0
PACKAGES = ("torch", "onnxruntime", "diffusers", "datasets", "pillow", "numpy", "ray")


def plan_of_millions() -> dict[str, Any]:
    """In a process of its own, whose peak memory it is."""
    found: dict[str, Any] = json.loads(subprocess.check_output([sys.executable, "-m", "benchmarks.plan"], text=True))
    return found


def resume_of_a_finished_job(engine: Engine) -> dict[str, Any]:
    """100,000 records; the images' names lead to nothing, as a rerun does not look at images."""
    plan = pocket_plan(engine, pairs=100_000, shard_size=64)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        claim_folder(open_store(out), plan)
        (out / "shards").mkdir()
        for number in range(plan.shards):
            records = [
                PairRecord(pair, files, dict.fromkeys(files, "0" * 64), dict.fromkeys(files, 1), engine.fingerprint, {})
                for pair, files in shard_pairs(plan, number)
            ]
            (out / shard_name(number)).write_bytes(shard_lines(records))
        seconds, summary = timed(lambda: synthesize(plan, engine, out, progress=False))
        assert summary.finished and not summary.images
    return {"records": len(plan.pairs), "shards": plan.shards, "s": round(seconds, 3)}


def pocket(folder: Path) -> Path:
    """The shipped model, its adapter fused in and exported; made once."""
    from dive_export import GraphOptions, export_engine

    if not (folder / "engine").exists():
        _, fused = model_folder("pocket", "cpu", folder)
        export_engine(fused, folder / "engine", rows_max=64, check=False, options=GraphOptions(variant="kv-cache"))
    return folder / "engine"


def pocket_plan(engine: Engine, pairs: int, shard_size: int = 32) -> SynthesisPlan:
    """Both sides generated, people by people, at least a full batch of each person and camera, as DiVE's calls are."""
    each = max(ROWS // 2, -(-pairs // len(engine.prompts.table.identities)))
    return bench_plan(engine, pairs, Sampling(STEPS, GUIDANCE), identities=-(-pairs // each), shard_size=shard_size)


class SlowStore(LocalStore):
    """A disk that takes its time for every file."""

    def __init__(self, root: Path, seconds: float) -> None:
        super().__init__(root)
        self._seconds = seconds

    def write(self, name: str, data: bytes, shard: int | None = None) -> None:
        time.sleep(self._seconds)
        super().write(name, data, shard)


def bare(engine: Engine, plan: SynthesisPlan) -> float:
    """Seconds of the engine alone for the plan's batches: prompts encoded once, noise ready, nothing written."""
    keys = [(pair.pid, camera) for pair in plan.pairs for camera in (pair.rgb, pair.ir)]
    seeds = [pair.seed for pair in plan.pairs for _ in range(2)]
    size = ROWS // 2
    noise = [initial_noise(seeds[at : at + size], engine.latent_shape) for at in range(0, len(seeds), size)]
    schedule = Schedule.from_config(engine.scheduler_config, plan.sampling.steps)

    def run() -> None:
        embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
        conditioning = engine.condition(embeddings)
        for number, start in enumerate(noise):
            own = index[1 + number * size :][:size]
            engine.decode(sample(engine, conditioning, own, start, schedule, plan.sampling.guidance))

    return timed(run)[0]


def reference_way(engine: Engine, plan: SynthesisPlan, out: Path) -> float:
    """As DiVE's public code goes: one person and camera a call, its prompt encoded each time, files before the next call."""
    size = ROWS // 2
    schedule = Schedule.from_config(engine.scheduler_config, plan.sampling.steps)
    calls: dict[tuple[str, str], list[int]] = {}
    for pair in plan.pairs:
        for camera in (pair.rgb, pair.ir):
            calls.setdefault((pair.pid, camera), []).append(pair.seed)

    def run() -> None:
        for (pid, camera), seeds in calls.items():
            (out / camera / pid).mkdir(parents=True)
            for at in range(0, len(seeds), size):
                some = seeds[at : at + size]
                embeddings, index = engine.prompts.encode(engine.encode_text, [None, *[(pid, camera)] * len(some)])
                conditioning = engine.condition(embeddings)
                noise = initial_noise(some, engine.latent_shape)
                latents = sample(engine, conditioning, index[1:], noise, schedule, plan.sampling.guidance)
                images = engine.decode(latents)
                for number, image in enumerate(images.numpy()):
                    Image.fromarray(image).save(out / camera / pid / f"{at + number}.png")

    return timed(run)[0]


def diffusers_and_datasets(pipe: Any, engine: Engine, plan: SynthesisPlan, out: Path) -> float:
    """The same images by Hugging Face's libraries alone: a dataset of prompts, mapped in batches, saved with its images.

    Each prompt is encoded once and by the tokenizer alone: with as many words of its own as this one has, the pipeline's
    `maybe_convert_prompt` takes half a second a prompt, three quarters of a call's time.
    """
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    prompt = engine.prompts.table.prompt
    rows = [
        {"prompt": prompt(pair.pid, camera), "seed": pair.seed, "camera": camera, "pid": pair.pid}
        for pair in plan.pairs
        for camera in (pair.rgb, pair.ir)
    ]

    @cache
    def encoded(text: str) -> torch.Tensor:
        ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.inference_mode():
            embeddings: torch.Tensor = pipe.text_encoder(ids).last_hidden_state
        return embeddings

    def generate(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = batch["prompt"]
        made = pipe(
            prompt_embeds=torch.cat([encoded(text) for text in texts]),
            negative_prompt_embeds=torch.cat([encoded("") for _ in texts]),
            generator=[torch.Generator().manual_seed(seed) for seed in batch["seed"]],
            height=plan.height,
            width=plan.width,
            num_inference_steps=plan.sampling.steps,
            guidance_scale=plan.sampling.guidance,
        )
        return {"image": made.images}

    columns = {**{name: Value("string") for name in ("prompt", "camera", "pid")}, "seed": Value("uint64")}

    def run() -> None:
        prompts = Dataset.from_list(rows, features=Features(columns))
        made = prompts.map(
            generate,
            batched=True,
            batch_size=ROWS // 2,
            writer_batch_size=ROWS // 2,
            load_from_cache_file=False,
            features=Features({**columns, "image": ImageColumn()}),
        )
        made.save_to_disk(out)

    return timed(run)[0]


def pipeline(fused: Path) -> Any:
    """diffusers' pipeline of the fused model, with the solver of our loop."""
    import datasets
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    datasets.disable_progress_bars()
    pipe = StableDiffusionPipeline.from_pretrained(fused, safety_checker=None, requires_safety_checker=False)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


KINDS = ("bare", "fast disk", "slow disk", "reference's way", "diffusers + datasets")


def turn_of_all(
    engine: Engine, pipe: Any, plan: SynthesisPlan, delay: float, first: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of every kind, begun with kind number `first`; and the engine's wait in the whole jobs, as a share."""
    waits: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def whole(kind: str, store: LocalStore) -> float:
            """The job, files and all."""
            clock = StageClock("encode", "denoise", "decode", "wait", "write")
            claim_folder(store, plan)
            seconds, _ = timed(lambda: _Run(plan, engine, store, ROWS, clock, range(plan.shards)).make(False))
            waits[kind] = clock.seconds()["wait"] / seconds
            return seconds

        runs: dict[str, Callable[[], float]] = {
            "bare": lambda: bare(engine, plan),
            "fast disk": lambda: whole("fast disk", LocalStore(place / "fast")),
            "slow disk": lambda: whole("slow disk", SlowStore(place / "slow", delay)),
            "reference's way": lambda: reference_way(engine, plan, place / "theirs"),
            "diffusers + datasets": lambda: diffusers_and_datasets(pipe, engine, plan, place / "libraries"),
        }
        return {kind: runs[kind]() for kind in [*KINDS[first:], *KINDS[:first]]}, waits


def job(engine: Engine, folder: Path, turns: int) -> dict[str, Any]:
    """Shares of the bare engine's rate, turn by turn; the slow disk writes just three times as fast as the engine makes."""
    pipe = pipeline(folder / "pocket")
    small, plan = pocket_plan(engine, pairs=16), pocket_plan(engine, pairs=96)
    images = 2 * len(plan.pairs)
    took, _ = turn_of_all(engine, pipe, small, 0.0, 0)  # a warm-up
    delay = 2 * took["bare"] / len(small.pairs) / 3  # two writers share it
    rounds = [
        turn_of_all(engine, pipe, plan, delay, turn % len(KINDS)) for turn in range(turns)
    ]  # each is first in turn
    seconds = {kind: [took[kind] for took, _ in rounds] for kind in KINDS}
    return {
        "images": images,
        "images/s": {kind: round(images / middle, 2) for kind, middle in medians(seconds).items()},
        "share of the bare engine": {kind: median_ratio(seconds["bare"], seconds[kind], 3) for kind in KINDS[1:]},
        "engine waits": medians({kind: [waits[kind] for _, waits in rounds] for kind in ("fast disk", "slow disk")}, 4),
        "slow disk, s a file": round(delay, 4),
    }


def ray_scaling(folder: Path, turns: int) -> dict[str, Any]:
    """Images a second of one worker pinned to one core, of two such, and of two Ray workers; a process of its own each."""
    pocket(folder)  # before its processes would all make it
    one, both, by_ray = "one worker, one core", "two workers, a core each", "two Ray workers"
    script = (sys.executable, "-m", "benchmarks.bulk", "--child")
    first, second = (("taskset", "-c", core, *script, "alone") for core in "01")
    starts_of = {one: [first], both: [first, second], by_ray: [(*script, "ray")]}
    rates: dict[str, list[float]] = {kind: [] for kind in starts_of}
    starts = []
    for turn in range(turns):
        for kind, values in rates.items():
            children = [
                subprocess.Popen(
                    [*start, folder, folder / f"{kind}-{number}-{turn}"], stdout=subprocess.PIPE, text=True
                )
                for number, start in enumerate(starts_of[kind])
            ]
            answers = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
            values.append(sum(answer["images/s"] for answer in answers))
            starts += [answer["start, s"] for answer in answers if "start, s" in answer]
    ratios = {f"{kind} / one": median_ratio(rates[kind], rates[one]) for kind in (both, by_ray)}
    return {"images/s": medians(rates, 2), **ratios, "start of a Ray job, s": round(statistics.median(starts), 1)}


def child(kind: str, folder: Path, out: Path) -> None:
    """Prints images/s: of one process with its engine open, or of a Ray job of 384 images beyond one of 64."""
    from dive_fast.synth.cluster import Cluster, synthesize_on

    torch.set_num_threads(1)
    engine = load_engine(pocket(folder), "onnxruntime", threads=1)
    small, plan = (pocket_plan(engine, pairs, shard_size=8) for pairs in (32, 192))
    if kind == "alone":
        synthesize(small, engine, out / "small", ROWS, progress=False)  # a warm-up
        summary = synthesize(plan, engine, out / "large", ROWS, progress=False)
        print(json.dumps({"images/s": summary.images_per_second}))
        return
    cluster, settings = Cluster(workers=2), {"path": str(pocket(folder)), "threads": 1}
    first = synthesize_on(cluster, small, settings, out / "warm", ROWS, progress=False)  # starts Ray
    few = synthesize_on(cluster, small, settings, out / "small", ROWS, progress=False)
    many = synthesize_on(cluster, plan, settings, out / "large", ROWS, progress=False)
    rate = (many.images - few.images) / (many.seconds - few.seconds)
    print(json.dumps({"images/s": rate, "start, s": first.seconds - few.images / rate}))


def main() -> None:
    parser = options_of(__doc__, turns=6)
    parser.add_argument("--only", choices=("plan", "resume", "job", "ray"), action="append")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), Path(options.child[2]))
        return
    result = metadata(PACKAGES, turns=options.turns)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        engine = cache(lambda: load_engine(pocket(place), "onnxruntime"))
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "plan": plan_of_millions,
            "resume": lambda: resume_of_a_finished_job(engine()),
            "job": lambda: job(engine(), place, options.turns),
            "ray": lambda: ray_scaling(place, options.turns),
        }
        for part in options.only or runs:
            result[part] = runs[part]()
            print(json.dumps(result[part]), flush=True)
    write(options.out, result)


if __name__ == "__main__":
    main()
