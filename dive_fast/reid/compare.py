"""Which training set is worth more: every arm trained with every seed, one table, one plot, gap closed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dive_fast.io import canonical_json, read_json, write_json
from dive_fast.reid.checkpoint import finished, load_model
from dive_fast.reid.config import ReidConfig
from dive_fast.reid.dataset import ImageSet, check_samples, fingerprint, load_images
from dive_fast.reid.evaluate import ReidResult, check_sides, score
from dive_fast.reid.plots import plot_comparison, require_matplotlib
from dive_fast.reid.protocols import Permutations, Protocol, trial_galleries
from dive_fast.reid.side_by_side import count_step, run_all
from dive_fast.reid.table import mean_deviation, write_tables
from dive_fast.reid.train import fit
from dive_fast.types import InputError, Sample, from_dict, to_dict


@dataclass(frozen=True)
class Arm:
    """One training set's outcome. Lists have one value per seed, in the order of the seeds; scores in percent.

    `difference` is mAP minus that of the baseline of record with the same seed; `gap_closed` is that difference over the
    oracle's (None for a seed in which the oracle is not above the baseline). Both are None as a whole for an arm
    that has nothing to be compared with. Deviations are the sample's, None for a single seed.
    """

    name: str
    identities: int
    visible: int
    infrared: int
    synthetic: int
    without_infrared: int  # identities
    map: list[float]
    rank1: list[float]
    minp: list[float]
    map_mean: float
    map_deviation: float | None
    rank1_mean: float
    difference: list[float] | None = None
    difference_mean: float | None = None
    difference_deviation: float | None = None
    gap_closed: list[float | None] | None = None
    gap_closed_mean: float | None = None
    gap_closed_deviation: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; also written as `compare.json`. `baseline` is the baseline of record, if there is one.

    `other_gaps` holds, for each other baseline, the gap that each arm closes from there, per seed as `Arm.gap_closed`.
    """

    arms: list[Arm]
    seeds: list[int]
    baseline: str | None
    oracle: str | None
    dataset: str
    protocol: dict[str, str | int]
    direction: str
    queries: int
    gallery: int
    config: dict[str, Any]
    other_gaps: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        """The arm of that name; an unknown one raises `InputError`."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise InputError(f"there is no arm {name!r}; the comparison has {', '.join(a.name for a in self.arms)}")

    def role(self, name: str) -> str:
        """The word "baseline" or "oracle" for an arm that is one without being called so, else ""."""
        roles = {self.baseline: "baseline", self.oracle: "oracle"}
        return "" if roles.get(name) == name else roles.get(name, "")


def compare(
    arms: Mapping[str, Sequence[Sample]],
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    config: ReidConfig,
    seeds: Sequence[int],
    out: Path | str,
    *,
    baseline: str | Sequence[str] = "baseline",
    oracle: str = "oracle",
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    permutations: Permutations | None = None,
    dataset: str = "pocket",
    device: str = "cpu",
    workers: int = 1,
    progress: bool = True,
) -> Comparison:
    """Trains each arm with each seed under one `config` and scores it on the same held-out query and gallery.

    Of several names in `baseline` the one with the highest mean mAP is the baseline of record. Without a baseline or an
    oracle among the arms, gap closed is None. A finished run is kept in `out/<arm>/seed-<n>/` and not repeated;
    `out` gets `compare.json`, `table.txt`, `table.md` and `compare.png`. With `workers` > 1 that many runs go on at once.
    A `synthetic_share` of the config is here for identities that not every arm has, whatever images an arm has of them: so
    every arm spends as many steps on the people common to all.
    Raises `InputError` for bad samples, people that are in training and test, and an `out` made from something else.
    """
    out = Path(out)
    require_matplotlib()
    _check(arms, query, gallery, seeds)
    trial_galleries(gallery, protocol, permutations)  # a protocol that does not fit is said before any training
    test = {"query": fingerprint(query), "gallery": fingerprint(gallery), "protocol": protocol.facts()}
    sides = _Sides(tuple(query), tuple(gallery), protocol, permutations, dataset, test)
    common = set.intersection(*({s.pid for s in samples} for samples in arms.values()))
    runs = [
        _Run(name, tuple(samples), data, replace(fair, seed=seed), out / name / f"seed-{seed}", sides, device, added)
        for name, samples in arms.items()
        for data, added in [(fingerprint(samples), tuple(sorted({s.pid for s in samples} - common)))]
        for fair in [config if added else replace(config, synthetic_share=None)]
        for seed in seeds
    ]
    missing = [run for run in runs if run.known() is None]
    if workers > 1 and len(missing) > 1:
        total = None if config.steps is None else config.steps * len(missing)
        run_all(missing, _carry_out, min(workers, len(missing)), total, progress)
    else:
        for run in missing:
            _say(progress, f"{run.arm}, seed {run.config.seed}")
            _carry_out(run, progress)
        _decoded_sets.clear()
    results: dict[str, list[ReidResult]] = {name: [] for name in arms}
    for run in runs:
        result = run.known()
        assert result is not None, run.folder
        if run in missing:
            _say(progress, f"{run.arm}, seed {run.config.seed}: mAP {result.map:.2f}, rank-1 {result.rank1:.2f}")
        results[run.arm].append(result)
    comparison = _comparison(arms, results, seeds, baseline, oracle, config)
    _write(comparison, out)
    return comparison


@dataclass(frozen=True)
class _Sides:
    """What every run is scored on; `facts` identify it."""

    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    protocol: Protocol
    permutations: Permutations | None
    dataset: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """One arm with one seed: all that a process needs to train and score it."""

    arm: str
    samples: tuple[Sample, ...]
    data: str
    config: ReidConfig
    folder: Path
    sides: _Sides
    device: str
    added: tuple[str, ...]  # identities that not every arm has

    def facts(self) -> dict[str, Any]:
        facts = {"config": to_dict(self.config), "data": self.data}
        return facts if self.config.synthetic_share is None else {**facts, "added": list(self.added)}

    def known(self) -> ReidResult | None:
        return _known_result(self.folder, {**self.facts(), **self.sides.facts})


def _carry_out(run: _Run, progress: bool = False) -> None:
    """Trains what is not trained yet, scores it and writes `result.json`."""
    size = (run.config.model.height, run.config.model.width)
    if not finished(run.folder, run.facts()):
        images = _decoded(run.data, run.samples, size)
        fit(
            images, run.config, run.folder, run=run.facts(), device=run.device, progress=progress, on_step=count_step,
            added=run.added,
        )  # fmt: skip
    sides = run.sides
    query, gallery = (_decoded(sides.facts[kind], getattr(sides, kind), size) for kind in ("query", "gallery"))
    trials = trial_galleries(sides.gallery, sides.protocol, sides.permutations)
    model, _, record = load_model(run.folder, run.device)
    result = score(model, query, gallery, trials, sides.protocol, checkpoint=record["sha256"], dataset=sides.dataset)
    write_json(run.folder / "result.json", {"run": {**run.facts(), **sides.facts}, "result": to_dict(result)})


_decoded_sets: dict[tuple[str, tuple[int, int]], ImageSet] = {}


def _decoded(data: str, samples: Sequence[Sample], size: tuple[int, int]) -> ImageSet:
    """Images by their fingerprint `data`; the last three sets are kept: both sides, and the arm whose seeds follow."""
    key = (data, size)
    if key not in _decoded_sets:
        while len(_decoded_sets) > 2:
            _decoded_sets.pop(next(iter(_decoded_sets)))
        _decoded_sets[key] = load_images(samples, *size)
    else:
        _decoded_sets[key] = _decoded_sets.pop(key)  # the freshest stand last
    return _decoded_sets[key]


def _check(
    arms: Mapping[str, Sequence[Sample]], query: Sequence[Sample], gallery: Sequence[Sample], seeds: Sequence[int]
) -> None:
    if not arms:
        raise InputError("compare: there are no arms; give at least one training set")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"compare: seeds must be a list of different numbers, got {list(seeds)}")
    check_sides(query, gallery)
    tested = {s.pid for s in query} | {s.pid for s in gallery}
    for name, samples in arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(f"arm {name!r}: name arms by letters, digits, '.', '_' and '-' (each becomes a folder)")
        check_samples(samples, f"arm {name!r}")
        leaked = sorted(tested & {s.pid for s in samples})
        if leaked:
            raise InputError(
                f"arm {name!r} trains on {len(leaked)} people of the test set ({', '.join(leaked[:5])}); leave them out, "
                "or prefix the names if they are other people (data.merge_samples)"
            )


def _known_result(folder: Path, run: dict[str, Any]) -> ReidResult | None:
    path = folder / "result.json"
    if not path.exists():
        return None
    stored = read_json(path, "reid result")
    if not isinstance(stored, dict) or canonical_json(stored.get("run")) != canonical_json(run):
        raise InputError(f"{path} is of another config, other images or another protocol; choose another out")
    return from_dict(ReidResult, stored.get("result"), str(path))


def _comparison(
    arms: Mapping[str, Sequence[Sample]],
    results: dict[str, list[ReidResult]],
    seeds: Sequence[int],
    baseline: str | Sequence[str],
    oracle: str,
    config: ReidConfig,
) -> Comparison:
    names = [baseline] if isinstance(baseline, str) else list(baseline)
    maps = {name: [r.map for r in runs] for name, runs in results.items()}
    of_record = max((n for n in names if n in maps), key=lambda n: float(np.mean(maps[n])), default=None)
    top = oracle if oracle in maps else None
    base_maps = None if of_record is None else maps[of_record]
    top_maps = None if top is None else maps[top]
    first = next(iter(results.values()))[0]
    rows = []
    for name, samples in arms.items():
        compared = None if name == of_record else base_maps
        gap = top_maps if name != top and name not in names else None
        rows.append(_arm(name, samples, results[name], compared, gap))
    candidates = [name for name in maps if top is not None and name != top and name not in names]
    other_gaps = {
        base: {name: _shares(maps[name], maps[base], maps[oracle]) for name in candidates}
        for base in names
        if base in maps and base != of_record and candidates
    }
    return Comparison(
        arms=rows,
        seeds=list(seeds),
        baseline=of_record,
        oracle=top,
        dataset=first.dataset,
        protocol=first.protocol,
        direction=first.direction,
        queries=first.queries,
        gallery=first.gallery,
        config=to_dict(config),
        other_gaps=other_gaps,
    )


def _arm(
    name: str,
    samples: Sequence[Sample],
    runs: Sequence[ReidResult],
    baseline: Sequence[float] | None,
    oracle: Sequence[float] | None,
) -> Arm:
    maps = [r.map for r in runs]
    seen = {s.pid for s in samples}
    infrared = {s.pid for s in samples if s.modality == "ir"}
    facts: dict[str, Any] = _spread("map", maps)
    if baseline is not None:
        difference = [ours - base for ours, base in zip(maps, baseline, strict=True)]
        facts.update(_spread("difference", difference), difference=difference)
        if oracle is not None:
            shares = _shares(maps, baseline, oracle)
            facts.update(_spread("gap_closed", shares), gap_closed=shares)
    return Arm(
        name=name,
        identities=len(seen),
        visible=sum(s.modality == "rgb" for s in samples),
        infrared=sum(s.modality == "ir" for s in samples),
        synthetic=sum(s.source == "synthetic" for s in samples),
        without_infrared=len(seen - infrared),
        map=maps,
        rank1=[r.rank1 for r in runs],
        minp=[r.minp for r in runs],
        rank1_mean=float(np.mean([r.rank1 for r in runs])),
        **facts,
    )


def _shares(maps: Sequence[float], baseline: Sequence[float], oracle: Sequence[float]) -> list[float | None]:
    """(mAP - baseline) / (oracle - baseline) per seed, None where the oracle is not above the baseline."""
    triples = zip(maps, baseline, oracle, strict=True)
    return [(own - base) / (top - base) if top > base else None for own, base, top in triples]


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    mean, deviation = mean_deviation(values)
    return {f"{name}_mean": mean, f"{name}_deviation": deviation}


def _write(comparison: Comparison, out: Path) -> None:
    write_tables(comparison, out)
    plot_comparison(comparison, out / "compare.png")
    write_json(out / "compare.json", to_dict(comparison))


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, flush=True)
