"""The score files of a dataset: scores/NNNNN.jsonl, one pair a line, and scores/scores.json, which explains them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive_fast.json_files import read_json
from dive_fast.quality.dataset import Pair, dataset_hash, read_shard, shard_numbers
from dive_fast.report.rows import SideScores, score_lines
from dive_fast.types import InputError

VERSION = 1


@dataclass(frozen=True)
class Scored:
    """A pair, its shard, and its scores by generated side."""

    shard: int
    pair: Pair
    scores: SideScores


def scores_path(dataset: Path, number: int) -> Path:
    return dataset / "scores" / f"{number:05d}.jsonl"


def nearest_path(dataset: Path, number: int) -> Path:
    """The training image nearest to each generated one of a shard: {"pair_id", side: "set/file"} a line."""
    return dataset / "scores" / "nearest" / f"{number:05d}.jsonl"


def metadata_path(dataset: Path) -> Path:
    return dataset / "scores" / "scores.json"


def known_metadata(dataset: Path) -> dict[str, Any] | None:
    """`scores.json`, maybe of other images; None when there is none. A broken one raises `InputError`."""
    path = metadata_path(dataset)
    if not path.is_file():
        return None
    metadata = read_json(path, "scores")
    try:
        whole = metadata["version"] == VERSION and _is_whole(metadata)
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is no description of scores that this version reads; run dive-fast score --overwrite")
    found: dict[str, Any] = metadata
    return found


def _is_whole(metadata: dict[str, Any]) -> bool:
    """Whether the fields that are read later have the right types; raises `AttributeError` and the like where one lacks."""
    spans = [span for kind in ("made", "real") for sides in metadata[kind].values() for span in sides.values()]
    numbers = [span[name] for span in spans for name in ("5%", "50%", "95%")]
    limits = [limit for sides in metadata["thresholds"].values() for limit in sides.values()]
    numbers += [limit[name] for limit in limits for name in ("over", "value", "percentile")]
    numbers += [metadata["probe"]["auc"]] if metadata["probe"] else []
    flags = [entry["high_is_good"] for entry in metadata["scores"].values()]
    texts = [entry[name] for entry in metadata["sets"]["train"] for name in ("name", "root")]
    return (
        type(metadata["pairs"]) is int
        and isinstance(metadata["settings"], dict)
        and all(type(number) in (int, float) for number in numbers)
        and all(type(flag) is bool for flag in flags)
        and all(isinstance(text, str) for text in texts)
    )


def read_metadata(dataset: Path) -> dict[str, Any]:
    """`scores.json`; a missing or broken one, or one of other images, raises `InputError`."""
    metadata = known_metadata(dataset)
    if metadata is None:
        raise InputError(f"dataset {dataset} is not scored yet; run dive-fast score first")
    if metadata.get("records") != dataset_hash(dataset):
        raise InputError(f"dataset {dataset} has other pairs than were scored; run dive-fast score again")
    return metadata


def read_scored(dataset: Path) -> Iterator[Scored]:
    """Every recorded pair with its scores, in plan order; a line that does not fit its pair raises `InputError`."""
    for number in shard_numbers(dataset):
        rows = score_lines(scores_path(dataset, number))
        for line, pair in enumerate(read_shard(dataset, number).pairs, start=1):
            pair_id, scores = next(rows, ("", {}))
            if pair_id != pair.pair_id:
                where = f"{scores_path(dataset, number)} line {line}"
                raise InputError(f"{where} is not about pair {pair.pair_id}; run dive-fast score --overwrite")
            yield Scored(number, pair, scores)


def read_scores(dataset: Path) -> Iterator[SideScores]:
    """The scores alone, in plan order, in a third of the time of `read_scored`."""
    for number in shard_numbers(dataset):
        yield from (scores for _, scores in score_lines(scores_path(dataset, number)))
