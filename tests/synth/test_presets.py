"""Plans with guidance intervals and precisions: what the engine computes, what is refused, and the command's options."""

from __future__ import annotations

from pathlib import Path

from dive_fast.sampling import Sampling, Schedule
from dive_fast.synth import load_plan
from tests.support.cli import Run
from tests.support.fake_engine import SCHEDULER_CONFIG, FakeEngine, make, plan_of
from tests.support.refusals import refused


def test_the_engine_is_asked_for_fewer_rows_outside_the_interval(tmp_path: Path) -> None:
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 4)
    low, high = schedule.sigmas[2], schedule.sigmas[1]
    plan, engine = plan_of(pids=("0001",), pairs_per_identity=1, guidance_interval=(low, high)), FakeEngine()
    make(plan, tmp_path / "out", engine, rows=8)
    assert engine.eps_rows == [4, 8, 4, 4]  # four images; of the steps the second alone lies in low < sigma <= high
    assert engine.batches == [4]  # announced before


def test_options_override_a_preset(tmp_path: Path, tiny_engine: Path, run: Run) -> None:
    def planned(options: str) -> tuple[object, ...]:
        out = f"--out {tmp_path / 'p.json'} --overwrite"
        command = f"plan --model {tiny_engine} --mode synthetic --rgb cam1 {out} {options}"
        code, _, error = run(*command.split())
        assert code == 0, error
        plan = load_plan(tmp_path / "p.json")
        return plan.sampling, plan.precision

    assert planned("") == (Sampling(50, 7.5), None)  # as Stable Diffusion 1.5: this base records no sampling
    assert planned("--preset fast") == (Sampling(15, 7.5), None)
    assert planned("--preset turbo --guidance 3") == (Sampling(7, 3.0), "fp8")
    assert planned("--preset turbo --precision any") == (Sampling(7, 7.5), None)
    own = "--steps 9 --guidance-interval all --precision fp16"
    assert planned(f"--preset fast {own}") == (Sampling(9, 7.5), "fp16")
    assert planned("--guidance-interval 0.5,2") == (Sampling(50, 7.5, (0.5, 2.0)), None)


def test_an_engine_of_another_precision_than_the_plan_wants_is_refused(tmp_path: Path) -> None:
    engine = FakeEngine()  # fp32
    refused("fp8.* fp32.*--precision any", make, plan_of(precision="fp8"), tmp_path / "out", engine)
    assert not (tmp_path / "out").exists() and not engine.eps_rows
    assert make(plan_of(precision="fp32"), tmp_path / "out", engine).finished
