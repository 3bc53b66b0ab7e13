"""An engine of known slowness, measured: what is reported is what it was made to take."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_fast.bench.batch import STAGES, bench_plan, start_batch
from dive_fast.bench.measure import Roofline, check_rows, measure_job, measure_rows
from dive_fast.bench.op_counts import OpCount
from dive_fast.bench.roofline import Peaks
from dive_fast.engines import Conditioning
from dive_fast.sampling import Sampling, Schedule
from tests.support.fake_engine import FakeEngine
from tests.support.refusals import refused

STEPS = 3


class SlowEngine(FakeEngine):
    """Milliseconds: 20 a text call, 30 a bank, 4 a UNet row, 40 a decode; by the clock of `sleep`."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        super().__init__()
        self.sleep = sleep

    def encode_text(self, token_ids: Tensor) -> Tensor:
        self.sleep(0.02)
        return super().encode_text(token_ids)

    def condition(self, embeddings: Tensor) -> Conditioning:
        self.sleep(0.03)
        return super().condition(embeddings)

    def eps(self, latents: Tensor, timestep: int, conditioning: Conditioning, prompt_index: Tensor) -> Tensor:
        self.sleep(0.004 * len(prompt_index))
        return super().eps(latents, timestep, conditioning, prompt_index)

    def decode(self, latents: Tensor) -> Tensor:
        self.sleep(0.04)
        return super().decode(latents)


PEAKS = Peaks(tflops=1.0, gbytes=1.0, precision="fp32", gemms={})
PLAIN = Sampling(STEPS, 2.0)


def counted(engine: Any, sampling: Sampling = PLAIN) -> Roofline:
    """1 GFLOP a UNet row, 2 an image, 3 a prompt; nothing is moved."""
    work: Any = SimpleNamespace(
        **{
            part: lambda n, gflop=gflop: OpCount(n * gflop * 10**9, 0, 0)
            for part, gflop in {"unet": 1, "decode": 2, "encode": 3}.items()
        }
    )
    return Roofline(work, PEAKS, sampling, engine)


def test_stages_rates_and_floors_of_a_slow_engine(sleep: Callable[[float], None]) -> None:
    engine: Any = SlowEngine(sleep)
    told: list[str] = []
    rows = measure_rows(engine, (4, 8), PLAIN, counted(engine), repeats=3, rounds=3, advance=told.append)
    assert [(row.rows, row.images) for row in rows] == [(4, 2), (8, 4)]
    assert len(told) == 2 + 1 + 3
    for row in rows:
        denoise = STEPS * 4 * row.rows
        expected = {"encode": 20, "bank": 30, "denoise": denoise, "decode": 40, "write": 0}
        assert tuple(row.stages_ms) == STAGES
        assert {stage: ms.p50 for stage, ms in row.stages_ms.items()} == pytest.approx(expected)
        assert row.unet_ms.p50 == pytest.approx(4 * row.rows)
        assert row.batch_ms.p50 == pytest.approx(90 + denoise)
        assert row.images_per_second.p50 == pytest.approx(1e3 * row.images / row.batch_ms.p50)
        assert row.pairs_per_second["both sides generated"] == pytest.approx(row.images_per_second.p50 / 2)
        assert row.memory.process is not None and row.memory.process > 50  # torch alone is more
        assert row.bytes_per_image > 50
        prompts = row.images + 1  # identities differ within a batch; and the empty prompt
        assert row.unet_bound.gflop == pytest.approx(row.rows)
        assert row.batch_bound.gflop == pytest.approx(3 * prompts + STEPS * row.rows + 2 * row.images)
        assert row.unet_bound.fraction == pytest.approx(row.rows / row.unet_ms.p50)  # 1 GFLOP is 1 ms at 1 TFLOP/s
        assert row.batch_bound.fraction == pytest.approx(row.batch_bound.gflop / row.batch_ms.p50)


def test_a_whole_job_and_its_estimate(sleep: Callable[[float], None]) -> None:
    engine: Any = SlowEngine(sleep)
    job = measure_job(engine, 4, PLAIN)
    assert job.images == 6  # three batches of two images
    assert job.images_per_second == pytest.approx(6 / (0.05 + 3 * (STEPS * 0.016 + 0.04)), rel=1e-3)  # prompts once
    assert job.times["denoise"] == pytest.approx(3 * STEPS * 0.016, abs=2e-3)
    # 1 + 2 calls of 4 rows; 1 + 3 batches and the job's 3, each of 3 calls and 2 images decoded
    assert counted(engine).least_seconds((4,), 2, 3) == pytest.approx((3 * 4 + 7 * (12 + 4)) / 1e3)


def test_work_that_is_left_out_is_not_counted() -> None:
    """Five steps, of which three have guidance, by hand; 3 images, 6 rows with guidance."""
    engine: Any = FakeEngine()
    schedule = Schedule.from_config(engine.scheduler_config, 5)
    interval = (schedule.sigmas[4], schedule.sigmas[1])  # steps 1, 2 and 3
    sampling = Sampling(5, 2.0, guidance_interval=interval)
    work = counted(engine, sampling)
    found = sorted((part.flops / 1e9, count) for part, count in work.batch(3, prompts=2))
    assert found == [(3.0, 2), (6, 1), (6.0, 3), (9, 1)]  # steps without, decoded 3 x 2, steps with, encoded 3 x 3
    assert work.bound(work.batch(3), 100.0).fraction == pytest.approx((6 + 2 * 3 + 3 * 6) / 100)
    assert work.largest(3).flops == 6e9
    alone = counted(engine, Sampling(5, 1.0))
    assert sorted((part.flops / 1e9, count) for part, count in alone.batch(3, prompts=2)) == [(3, 5), (6, 1), (6, 1)]


def test_the_batch_mixes_people_or_is_of_one() -> None:
    engine: Any = FakeEngine()
    plan = bench_plan(engine, 6, PLAIN)
    assert (plan.sampling, plan.mode) == (PLAIN, "synthetic")
    mixed = start_batch(plan, engine, 6)
    assert len({job.key for job in mixed.jobs}) == 6
    noise = mixed.noise
    assert noise.shape == (6, *engine.latent_shape) and 0.5 < float(noise.std()) < 1.5
    assert torch.equal(noise[0], noise[1])  # both sides of a pair
    alone = start_batch(bench_plan(engine, 6, PLAIN, identities=1), engine, 6, ("ir",))
    assert len(alone.jobs) == 6 and len({job.key for job in alone.jobs}) == 1
    assert len({tuple(row.flatten().tolist()) for row in alone.noise}) == 6


def test_rows_that_cannot_be_are_refused_at_once() -> None:
    engine: Any = FakeEngine()
    refused("rows 128 > rows_max 64", check_rows, engine, (4, 128), PLAIN)
    refused("1 rows .* guidance 2.0", check_rows, engine, (1,), PLAIN)
    refused("--rows", check_rows, engine, (), PLAIN)
