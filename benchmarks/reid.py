"""ReID training and evaluation against the way they are usually written: `python -m benchmarks.reid --out FILE`.

train  an epoch of AGW's recipe on the pocket world: same network, losses, optimizer, batches of the same make-up. The peer
       is a plain port of the usual trainer: a dataset that opens, resizes and augments one photo an item with PIL and numpy,
       a sampler in Python, torch's DataLoader (with as many workers as serve it best). Then both trained to the end with
       each seed: mAP must be equal but for what seeds do.
eval   the metrics of one distance matrix, 4,000 x 10,000, and of SYSU-MM01's 3,803 queries x 301 x 10 trials, against the
       usual loop over queries.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.machine import interleaved, median_ratio, medians, metadata, options_of, timed, write
from dive_fast.experiments.arms import build_arms, heldout_sides, oracle_infrared
from dive_fast.reid.data.dataset import load_images
from dive_fast.reid.evaluation.evaluate import embed
from dive_fast.reid.evaluation.metrics import evaluate
from dive_fast.reid.evaluation.task import RetrievalTask
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.reid.training.config import ReidConfig, learning_rate
from dive_fast.reid.training.losses import weighted_triplet
from dive_fast.reid.training.recipes import recipe
from dive_fast.reid.training.train import train_reid
from dive_fast.reid.training.train_state import TrainState
from dive_fast.types import Sample
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world

KINDS = {"ours": "fp32", "ours, bf16": "bf16", "plain": "fp32"}
PACKAGES = ("torch", "numpy", "pillow")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def training_set(folder: Path) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """The pocket world's people with their true infrared, and the test sides."""
    world = folder / "world"
    build_world(world, WorldSpec())
    arms = build_arms(world, folder, oracle_infrared(world, 5), 5)
    query, gallery = heldout_sides(world)
    return arms["oracle"], query, gallery


def agw(seed: int, epochs: int, precision: str = "fp32") -> ReidConfig:
    """AGW's recipe for the pocket world's images and a network that a CPU trains from random weights."""
    return recipe(
        "agw",
        backbone="pocket",
        height=96,
        width=48,
        nonlocal_blocks=False,
        stripes=3,
        backbone_lr=1.0,
        crop=6,
        lr=0.05,
        clip=5.0,
        seed=seed,
        epochs=epochs,
        warmup_epochs=max(1, epochs // 6),
        drop_epochs=(epochs // 3, 5 * epochs // 6),
        precision=precision,
    )


class PlainDataset(Dataset[tuple[torch.Tensor, int, bool]]):
    """One photo an item: decoded, resized, padded and cropped, mirrored, normalised, as a float tensor."""

    def __init__(self, samples: Sequence[Sample], config: ReidConfig) -> None:
        self.samples, self.config = samples, config
        self.label = {pid: i for i, pid in enumerate(sorted({s.pid for s in samples}))}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, bool]:
        sample, model, changes = self.samples[index], self.config.model, self.config.augment
        image = Image.open(sample.path).convert("RGB").resize((model.width, model.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        pixels = np.pad(pixels, ((changes.crop,) * 2, (changes.crop,) * 2, (0, 0)))
        top, left = random.randint(0, 2 * changes.crop), random.randint(0, 2 * changes.crop)
        pixels = pixels[top : top + model.height, left : left + model.width]
        if random.random() < changes.flip:
            pixels = pixels[:, ::-1]
        scaled = (pixels.astype(np.float32) / 255 - MEAN) / DEVIATION
        tensor = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        return tensor, self.label[sample.pid], sample.modality == "ir"


class PlainSampler(Sampler[int]):
    """An epoch: batches of P people, K visible and K infrared photos each, drawn one by one."""

    def __init__(self, dataset: PlainDataset, config: ReidConfig, batches: int) -> None:
        self.people, self.per, self.batches = config.identities, config.per_modality, batches
        self.photos: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for index, sample in enumerate(dataset.samples):
            self.photos[dataset.label[sample.pid], sample.modality == "ir"].append(index)
        self.labels = sorted({label for label, _ in self.photos})

    def __len__(self) -> int:
        return self.batches * self.people * 2 * self.per

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.batches):
            for label in random.sample(self.labels, self.people):
                for infrared in (False, True):
                    photos = self.photos[label, infrared]
                    draw = random.sample if len(photos) >= self.per else random.choices
                    yield from draw(photos, k=self.per)


def plain_training(samples: Sequence[Sample], config: ReidConfig, steps: int, workers: int) -> ReidModel:
    """The usual loop over a DataLoader, with our network, losses, optimizer and rates."""
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    data = PlainDataset(samples, config)
    size = config.identities * 2 * config.per_modality
    loader = DataLoader(data, size, sampler=PlainSampler(data, config, steps), num_workers=workers)
    state = TrainState(config, len(data.label), "cpu")
    model, optimizer = state.model.train(), state.optimizer
    for step, (images, labels, infrared) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * learning_rate(step, steps, config, steps // (config.epochs or 1))
        features, logits = model(images, infrared)
        entropy = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=config.smoothing)
        loss = entropy + weighted_triplet(features, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.parameters, config.clip or float("inf"))
        optimizer.step()
        loss.item()
    return model.eval()


def train(folder: Path, seeds: int, epochs: int) -> dict[str, Any]:
    """Whole trainings, decoding and all, in turns; seconds an epoch, and mAP of each."""
    samples, query, gallery = training_set(folder)
    sides = [load_images(side, 96, 48) for side in (query, gallery)]
    task = RetrievalTask.from_samples(query, gallery)

    def quality(model: ReidModel) -> float:
        return task.result(task.score_features(*(embed(model, side) for side in sides)), checkpoint="").map

    workers = fastest_loader(samples)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    maps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps = 0

    def ours(seed: int, kind: str) -> ReidModel:
        nonlocal steps
        out = train_reid(samples, agw(seed, epochs, KINDS[kind]), folder / f"{kind}-{seed}", progress=False)
        model, _, record = load_model(out)
        steps = record["steps"]
        return model

    for seed in range(seeds):
        for kind in KINDS:
            plain = partial(plain_training, samples, agw(seed, epochs), steps, workers)
            took, model = timed(plain if kind == "plain" else partial(ours, seed, kind))
            seconds[kind].append(took / epochs)
            maps[kind].append(quality(model))
    ratios = {f"plain / {kind}": median_ratio(seconds["plain"], seconds[kind]) for kind in KINDS if kind != "plain"}
    return {
        "images": len(samples),
        "epochs": epochs,
        "steps an epoch": steps // epochs,
        "DataLoader workers": workers,
        "s an epoch": {kind: [round(value, 2) for value in values] for kind, values in seconds.items()},
        **ratios,
        "mAP %": {kind: [round(value, 1) for value in values] for kind, values in maps.items()},
    }


def fastest_loader(samples: Sequence[Sample]) -> int:
    """The number of DataLoader workers with which the plain loop is fastest here."""
    config = agw(0, 60)
    return min(range(3), key=lambda workers: timed(lambda: plain_training(samples, config, 60, workers))[0])


def loop_over_queries(
    distances: np.ndarray, query: np.ndarray, gallery: np.ndarray, query_cams: np.ndarray, gallery_cams: np.ndarray
) -> tuple[list[float], list[float], list[float]]:
    """Rank-1, AP and INP of each query by SYSU-MM01's rule, query by query and down each ranking."""
    firsts, precisions, penalties = [], [], []
    for row in range(len(query)):
        order = np.argsort(distances[row], kind="stable")
        rank, hits, precision, last, first = 0, 0, 0.0, 0, None
        for person, camera in zip(gallery[order], gallery_cams[order], strict=True):
            if query_cams[row] == 3 and camera == 2:
                continue
            rank += 1
            if first is None:
                first = float(person == query[row])
            if person == query[row]:
                hits += 1
                precision += hits / rank
                last = rank
        if hits:
            firsts.append(first or 0.0)
            precisions.append(precision / hits)
            penalties.append(hits / last)
    return firsts, precisions, penalties


def scores(queries: int, items: int, people: int, trials: int, repeats: int) -> dict[str, Any]:
    """Seconds of all trials by `evaluate` and by the loop, in turns, on distances that people show in."""
    rng = np.random.default_rng(0)
    query, gallery = rng.integers(people, size=queries), rng.integers(people, size=items)
    cams = rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], items)
    draws = []
    for _ in range(trials):
        noise = rng.random((queries, items), np.float32)
        draws.append(noise + 0.5 * (query[:, None] != gallery).astype(np.float32))
    ours, theirs = [], []

    def by_us() -> None:
        ours[:] = [evaluate(d, query, gallery, *cams, protocol="sysu") for d in draws]

    def by_loop() -> None:
        theirs[:] = [loop_over_queries(d, query, gallery, *cams) for d in draws]

    times = interleaved({"ours": by_us, "loop": by_loop}, repeats, warm_up=0)
    for found, (first, precision, penalty) in zip(ours, theirs, strict=True):
        wanted = np.mean(first), np.mean(precision), np.mean(penalty)
        assert np.allclose((found.cmc[0], found.map, found.minp), wanted, atol=1e-9), (found, wanted)
    return {
        "queries": queries,
        "gallery": items,
        "trials": trials,
        "s": {kind: round(value / 1e3, 3) for kind, value in medians(times).items()},
        "loop / ours": median_ratio(times["loop"], times["ours"], 1),
    }


def main() -> None:
    parser = options_of(__doc__, seeds=3, epochs=18, repeats=3)
    parser.add_argument("--only", choices=("train", "eval"), action="append")
    options = parser.parse_args()
    wanted, result = options.only or ("train", "eval"), metadata(PACKAGES)
    if "eval" in wanted:
        result["eval"] = [scores(4000, 10_000, 500, 1, options.repeats), scores(3803, 301, 96, 10, options.repeats)]
        print(json.dumps(result["eval"]), flush=True)
    if "train" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            result["train"] = train(Path(folder), options.seeds, options.epochs)
        print(json.dumps(result["train"]), flush=True)
    write(options.out, result)


if __name__ == "__main__":
    main()
