"""Comparison of training sets: every arm trained with every seed; one table, plots, gap closed and significance."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import write_json
from dive_fast.reid.comparison.plots import plot_comparison, plot_differences, require_matplotlib
from dive_fast.reid.comparison.records import Arm, Comparison, Rate
from dive_fast.reid.comparison.runs import HeldOut, Run, carry_out_missing, without_added
from dive_fast.reid.comparison.significance import against, require_scipy
from dive_fast.reid.comparison.table import mean_std, write_tables
from dive_fast.reid.data.dataset import Table, check_samples, fingerprint
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.evaluation.protocols import Permutations, Protocol
from dive_fast.reid.evaluation.results import ReidResult
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import InputError, Sample, shown, to_dict

F64 = NDArray[np.float64]
Arms = Mapping[str, Sequence[Sample]]


def compare(
    arms: Arms,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    config: ReidConfig,
    seeds: Sequence[int],
    out: Path | str,
    *,
    baseline: str = "baseline",
    oracle: str = "oracle",
    apart: Collection[str] = (),
    kept: Mapping[str, Rate] | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    permutations: Permutations | None = None,
    dataset: str = "pocket",
    device: str = "cpu",
    workers: int = 1,
    cache: Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Trains each arm with each seed under one `config` and scores it on the same held-out query and gallery.

    Without a baseline or an oracle among the arms, gap closed is None. Finished runs stay in `out/<arm>/seed-<n>/` and are
    not repeated. `out` gets `compare.json`, `table.txt`, `table.md`, `compare.png` and, with a baseline, `differences.png`.
    `kept` maps arms to a rate for the table. `workers` runs train at once. `cache` is a folder for decoded images, as in
    `load_images`.

    `synthetic_fraction` and `synthetic_schedule` count the identities that not every arm has, whatever images an arm has of
    them: so every arm spends as many steps on the identities common to all. Arms in `apart` lack the set that the others
    share (synthetic-only): they do not count for "common", and draw from all their identities alike.
    Raises `InputError` for bad samples, identities in both training and test, identities that the config cannot train on,
    a synthetic fraction where all arms have the same identities, a rate of no arm, and an `out` of another comparison.
    """
    out = Path(out)
    require_matplotlib()
    if len(seeds) > 1:
        require_scipy()
    _check(arms, query, gallery, config, seeds, protocol)
    unknown = sorted(set(kept or {}) - set(arms))
    if unknown:
        raise InputError(f"compare: rates of identity kept for {unknown}, which are no arms; the arms are {list(arms)}")
    test = HeldOut.from_samples(query, gallery, protocol, permutations, dataset)
    configs = _fair_configs(arms, config, apart)
    if without_added(config) != config and not any(added for _, added in configs.values()):
        raise InputError(
            "compare: the synthetic fraction counts identities that not every arm has, and all arms have the same ones; add"
            " the arm without them, or leave the fraction out"
        )
    for name, (fair, added) in configs.items():
        _check_trainable(name, arms[name], fair, added, name in apart)
    runs = []
    for name, (fair, added) in configs.items():
        samples, data = tuple(arms[name]), fingerprint(arms[name])
        for seed in seeds:
            own, folder = replace(fair, seed=seed), out / name / f"seed-{seed}"
            runs.append(Run(name, samples, data, own, folder, test, device, added, cache))
    carry_out_missing(runs, workers, progress)
    results: dict[str, list[ReidResult]] = {name: [] for name in arms}
    aps: dict[str, list[F64]] = {name: [] for name in arms}
    for run in runs:
        results[run.arm].append(run.result())
        aps[run.arm].append(run.aps())
    mean_aps = {name: np.mean(found, axis=0) for name, found in aps.items()}
    comparison = _comparison(arms, results, seeds, baseline, oracle, config, apart, mean_aps, [s.pid for s in query])
    comparison = replace(comparison, arms=[replace(arm, kept=(kept or {}).get(arm.name)) for arm in comparison.arms])
    write_tables(comparison, out)
    plot_comparison(comparison, out / "compare.png")
    if comparison.baseline is not None and len(comparison.arms) > 1:
        plot_differences(comparison, out / "differences.png")
    write_json(out / "compare.json", to_dict(comparison))
    return comparison


def _fair_configs(
    arms: Arms, config: ReidConfig, apart: Collection[str]
) -> dict[str, tuple[ReidConfig, tuple[str, ...]]]:
    """Each arm's config, and its identities that not every arm with the shared set has."""
    identities = {name: {s.pid for s in samples} for name, samples in arms.items()}
    sharing = [pids for name, pids in identities.items() if name not in apart]
    common = set.intersection(*sharing) if sharing else set()
    configs = {}
    for name in arms:
        added = () if name in apart else tuple(sorted(identities[name] - common))
        configs[name] = (config if added else without_added(config), added)
    return configs


def _check(
    arms: Arms,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    config: ReidConfig,
    seeds: Sequence[int],
    protocol: Protocol,
) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"compare: seeds must be a list of different numbers, got {list(seeds)}")
    if config.validation.people:
        raise InputError(
            f"compare: validation people must be 0, got {config.validation.people}: arms would hold out different ones"
        )
    if protocol.name == "regdb":
        raise InputError("compare: RegDB's trials train on different identities; run dive-fast reid trials")
    tested = {s.pid for s in query} | {s.pid for s in gallery}
    for name, samples in arms.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(
                f"arm {shown(name)}: name arms by letters, digits, '.', '_' and '-' (each becomes a folder)"
            )
        check_samples(samples, f"arm {name!r}")
        leaked = sorted(tested & {s.pid for s in samples})
        if leaked:
            raise InputError(
                f"arm {name!r} trains on {len(leaked)} identities of the test set ({', '.join(leaked[:5])}); leave them "
                "out, or give other people a prefix="
            )


def _check_trainable(
    name: str, samples: Sequence[Sample], config: ReidConfig, added: Collection[str], apart: bool
) -> None:
    """Raises the errors of an arm's sampler before the first training."""
    table = Table.from_samples(samples)
    labels, infrared = table.labels.numpy(), table.infrared.numpy()
    if apart and not np.intersect1d(labels[infrared], labels[~infrared]).size:
        raise InputError(
            f"arm {name!r}: none of its {len(table.pids):,} identities has visible and infrared images; add a set of pairs"
        )
    try:
        PairSampler(table, config, np.isin(np.array(table.pids)[labels], list(added)))
    except InputError as error:
        raise InputError(f"arm {name!r}: {error}") from error


def _comparison(
    arms: Arms,
    results: dict[str, list[ReidResult]],
    seeds: Sequence[int],
    baseline: str,
    oracle: str,
    config: ReidConfig,
    apart: Collection[str],
    aps: Mapping[str, F64],
    query_pids: Sequence[str],
) -> Comparison:
    maps = {name: [r.map for r in runs] for name, runs in results.items()}
    base = baseline if baseline in maps else None
    top = oracle if oracle in maps else None
    tests = {} if base is None else against(base, maps, aps, query_pids)
    rows = []
    for name, samples in arms.items():
        compared: dict[str, Any] = {}
        if base is not None and name != base:
            difference = [own - other for own, other in zip(maps[name], maps[base], strict=True)]
            compared = {"difference": difference, **_statistics("difference", difference)}
            if top is not None and name != top:
                gaps = _gaps_closed(maps[name], maps[base], maps[top])
                compared |= {"gap_closed": gaps, **_statistics("gap_closed", gaps)}
        arm = _arm(name, samples, results[name], compared)
        rows.append(replace(arm, apart=name in apart, significance=tests.get(name)))
    first = next(iter(results.values()))[0]
    return Comparison(
        arms=rows,
        seeds=list(seeds),
        baseline=base,
        oracle=top,
        dataset=first.dataset,
        protocol=first.protocol,
        direction=first.direction,
        queries=first.queries,
        gallery=first.gallery,
        config=to_dict(config),
    )


def _arm(name: str, samples: Sequence[Sample], runs: Sequence[ReidResult], compared: dict[str, Any]) -> Arm:
    maps = [r.map for r in runs]
    seen, infrared = {s.pid for s in samples}, {s.pid for s in samples if s.modality == "ir"}
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
        **_statistics("map", maps),
        **compared,
    )


def _gaps_closed(maps: Sequence[float], baseline: Sequence[float], oracle: Sequence[float]) -> list[float | None]:
    """(mAP - baseline) / (oracle - baseline) per seed, None where the oracle is not above the baseline."""
    triples = zip(maps, baseline, oracle, strict=True)
    return [(own - base) / (top - base) if top > base else None for own, base, top in triples]


def _statistics(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    mean, std = mean_std(values)
    return {f"{name}_mean": mean, f"{name}_deviation": std}
