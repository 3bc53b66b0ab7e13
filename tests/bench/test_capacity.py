"""The capacity planner against cases worked out by hand, renewal theory, queueing bounds, and its own two halves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dive_fast.bench.capacity import TOLERANCE, closed_form, measured, predict, table
from dive_fast.bench.fleet import Fleet
from dive_fast.bench.simulate import simulate
from tests.support.refusals import refused

# 1,000 pairs of two images in shards of 10 pairs: 100 shards of 20 images, 10 s each at 2 images/s; 4 MB a shard.
PLAIN = Fleet(rate=2.0, pairs=1000, mode="synthetic", bytes_per_image=2e5, shard_size=10, startup=30.0, rate_std=0.0)


def test_one_worker_by_hand() -> None:
    assert (PLAIN.shards, PLAIN.compute_seconds, PLAIN.binds_at) == (100, 10.0, math.inf)
    assert closed_form(PLAIN, 1) == simulate(PLAIN, 1, 100).seconds == 30 + 1000
    found = predict(PLAIN, 1)
    assert found.gpu_hours == pytest.approx(1030 / 3600)
    assert found.efficiency == pytest.approx(1000 / 1030)
    assert (found.bound, found.agrees, found.off) == ("GPUs", True, 0.0)


@pytest.mark.parametrize(("workers", "rounds"), [(4, 25), (7, 15), (100, 1), (250, 1)])
def test_equal_workers_go_in_rounds(workers: int, rounds: int) -> None:
    """Without spread or failures the simulation is whole rounds of shards; the closed form is within a shard of it."""
    assert simulate(PLAIN, workers, 100).seconds == pytest.approx(30 + 10 * rounds)
    assert abs(closed_form(PLAIN, workers) - (30 + 10 * rounds)) <= 10
    assert predict(PLAIN, workers).bound == ("shards" if workers > 100 else "GPUs")


def test_the_disk_binds_where_it_must() -> None:
    """4 MB a shard at 8 MB/s are 0.5 s: 20 workers of 10 s fill it. The 21st gains nothing; the network does the same."""
    disk = replace(PLAIN, disk_write=8.0)
    assert disk.write_seconds == pytest.approx(0.5)
    assert disk.binds_at == pytest.approx(20)
    assert simulate(disk, 1, 100).seconds == pytest.approx(30 + 1000 + 0.5)
    # the first round ends at once and then the disk writes without a gap
    assert simulate(disk, 100, 100).seconds == pytest.approx(30 + 10 + 100 * 0.5)
    assert closed_form(disk, 100) == pytest.approx(30 + 10 + 100 * 0.5)
    assert [predict(disk, n).bound for n in (19, 20, 21)] == ["GPUs", "disk", "disk"]
    wire = replace(PLAIN, network=0.064)  # Gb/s: the same 8 MB/s
    assert (wire.shared[0], wire.binds_at) == ("network", pytest.approx(20))
    assert simulate(wire, 50, 100).seconds == simulate(disk, 50, 100).seconds


def test_closed_queue_stays_below_its_bounds_and_reaches_them() -> None:
    """Asymptotic bounds of a closed network: n / Z below saturation, 1 / S above (Z = compute, S = write of a shard)."""
    fleet = replace(PLAIN, pairs=40_000, disk_write=8.0, rate_std=0.3, startup=0.0)
    compute, write, shards = 10.0, 0.5, 4000
    for workers in (2, 10, 30, 100):
        bound = min(workers / compute, 1 / write)  # shards/s
        rate = shards / simulate(fleet, workers, shards, seed=3).seconds
        # 1 %: the slowest workers are cut off at a fifth of the mean
        assert 0.96 * bound < rate <= bound * 1.01, workers


@pytest.mark.parametrize("hours", [0.02, 0.005])
def test_failures_cost_what_renewal_theory_says(hours: float) -> None:
    """Mean of a 10 s shard that starts over at every failure, 5 s late: (e^(lt) - 1) (1/l + 5), by other means too."""
    fleet = replace(PLAIN, mtbf_hours=hours, startup=5.0)
    mean_to_failure = 3600 * hours
    p = math.exp(-10 / mean_to_failure)  # that a try succeeds
    lost = mean_to_failure - 10 * p / (1 - p)  # mean time of a try that fails, the exponential cut off at 10 s
    by_geometric = 10 + (1 - p) / p * (lost + 5)
    assert fleet.shard_seconds == pytest.approx(by_geometric)
    done = simulate(fleet, 1, 20_000, seed=1)
    assert done.seconds / 20_000 == pytest.approx(fleet.shard_seconds, rel=0.02)
    assert done.failures / 20_000 == pytest.approx((1 - p) / p, rel=0.03)
    assert done.lost_seconds / done.failures == pytest.approx(lost, rel=0.03)


def test_a_worker_for_each_shard_waits_for_the_slowest() -> None:
    """By brute force: 100 shards of 10 s that start over at failures, 36 s apart on average, and the last to be done."""
    fleet = replace(PLAIN, mtbf_hours=0.01, startup=0.0)
    draws = np.random.default_rng(0)
    slowest = []
    for _ in range(400):
        done, lost = np.zeros(100, bool), np.zeros(100)
        while not done.all():
            tries = draws.exponential(36, 100)
            failed = (tries < 10) & ~done
            lost += np.where(failed, tries, 0)
            done |= ~failed
        slowest.append(10 + lost.max())
    assert closed_form(fleet, 101) == pytest.approx(np.mean(slowest), rel=0.1)
    assert predict(fleet, 1000).agrees


@pytest.mark.slow
def test_a_thousand_workers_agree_with_the_closed_form() -> None:
    fleet = Fleet(
        rate=12, pairs=2_000_000, bytes_per_image=1.5e5, disk_write=1000, network=25, startup=90, mtbf_hours=200
    )
    for workers in (1, 8, 64, 400, 1000):
        found = predict(fleet, workers)
        assert found.agrees, (workers, found.off)
        assert abs(found.off or 1) < TOLERANCE
    assert all(predict(fleet, workers, seed).agrees for workers in (1, 2, 3) for seed in range(1, 4))
    assert fleet.binds_at == pytest.approx(1000e6 / 1.5e5 / 12, rel=0.01)  # 556 workers; failures hardly count here
    assert [predict(fleet, n, None).bound for n in (8, 400, 1000)] == ["GPUs", "GPUs", "disk"]


def test_same_seed_same_result() -> None:
    fleet = replace(PLAIN, rate_std=0.1, mtbf_hours=0.5, disk_write=20)
    assert simulate(fleet, 9, 100, seed=4) == simulate(fleet, 9, 100, seed=4) != simulate(fleet, 9, 100, seed=5)


def test_no_shard_is_lost_with_a_failed_worker() -> None:
    """The last shard fails while the others idle: one of them takes it up at once, not when its worker is back."""
    fleet = replace(PLAIN, mtbf_hours=0.01, startup=1000.0)  # 36 s, and back after 1,000 s
    done = simulate(fleet, 50, 60, seed=0)
    assert done.failures > 5
    assert 1000 + 20 <= done.seconds < 1000 + 1000  # nobody has to come back


def test_a_disagreement_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dive_fast.bench.capacity.closed_form", lambda fleet, n, shards=None: 500.0)
    found = predict(PLAIN, 1)
    assert not found.agrees
    assert "DISAGREES" in table(PLAIN, [found])


def test_the_table_says_that_it_is_a_prediction() -> None:
    fleet = replace(PLAIN, disk_write=8.0)
    lines = table(fleet, [predict(fleet, n) for n in (1, 40)]).splitlines()
    assert lines[0].startswith("prediction, not a measurement: 1,000 pairs, 2,000 images at 2 images/s")
    assert "disk 400 MB; disk 8 MB/s binds from 20.0 workers on" in lines[1]
    assert "GPUs" in lines[3] and "disk" in lines[4]


def test_a_rate_of_cpus_is_called_so() -> None:
    fleet = replace(PLAIN, device="CPU", pairs=10)
    text = table(fleet, [predict(fleet, 1)])
    assert "2 images/s a CPU" in text and "CPU-hours" in text and "1 shard of" in text and "GPU" not in text


def test_images_are_those_that_the_mode_generates() -> None:
    assert [replace(PLAIN, mode=mode).images for mode in ("real-rgb", "synthetic", "photo-guided")] == [
        1000,
        2000,
        1000,
    ]


def test_the_rate_of_a_bench(tmp_path: Path) -> None:
    rows = [
        {"rows": n, "images_per_second": {"p5": 1, "p50": rate, "p95": 99}, "bytes_per_image": size}
        for n, rate, size in ((2, 3.0, 700), (8, 5.5, 800), (32, 4.0, 900))
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows}))
    assert measured(tmp_path / "bench.json") == {"rate": 5.5, "bytes_per_image": 800, "device": "GPU"}
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows, "hardware": {"device": "cpu"}}))
    assert measured(tmp_path / "bench.json")["device"] == "CPU"
    text = {"images_per_second": {"p50": "9"}, "bytes_per_image": 1}
    for bad in ({}, [], {"rows": []}, {"rows": [text]}, {"rows": 3}):
        (tmp_path / "bad.json").write_text(json.dumps(bad))
        refused("bad.json", measured, tmp_path / "bad.json")


def test_nonsense_is_refused() -> None:
    refused("rate must be above 0, got 0; pairs must be at least 1, got -3", Fleet, rate=0, pairs=-3, bytes_per_image=1)
    refused("a shard takes 10 s and a worker fails every 1 s", replace, PLAIN, mtbf_hours=1 / 3600)
    refused("workers .* got 0", predict, PLAIN, 0)
