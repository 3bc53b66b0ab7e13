"""Scoring a dataset: shard after shard, safe to stop, in a few bytes of memory a pair.

First each shard's features and scores are computed and stored (`store`). Then diversity is computed identity by identity,
and the score files are written, `scores.json` last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dive_fast.data.sets import NamedSet, SetSpec, all_samples
from dive_fast.io import canonical_json, clear_disk_errors, locked, sha256_bytes, write_json, write_jsonl
from dive_fast.json_files import read_json
from dive_fast.progress import ProgressBar
from dive_fast.quality.config import MEANINGS, ScoreConfig
from dive_fast.quality.dataset import DatasetShard, dataset_hash, read_shard, records_hash, shard_numbers
from dive_fast.quality.measures import F32, RunningQuantiles, nearest
from dive_fast.quality.real import RealImages, read_real, set_metadata
from dive_fast.quality.reid_extractor import ReidExtractor, open_extractor
from dive_fast.quality.scorer import PER_IMAGE, Scorer
from dive_fast.quality.sidecar import VERSION, known_metadata, metadata_path, nearest_path, scores_path
from dive_fast.quality.store import FeatureStore, Stored
from dive_fast.reid.data.dataset import fingerprint
from dive_fast.types import MODALITIES, DiveError, InputError, Modality

Group = tuple[str, str]  # identity and camera


def score_dataset(
    dataset: Path,
    checkpoint: Path,
    real: Sequence[SetSpec],
    train: Sequence[SetSpec] = (),
    config: ScoreConfig = ScoreConfig(),
    *,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every generated image of `dataset` by a ReID checkpoint and returns the content of `scores.json`.

    Identities and modalities are those of the sets `real`; the generator learned from `train` (default: the same). A rerun
    scores only new and changed shards. With another model, other sets or other settings it raises `InputError`; `overwrite`
    deletes the old scores instead. A model that saw synthetic images, and sets that lack people or modalities, raise
    `InputError` before any work.
    """
    shard_numbers(dataset)
    extractor = open_extractor(checkpoint, device, config.batch)
    known = read_real(real)
    learned = read_real(train) if train else known
    settings = {
        "net": extractor.metadata["sha256"],
        "real": fingerprint(all_samples(known)),
        "train": fingerprint(all_samples(learned)),
        "scores": [name for name in MEANINGS if name in config.scores],
        "percentile": config.percentile,
        "version": VERSION,
    }
    with _claimed(dataset):
        _check_settings(dataset, settings, overwrite)
        metadata = known_metadata(dataset)
        complete = all(scores_path(dataset, number).is_file() for number in shard_numbers(dataset))
        if metadata and not overwrite and metadata.get("records") == dataset_hash(dataset) and complete:
            return metadata
        scorer = _scorer(dataset, extractor, known, learned, config, progress)
        run = _Run(dataset, extractor, scorer, settings, progress)
        if overwrite:
            _clear(dataset)
        write_json(_settings_path(dataset), settings)
        try:
            return run.write(run.compute())
        except KeyboardInterrupt as error:
            raise DiveError(f"interrupted: {dataset} keeps its scores; run the same command again") from error


def _settings_path(dataset: Path) -> Path:
    return FeatureStore(dataset).folder / "settings.json"


@contextmanager
def _claimed(dataset: Path) -> Iterator[None]:
    """Locks scores/ while the block runs."""
    folder = FeatureStore(dataset).folder
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", folder):
        yield


def _check_settings(dataset: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Raises `InputError` when scores/ has other settings, unless `overwrite`."""
    path, metadata = _settings_path(dataset), known_metadata(dataset)
    held = metadata["settings"] if metadata is not None else settings
    if path.exists():  # of a run that was stopped, too
        held = read_json(path, "score settings")
    if canonical_json(held) != canonical_json(settings) and not overwrite:
        raise InputError(f"{path.parent.parent} holds scores by {_difference(held, settings)}; use --overwrite")


def _difference(held: object, settings: dict[str, Any]) -> str:
    names = {"net": "another ReID model", "real": "other real images", "train": "other training images"}
    changed = [key for key in settings if not isinstance(held, dict) or held.get(key) != settings[key]]
    return ", ".join(names.get(key, f"another {key}") for key in changed)


def _clear(dataset: Path) -> None:
    """Removes score files only."""
    metadata_path(dataset).unlink(missing_ok=True)
    scores = dataset / "scores"
    for folder, suffix in ((scores, ".jsonl"), (scores / "nearest", ".jsonl"), (FeatureStore(dataset).folder, ".npz")):
        for file in list(folder.glob(f"*{suffix}")):
            if file.stem.isdecimal():
                file.unlink()


def _scorer(
    dataset: Path,
    extractor: ReidExtractor,
    real: Sequence[NamedSet],
    train: Sequence[NamedSet],
    config: ScoreConfig,
    progress: bool,
) -> Scorer:
    """The scorer of this dataset; checks the real sets before it opens a generated image."""
    bars = ("real images", "training images") if progress else (None, None)
    known = RealImages(tuple(real), extractor.features(all_samples(real), "modality" in config.scores, bars[0]))
    learned = known
    if [named.spec for named in train] != [named.spec for named in real]:
        learned = RealImages(tuple(train), extractor.features(all_samples(train), False, bars[1]))
    scorer = Scorer(known, learned, frozenset(config.scores), config.percentile)
    made = {(pair.pid, side) for number in shard_numbers(dataset) for pair, side in read_shard(dataset, number).made}
    scorer.check({pid for pid, _ in made}, {side for _, side in made})
    return scorer


@dataclass(frozen=True)
class _Run:
    dataset: Path
    extractor: ReidExtractor
    scorer: Scorer
    settings: dict[str, Any]
    progress: bool

    def key(self, shard: DatasetShard) -> str:
        """Identifies everything that decides a shard's features and scores by image."""
        return sha256_bytes(canonical_json([self.settings, shard.number, shard.sha256]).encode())

    def compute(self) -> list[tuple[int, str]]:
        """Scores every shard that is not stored yet; returns (number, SHA-256) of all."""
        store, found = FeatureStore(self.dataset), []
        numbers = shard_numbers(self.dataset)
        for number in ProgressBar(numbers, desc="score", unit="shard", disable=not self.progress):
            shard = read_shard(self.dataset, number)
            found.append((number, shard.sha256))
            if not store.has(number, self.key(shard)):
                store.write(number, self.key(shard), self._compute(shard))
        return found

    def _compute(self, shard: DatasetShard) -> Stored:
        made = shard.made
        if not made:
            empty = np.empty((0, len(PER_IMAGE)), np.float32)
            return Stored(np.empty((0, self.extractor.dims), np.float32), empty, np.empty(0, np.int64))
        features = self.extractor.features(shard.samples(self.dataset), "modality" in self.scorer.wanted)
        values, neighbour = self.scorer.values(features, [pair.pid for pair, _ in made], [side for _, side in made])
        return Stored(features.identity, values, neighbour)

    def stored(self, shard: DatasetShard) -> Stored:
        """The shard's stored rows; a damaged file is computed again."""
        store = FeatureStore(self.dataset)
        kept = store.read(shard.number, self.key(shard), len(shard.made))
        if kept is None:
            kept = self._compute(shard)
            store.write(shard.number, self.key(shard), kept)
        return kept

    def write(self, shards: Sequence[tuple[int, str]]) -> dict[str, Any]:
        """Writes every score file and then `scores.json`, and returns the latter's content."""
        numbers = [number for number, _ in shards]
        diversity = self._diversity(numbers) if "diversity" in self.scorer.wanted else {}
        quantiles_of: dict[tuple[str, Modality], RunningQuantiles] = {}
        over: Counter[Modality] = Counter()
        thresholds = self.scorer.thresholds()
        limits = {side: metadata["value"] for side, metadata in thresholds["memorisation"].items()}
        pairs = 0
        for number in ProgressBar(numbers, desc="write scores", unit="shard", disable=not self.progress, leave=False):
            shard = read_shard(self.dataset, number)
            pairs += len(shard.pairs)
            columns = self._columns(shard, diversity.get(number))
            sides = np.array([side for _, side in shard.made])
            for name, column in columns.items():
                for side in MODALITIES:
                    of_side = column[sides == side] if len(sides) else column
                    if len(of_side) and not np.isnan(of_side).all():
                        quantiles_of.setdefault((name, side), RunningQuantiles()).add(of_side)
                        if name == "memorisation" and side in limits:
                            over[side] += int((of_side > limits[side]).sum())
            write_jsonl(scores_path(self.dataset, number), _rows(shard, columns))
        for side, metadata in thresholds["memorisation"].items():
            metadata["over"] = over[side]
        metadata = self._metadata(quantiles_of, thresholds) | {
            "pairs": pairs,
            "shards": len(numbers),
            "records": records_hash(shards),
        }
        write_json(metadata_path(self.dataset), metadata)
        return metadata

    def _columns(self, shard: DatasetShard, diversity: F32 | None) -> dict[str, F32]:
        """A shard's scores by name, NaN where there is none; also writes the nearest training images."""
        kept = self.stored(shard)
        columns = {name: kept.values[:, n] for n, name in enumerate(PER_IMAGE) if name in self.scorer.wanted}
        if diversity is not None:
            columns["diversity"] = diversity
        if "memorisation" in self.scorer.wanted:
            names = [self.scorer.train.names[at] for at in kept.nearest]
            write_jsonl(nearest_path(self.dataset, shard.number), _by_pair(shard, names))
        return columns

    def _diversity(self, numbers: Sequence[int]) -> dict[int, F32]:
        """Each shard's diversity, 4 bytes an image, NaN for a lone image of its identity and camera.

        Features are held until their group is complete: in a plan's order, those of one person at a time.
        """
        left: Counter[Group] = Counter()
        for number in numbers:
            left.update(_groups(read_shard(self.dataset, number)))
        held: dict[Group, list[tuple[F32, int, np.ndarray]]] = {}
        values: dict[int, F32] = {}
        for number in numbers:
            shard = read_shard(self.dataset, number)
            kept, groups = self.stored(shard), _groups(shard)
            values[number] = np.full(len(groups), np.nan, np.float32)
            for group in dict.fromkeys(groups):
                rows = np.array([n for n, other in enumerate(groups) if other == group])
                held.setdefault(group, []).append((kept.features[rows], number, rows))
                left[group] -= len(rows)
                if not left[group]:
                    _finish(held.pop(group), values)
        return values

    def _metadata(
        self, quantiles_of: dict[tuple[str, Modality], RunningQuantiles], thresholds: dict[str, Any]
    ) -> dict[str, Any]:
        made: dict[str, dict[str, Any]] = {}
        for (name, side), running in sorted(quantiles_of.items()):
            made.setdefault(name, {})[side] = running.quantiles()
        report = self.scorer.probe_report
        probe = None if report is None else {"auc": round(report.auc, 4), "accuracy": round(report.accuracy, 4)}
        return {
            "version": VERSION,
            "net": self.extractor.metadata,
            "settings": self.settings,
            "sets": {"real": set_metadata(self.scorer.real.sets), "train": set_metadata(self.scorer.train.sets)},
            "scores": {
                name: {"meaning": meaning, "high_is_good": good}
                for name, (meaning, good) in MEANINGS.items()
                if name in self.scorer.wanted
            },
            "thresholds": thresholds,
            "probe": probe,
            "real": self.scorer.on_real(),
            "made": made,
        }


def _groups(shard: DatasetShard) -> list[Group]:
    return [(pair.pid, pair.cameras[side]) for pair, side in shard.made]


def _finish(parts: list[tuple[F32, int, np.ndarray]], values: dict[int, F32]) -> None:
    """Fills in the diversity of a complete group."""
    features = np.concatenate([part for part, _, _ in parts])
    if len(features) > 1:
        found = (1 - nearest(features)[0]).clip(min=0)  # half precision may say a little less than 0
        ends = np.cumsum([len(part) for part, _, _ in parts])[:-1]
        for part, (_, number, rows) in zip(np.split(found, ends), parts, strict=True):
            values[number][rows] = part


def _rows(shard: DatasetShard, columns: dict[str, F32]) -> Iterator[dict[str, Any]]:
    by_row = [
        {name: round(float(column[row]), 5) for name, column in columns.items() if not np.isnan(column[row])}
        for row in range(len(shard.made))
    ]
    return _by_pair(shard, by_row, {})


def _by_pair(shard: DatasetShard, values: Sequence[Any], absent: Any = None) -> Iterator[dict[str, Any]]:
    """A line for every pair with the value of each generated side; other sides get `absent`, if given."""
    row = 0
    for pair in shard.pairs:
        line: dict[str, Any] = {"pair_id": pair.pair_id}
        for side in MODALITIES:
            if side in pair.made:
                line[side] = values[row]
                row += 1
            elif absent is not None:
                line[side] = absent
        yield line
