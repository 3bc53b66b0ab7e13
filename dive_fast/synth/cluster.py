"""Synthesis with Ray: workers that each own an engine, on the GPUs of one machine or of a cluster.

The driver distributes shards in bundles; a worker makes its bundle as `synthesize` does. The bundle of a lost worker or node
goes to another worker. All state is on the disk, so a lost driver can be restarted, too.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive_fast.environment.optional import optional
from dive_fast.io import brief
from dive_fast.progress import ProgressBar
from dive_fast.synth.checks import check_run
from dive_fast.synth.folder import claim_folder, finished_shards, open_store
from dive_fast.synth.local import Made, Summary, finish_run, synthesize
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.synth.store import Store
from dive_fast.types import DiveError, InputError

BUNDLES = 4  # per worker, of what is left: large enough to fill batches, small enough to end together
TRIES = 3  # of one bundle, on whatever workers


@dataclass(frozen=True)
class Cluster:
    """Where the workers run.

    `address` is that of a running cluster ("auto", "ray://HOST:10001"); None starts Ray on this machine. `workers` None
    means one per GPU, or without GPUs one per core. `gpus` and `cpus` are what Ray reserves for a worker; None means one
    GPU if the cluster has any, and a core for each thread of the engine.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    cpus: float | None = None

    def resolved(self, resources: Mapping[str, float], threads: int | None) -> Cluster:
        """Returns it with numbers for every None; raises `InputError` when no worker fits."""
        gpus = self.gpus if self.gpus is not None else float(resources.get("GPU", 0) >= 1)
        cpus = self.cpus if self.cpus is not None else float(threads or 1)
        room = [int(resources.get(name, 0) / need) for name, need in (("GPU", gpus), ("CPU", cpus)) if need]
        if not room or min(room) < 1:
            raise InputError(
                f"the Ray cluster has {resources.get('GPU', 0):g} GPUs and {resources.get('CPU', 0):g} CPUs, a worker "
                f"needs {gpus:g} and {cpus:g}; add nodes, or ask for less"
            )
        return Cluster(self.address, self.workers or min(room), gpus, cpus)


def synthesize_on(
    cluster: Cluster,
    plan: SynthesisPlan,
    engine: Mapping[str, Any],
    out: Path | str,
    rows: int | None = None,
    progress: bool = True,
) -> Summary:
    """Makes every pair of `plan` at `out`, which every worker must reach; `engine` are `load_engine`'s arguments.

    `rows` are UNet rows a call, by default those that the engine is made for. Raises as `synthesize`, and `DiveError` when
    a bundle of shards failed `TRIES` times, with the last reason.
    """
    ray = optional("ray", "a run on Ray")
    store = open_store(out)
    began = time.perf_counter()
    finished = finished_shards(store, plan)
    todo = [number for number in range(plan.shards) if number not in finished]
    made = Made()
    if todo:
        ray.init(address=cluster.address, ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
        cluster = cluster.resolved(ray.cluster_resources(), engine.get("threads"))
        settings = {**engine, "threads": engine.get("threads") or (None if cluster.gpus else 1)}
        count = min(cluster.workers or 1, len(todo))
        crew = _Crew(ray, cluster, (ray.put(plan), settings, str(out), rows), _bundles(todo, count))
        with ProgressBar(
            total=plan.shards, initial=len(finished), unit="shard", desc="synth", disable=not progress
        ) as bar:
            crew.start(count, store, plan)
            crew.drive(bar.update)
        made = crew.made
    else:
        claim_folder(store, plan)
    return finish_run(store, plan, len(finished), made, time.perf_counter() - began)


def _bundles(todo: Sequence[int], workers: int) -> list[list[int]]:
    """The shards in bundles that shrink toward the end, so that workers finish together: guided self-scheduling
    (Polychronopoulos and Kuck, 1987).
    """
    bundles = []
    first = 0
    while first < len(todo):
        size = max(1, (len(todo) - first) // (BUNDLES * workers))
        bundles.append(list(todo[first : first + size]))
        first += size
    return bundles


class Worker:
    """One engine in one process; an actor of Ray."""

    def __init__(self, plan: SynthesisPlan, engine: dict[str, Any], out: str, rows: int | None) -> None:
        from dive_fast.engines import load_engine

        self._engine = load_engine(**engine)
        self._plan, self._out, self._rows = plan, out, rows or self._engine.spec.profile.rows_opt

    def check(self) -> None:
        """Raises `InputError` when plan, engine and place do not fit."""
        check_run(self._plan, self._engine, self._out, self._rows)

    def make(self, shards: list[int]) -> Made:
        """Makes these shards."""
        summary = synthesize(self._plan, self._engine, self._out, self._rows, progress=False, shards=shards)
        return Made(summary.images, summary.times, summary.rejected, summary.lost)


class _Crew:
    """The workers, each at one bundle at a time; `made` is what they have made."""

    def __init__(self, ray: Any, cluster: Cluster, arguments: tuple[Any, ...], bundles: list[list[int]]) -> None:
        self._ray, self._arguments = ray, arguments
        self._kind = ray.remote(num_gpus=cluster.gpus, num_cpus=cluster.cpus, max_restarts=0)(Worker)
        self._ready: list[Any] = []
        self._waiting = deque(bundles)
        self._at: dict[Any, tuple[Any, list[int]]] = {}  # task -> worker and bundle
        self._failures: Counter[int] = Counter()  # of the bundle with this first shard
        self.made = Made()

    def start(self, count: int, store: Store, plan: SynthesisPlan) -> None:
        """Opens `count` workers; one checks plan, engine and place before anything is written."""
        self._ready = [self._kind.remote(*self._arguments) for _ in range(count)]
        try:
            self._ray.get(self._ready[-1].check.remote())
        except self._ray.exceptions.RayError as error:
            self._dismiss()
            raise _reason(error) from error
        claim_folder(store, plan)

    def drive(self, advance: Callable[[int], object]) -> None:
        """Keeps the workers busy until no bundle is left; replaces lost workers."""
        try:
            for _ in range(len(self._ready)):
                self._next()
            while self._at:
                (task,), _ = self._ray.wait(list(self._at), num_returns=1)
                worker, bundle = self._at.pop(task)
                try:
                    made = self._ray.get(task)
                except self._ray.exceptions.RayError as error:
                    self._ray.kill(worker)
                    self._give_back(bundle, error)
                else:
                    self._ready.append(worker)
                    self.made += made
                    advance(len(bundle))
                self._next()
        except KeyboardInterrupt as error:
            raise DiveError("interrupted; run the same command again to continue") from error
        finally:
            self._dismiss()

    def _dismiss(self) -> None:
        for worker in [*self._ready, *(worker for worker, _ in self._at.values())]:
            self._ray.kill(worker)

    def _next(self) -> None:
        if self._waiting:
            worker = self._ready.pop() if self._ready else self._kind.remote(*self._arguments)
            bundle = self._waiting.popleft()
            self._at[worker.make.remote(bundle)] = worker, bundle

    def _give_back(self, bundle: list[int], error: Exception) -> None:
        """Puts a failed bundle back in the queue; bad input, and too many attempts, raise."""
        reason = _reason(error)
        if isinstance(reason, InputError):
            raise reason from error
        self._failures[bundle[0]] += 1
        if self._failures[bundle[0]] >= TRIES:
            raise DiveError(
                f"shards {bundle[0]} to {bundle[-1]} failed {TRIES} times, last with: {reason}; finished work is kept: fix "
                "that and run the same command again"
            ) from error
        self._waiting.append(bundle)


def _reason(error: Exception) -> DiveError:
    """The error of a worker; for a lost worker, one sentence."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, DiveError) else DiveError(f"a worker failed: {brief(cause or error)}")
