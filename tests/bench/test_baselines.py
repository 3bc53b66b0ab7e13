"""Baselines and parity: all draw the same images, and who does not is not said to be slower or faster."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dive_fast.bench import baselines, diffusers_baseline
from dive_fast.bench.baselines import BaselineResults, Other, Setup, measure_baselines
from dive_fast.bench.batch import bench_plan, start_batch
from dive_fast.bench.config import BenchConfig
from dive_fast.bench.parity import Allowance, exact_images, parity, psnr, worst_rms
from dive_fast.bench.results import baseline_lines
from dive_fast.engines import load_engine
from dive_fast.models import has_lora, load_bundle
from dive_fast.sampling import Sampling
from dive_fast.types import DiveError
from tests.support.distilling import save_student
from tests.support.refusals import refused

pytestmark = pytest.mark.slow

SAMPLING = Sampling(steps=3, guidance=3.0)
CONFIG = BenchConfig(sampling=SAMPLING, baseline_rows=8, rounds=1)


@pytest.fixture(scope="module")
def setup(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    engine = load_engine(tiny_fused, "torch", "cpu")
    return Setup(engine, load_bundle(tiny_fused), tiny_fused, tmp_path_factory.mktemp("baselines"), CONFIG)


def measured(setup: Setup, *names: str, **changes: Any) -> BaselineResults:
    return measure_baselines(replace(setup, config=replace(setup.config, baselines=names, **changes)))


def test_all_peers_draw_the_same_images(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    # graphs are captured whole as ever, and then run as they are: inductor takes minutes
    monkeypatch.setattr(diffusers_baseline, "COMPILE", {"backend": "eager", "fullgraph": True, "dynamic": False})
    found = measured(setup, "reference", "tuned", "compiled", "tensorrt", rounds=2)
    assert [baseline.name for baseline in found.results] == ["ours", "reference", "tuned", "compiled"]
    assert found.images == 4
    for baseline in found.results:
        assert baseline.parity.passed, baseline
        assert 0.4 < baseline.parity.largest < 1.1  # of 255: rounding to whole levels
        assert baseline.parity.psnr > 58  # rms 0.29: rounding alone
        assert baseline.ms.n == 2
        rate = baseline.images_per_second
        assert 0.9 * rate.p5 <= 4e3 / baseline.ms.p50 <= rate.p95  # of two rounds, which may differ
    assert found.least_psnr == pytest.approx(psnr(2 * 0.29), abs=0.3)
    assert found.results[0].ours_faster is None
    assert all(baseline.ours_faster is not None and baseline.ours_faster.n == 2 for baseline in found.results[1:])
    assert "no TensorRT engine was given" in found.left_out["tensorrt"]
    text = "\n".join(baseline_lines(found))
    assert text.count("x as fast") == 3 and f"{'tensorrt':<13} left out: DiveError: no TensorRT" in text


def result_of(setup: Setup, monkeypatch: pytest.MonkeyPatch, bad: str, **changes: Any) -> BaselineResults:
    """A setup with the reference in which `bad` (ours or the reference) draws pictures that are brighter by 3 of 255."""
    plan = bench_plan(setup.engine, 4, SAMPLING, identities=1)
    made = diffusers_baseline.plain(setup.bundle, plan, setup.device, setup.precision)

    def brighter(start: Any) -> Any:
        return np.clip(made(start).astype(int) + 3, 0, 255).astype(np.uint8)

    run = {"good": made, "bad": brighter}
    monkeypatch.setattr(baselines, "_by", lambda engine, plan: run["bad" if bad == "ours" else "good"])
    monkeypatch.setitem(baselines.RUNNERS, "reference", lambda c, p: run["bad" if bad == "reference" else "good"])
    return measured(setup, "reference", **changes)


@pytest.mark.parametrize("bad", ["ours", "reference"])
def test_failed_parity_is_never_a_speed_up(setup: Setup, monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    found = result_of(setup, monkeypatch, bad)
    assert [(b.name, b.parity.passed) for b in found.results] == [(n, n != bad) for n in ("ours", "reference")]
    assert all(baseline.ours_faster is None for baseline in found.results)
    text = "\n".join(baseline_lines(found))
    assert "x as fast" not in text
    assert f"{bad:<12}" in text and text.count("parity failed") >= 1


def test_a_peer_that_cannot_run_says_why(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(diffusers_baseline, "COMPILE", {"backend": no_compiler, "fullgraph": True})
    found = measured(setup, "compiled")
    assert [baseline.name for baseline in found.results] == ["ours"]
    assert "no C++ compiler was found" in found.left_out["compiled"]
    # plain diffusers, which everything is measured by
    refused("0.5", measured, setup, sampling=replace(SAMPLING, guidance=0.5))


def test_presets_run_in_the_same_turns_as_other_images(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sampling] = []
    real = baselines.render

    def watched(engine: Any, plan: Any, start: Any, clock: Any) -> Any:
        seen.append(plan.sampling)
        return real(engine, plan, start, clock)

    monkeypatch.setattr(baselines, "render", watched)
    found = measured(setup, "reference", rounds=2, presets=("fast", "2"))
    assert [preset.name for preset in found.presets] == ["preset fast", "2 steps"]
    # of the last round, the reference apart
    assert seen[-3:] == [SAMPLING, Sampling(15, 3.0), Sampling(2, 3.0)]
    assert seen[0] == seen[-3]
    for preset in found.presets:
        assert list(preset.faster) == ["ours", "reference"] and preset.faster["ours"].n == preset.ms.n == 2
    text = "\n".join(baseline_lines(found))
    assert "15 steps, guidance 3, 4 images a call, fp32: " in text
    assert "2 steps, guidance 3, 4 images a call, fp32: " in text
    assert (found.sampling, found.teacher) == (SAMPLING, False)
    bad = result_of(setup, monkeypatch, "ours", presets=("2",))
    assert bad.presets[0].faster == {} and "no ratio, as ours failed parity" in baseline_lines(bad)[-2]


def test_a_student_runs_in_the_rounds_of_its_teacher_s_baselines(
    setup: Setup, tiny_fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are made up, 8 ms a batch: the student makes twice as many images a batch, as it needs a row for each."""
    engine = load_engine(save_student(tiny_fused, tmp_path / "student"), "torch", "cpu")
    student, ran = Other("student", engine, Sampling(2, 1.0), ", tiny decoder of width 8"), []

    def timed(calls: Any, rounds: int, device: str) -> dict[str, list[float]]:
        ran.extend((name, len(call())) for name, call in calls.items())
        return {name: [8.0] * rounds for name in calls}

    monkeypatch.setattr(baselines, "interleaved", timed)
    found = measured(replace(setup, student=student), "reference", rounds=2, presets=("2",))
    assert ran == [("ours", 4), ("reference", 4), ("2 steps", 4), ("student", 8)]
    assert all(one.parity.passed for one in found.results)
    assert (found.sampling, found.teacher, found.images) == (SAMPLING, True, 4)
    assert found.model_fingerprint == setup.engine.spec.model_fingerprint != engine.spec.model_fingerprint
    few, own = found.presets
    assert own.images_per_second.p50 == 1000.0 == 2 * few.images_per_second.p50
    assert {name: one.median for name, one in few.faster.items()} == {"ours": 1.0, "reference": 1.0}
    assert {name: one.median for name, one in own.faster.items()} == {"ours": 2.0, "reference": 2.0, "2 steps": 2.0}
    text = baseline_lines(found)
    assert "of the teacher, 3 steps, guidance 3" in text[0]
    (line,) = [line for line in text if line.startswith("  student")]
    assert "OTHER images, 2 steps, no guidance, 8 images a call, fp32, tiny decoder of width 8: 2.00x ours" in line


def test_a_contest_that_cannot_be_is_refused(setup: Setup, tiny_base: Path) -> None:
    eight = copy.copy(setup.engine)
    eight.spec = replace(eight.spec, precision="fp8")
    refused("guidance 3.0; .* fp8", measured, replace(setup, engine=eight), baseline_rows=1)
    refused("--presets", measured, setup, sampling=replace(SAMPLING, guidance_interval=(0.3, 5.0)))

    other = load_engine(tiny_base, "torch", "cpu")
    refused("model fingerprint", baselines._same, other, setup, error=DiveError)
    assert baselines._same(setup.engine, setup) is setup.engine


def test_unfused_lora_computes_the_same_with_more_work(setup: Setup) -> None:
    unet = copy.deepcopy(setup.bundle.unet)
    diffusers_baseline.unfuse(unet, rank=6)
    assert has_lora(unet)
    layer = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    (a, b) = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == b.shape[1] == 6
    assert (a != 0).all() and (b != 0).all()
    before = setup.bundle.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q").weight
    split = (before - layer.base_layer.weight).square().mean().sqrt() / before.square().mean().sqrt()
    assert 0.02 < float(split) < 0.1  # about LORA_SHARE
    x, t, hidden = torch.randn(2, 8, 8, 4), torch.tensor([500]), torch.randn(2, 32, 32)
    with torch.no_grad():
        expected, found = setup.bundle.unet(x, t, hidden).sample, unet(x, t, hidden).sample
    assert float((expected - found).abs().max()) < 1e-4 < float(expected.abs().max())


def test_exact_images_are_the_engines_before_rounding(setup: Setup) -> None:
    plan = bench_plan(setup.engine, 4, SAMPLING)
    start = start_batch(plan, setup.engine, 4)
    exact = exact_images(copy.deepcopy(setup.bundle), plan, start, "fp32", setup.device)
    found = baselines._by(setup.engine, plan)(start)
    assert exact.dtype == np.float64 and exact.shape == found.shape
    assert np.ptp(exact) > 10
    assert np.abs(exact - found).max() < 0.51
    single = exact_images(copy.deepcopy(setup.bundle), plan, start, "fp16", setup.device)  # by float32
    assert 0 < np.abs(exact - single).max() < 0.01


def test_parity_by_hand() -> None:
    exact = np.full((2, 2, 2, 3), 100.0)
    images = exact.copy().astype(np.uint8)
    images[1] += 4  # one bad image of two
    images[1, 0, 0, 0] = 110
    rms = float(np.sqrt((11 * 4**2 + 10**2) / 12))
    assert worst_rms(images, exact) == pytest.approx(rms)
    good, bad = (parity(images, exact, Allowance(plain)) for plain in (rms / 2 * 1.001, rms / 2 * 0.999))
    assert (good.passed, bad.passed, good.largest) == (True, False, 10.0)
    assert good.psnr == pytest.approx(20 * np.log10(255 / rms))
    assert psnr(255.0) == 0
    assert Allowance(1.0).psnr == pytest.approx(psnr(1.0) - 6.02, abs=0.01)
    assert not parity(np.full_like(exact, np.nan), exact, Allowance(100.0)).passed


@pytest.mark.gpu
def test_reference_and_tuned_on_a_gpu(tiny_fused: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA build of torch and a GPU")
    engine = load_engine(tiny_fused, "torch", "cuda")
    setup = Setup(engine, load_bundle(tiny_fused), tiny_fused, tmp_path, CONFIG)
    found = measured(setup, "reference", "tuned", "compiled", rounds=2)
    assert [baseline.name for baseline in found.results] == ["ours", "reference", "tuned", "compiled"], found.left_out
    assert all(baseline.parity.passed for baseline in found.results)


def test_the_onnxruntime_peer_looks_for_its_provider_before_it_exports(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exports(*_: Any, **__: Any) -> None:
        raise AssertionError("an export takes minutes")

    monkeypatch.setattr("dive_export.export_engine", exports)
    monkeypatch.setattr(setup.engine, "device", torch.device("cuda"))
    plan = bench_plan(setup.engine, 4, SAMPLING, identities=1)
    refused("CUDA", baselines.RUNNERS["onnxruntime"], setup, plan, error=DiveError)
