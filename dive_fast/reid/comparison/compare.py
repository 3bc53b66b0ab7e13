"""Which training set is worth more: every arm trained with every seed, one table, plots, gap closed, significance."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import write_json
from dive_fast.reid.comparison.plots import plot_comparison, plot_differences, require_matplotlib
from dive_fast.reid.comparison.runs import Run, Sides, carry_out, forget_images
from dive_fast.reid.comparison.side_by_side import run_all
from dive_fast.reid.comparison.significance import Significance, against, require_scipy
from dive_fast.reid.comparison.table import mean_deviation, write_tables
from dive_fast.reid.data.dataset import Table, check_samples, fingerprint
from dive_fast.reid.evaluation.evaluate import ReidResult, check_sides
from dive_fast.reid.evaluation.protocols import Permutations, Protocol, draw_trials
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.train import pair_sampler
from dive_fast.types import InputError, Sample, to_dict

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """One training set's outcome. Lists have one value per seed, in the order of the seeds; scores in percent.

    `difference` is mAP minus that of the baseline of record with the same seed; `gap_closed` is that difference over the
    oracle's (None for a seed in which the oracle is not above the baseline). Both are None as a whole for an arm
    that has nothing to be compared with, and so is `significance`. Deviations are the sample's, None for a single seed.
    `apart`: it was trained without the set that the other arms share, as "synthetic-only" is.
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
    apart: bool = False
    significance: Significance | None = None


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
    apart: Collection[str] = (),
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    permutations: Permutations | None = None,
    dataset: str = "pocket",
    device: str = "cpu",
    workers: int = 1,
    cache: Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Trains each arm with each seed under one `config` and scores it on the same held-out query and gallery.

    Of several names in `baseline` the one with the highest mean mAP is the baseline of record. Without a baseline or an
    oracle among the arms, gap closed is None. A finished run is kept in `out/<arm>/seed-<n>/` and not repeated;
    `out` gets `compare.json`, `table.txt`, `table.md`, `compare.png` and, with a baseline, `differences.png`. With
    `workers` > 1 that many runs go on at once. `cache` is a folder for decoded images, as in `load_images`.
    A `synthetic_share` or `synthetic_schedule` of the config is here for identities that not every arm has, whatever images
    an arm has of them: so every arm spends as many steps on the people common to all. Arms in `apart` are without the set
    that the others share (synthetic-only): they have no say in who is common, and draw from all their people alike.
    Raises `InputError` for bad samples, people that are in training and test, people whom the config cannot train on, and an
    `out` made from something else.
    """
    out = Path(out)
    require_matplotlib()
    if len(seeds) > 1:
        require_scipy()
    _check(arms, query, gallery, config, seeds, protocol, apart)
    draw_trials(query, gallery, protocol, permutations)  # a protocol that does not fit is said before any training
    configs = _fair_configs(arms, config, apart)
    for name, (fair, added) in configs.items():
        _check_trainable(name, arms[name], fair, added, name in apart)
    test = {"query": fingerprint(query), "gallery": fingerprint(gallery), "protocol": protocol.facts()}
    sides = Sides(tuple(query), tuple(gallery), protocol, permutations, dataset, test)
    prints = {name: fingerprint(samples) for name, samples in arms.items()}
    runs = [
        Run(
            name,
            tuple(arms[name]),
            prints[name],
            replace(fair, seed=seed),
            out / name / f"seed-{seed}",
            sides,
            device,
            added,
            cache,
        )
        for name, (fair, added) in configs.items()
        for seed in seeds
    ]
    _make([run for run in runs if not run.done()], config, workers, progress)
    results: dict[str, list[ReidResult]] = {name: [] for name in arms}
    aps: dict[str, list[F64 | None]] = {name: [] for name in arms}
    for run in runs:
        result = run.known()
        assert result is not None, run.folder
        results[run.arm].append(result)
        aps[run.arm].append(run.aps())
    comparison = _comparison(
        arms,
        results,
        seeds,
        baseline,
        oracle,
        config,
        apart=apart,
        aps=_mean_aps(aps),
        query_pids=[s.pid for s in query],
    )
    _write(comparison, out)
    return comparison


def _fair_configs(
    arms: Mapping[str, Sequence[Sample]], config: ReidConfig, apart: Collection[str]
) -> dict[str, tuple[ReidConfig, tuple[str, ...]]]:
    """Each arm's config, and its people that not every arm with the shared set has."""
    people = {name: {s.pid for s in samples} for name, samples in arms.items()}
    sharing = [pids for name, pids in people.items() if name not in apart]
    common = set.intersection(*sharing) if sharing else set()
    alike = replace(config, synthetic_share=None, synthetic_schedule=None)
    configs = {}
    for name in arms:
        added = () if name in apart else tuple(sorted(people[name] - common))
        configs[name] = (config if added else alike, added)
    return configs


def _make(missing: Sequence[Run], config: ReidConfig, workers: int, progress: bool) -> None:
    """Carries out the runs that are not there yet, and says what came of each."""
    if workers > 1 and len(missing) > 1:
        total = None if config.steps is None else config.steps * len(missing)
        run_all(missing, carry_out, min(workers, len(missing)), total, progress)
    else:
        for run in missing:
            _say(progress, f"{run.arm}, seed {run.config.seed}")
            carry_out(run, progress)
        forget_images()
    for run in missing:
        result = run.known()
        assert result is not None, run.folder
        _say(progress, f"{run.arm}, seed {run.config.seed}: mAP {result.map:.2f}, rank-1 {result.rank1:.2f}")


def _mean_aps(aps: Mapping[str, Sequence[F64 | None]]) -> dict[str, F64] | None:
    """An arm's AP for each query, float64 [Q], the mean over seeds; None if a run of any arm left none."""
    known = {name: [one for one in runs if one is not None] for name, runs in aps.items()}
    if any(len(known[name]) < len(runs) for name, runs in aps.items()):
        return None
    return {name: np.mean(runs, axis=0) for name, runs in known.items()}


def _check(
    arms: Mapping[str, Sequence[Sample]],
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    config: ReidConfig,
    seeds: Sequence[int],
    protocol: Protocol,
    apart: Collection[str],
) -> None:
    if not arms:
        raise InputError("compare: there are no arms; give at least one training set")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"compare: seeds must be a list of different numbers, got {list(seeds)}")
    unknown = sorted(set(apart) - set(arms))
    if unknown:
        raise InputError(f"compare: apart names {', '.join(unknown)}, which is no arm; there are {', '.join(arms)}")
    if config.validation.people:
        raise InputError(
            "compare: arms that differ in people would hold out different ones for validation; set people=0, so that "
            "every arm is scored after its last step"
        )
    if protocol.name == "regdb":
        raise InputError(
            "compare: each of RegDB's ten trials has people of its own to train on, so every arm would need ten trainings a "
            "seed, which compare does not do; run `dive-fast reid trials` for each training set and compare what it reports"
        )
    check_sides(query, gallery, protocol)
    tested = {s.pid for s in query} | {s.pid for s in gallery}
    for name, samples in arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(f"arm {name!r}: name arms by letters, digits, '.', '_' and '-' (each becomes a folder)")
        check_samples(samples, f"arm {name!r}")
        leaked = sorted(tested & {s.pid for s in samples})
        if leaked:
            raise InputError(
                f"arm {name!r} trains on {len(leaked)} people of the test set ({', '.join(leaked[:5])}); leave them out, "
                "or prefix the names if they are other people (prefix=)"
            )


def _check_trainable(
    name: str, samples: Sequence[Sample], config: ReidConfig, added: Collection[str], apart: bool
) -> None:
    """Says before the first training what an arm's sampler would say when its turn comes."""
    table = Table.of(samples)
    labels, infrared = table.labels.numpy(), table.infrared.numpy()
    if apart and not np.intersect1d(labels[infrared], labels[~infrared]).size:
        raise InputError(
            f"arm {name!r} is trained without the shared set, and none of its {len(table.pids):,} people has both visible "
            "and infrared images, so it cannot learn to match them; give it folders with both, such as a dataset of pairs"
        )
    try:
        pair_sampler(table, config, np.isin(np.array(table.pids)[labels], list(added)))
    except InputError as error:
        raise InputError(f"arm {name!r}: {error}") from error


def _comparison(
    arms: Mapping[str, Sequence[Sample]],
    results: dict[str, list[ReidResult]],
    seeds: Sequence[int],
    baseline: str | Sequence[str],
    oracle: str,
    config: ReidConfig,
    *,
    apart: Collection[str] = (),
    aps: Mapping[str, F64] | None = None,
    query_pids: Sequence[str] = (),
) -> Comparison:
    names = [baseline] if isinstance(baseline, str) else list(baseline)
    maps = {name: [r.map for r in runs] for name, runs in results.items()}
    of_record = max((n for n in names if n in maps), key=lambda n: float(np.mean(maps[n])), default=None)
    top = oracle if oracle in maps else None
    base_maps = None if of_record is None else maps[of_record]
    top_maps = None if top is None else maps[top]
    tests = {} if of_record is None else against(of_record, maps, aps, query_pids)
    first = next(iter(results.values()))[0]
    rows = []
    for name, samples in arms.items():
        compared = None if name == of_record else base_maps
        gap = top_maps if name != top and name not in names else None
        arm = _arm(name, samples, results[name], compared, gap)
        rows.append(replace(arm, apart=name in apart, significance=tests.get(name)))
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
    if comparison.baseline is not None and len(comparison.arms) > 1:
        plot_differences(comparison, out / "differences.png")
    write_json(out / "compare.json", to_dict(comparison))


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, flush=True)
