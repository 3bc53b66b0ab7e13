"""Plans with guidance intervals: what the engine is asked, what is refused, and the command's options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dive_fast.cli import app
from dive_fast.sampling import PRESETS, Schedule
from dive_fast.synth import load_plan, synthesize
from dive_fast.synth.plan import save_plan
from dive_fast.types import InputError
from tests.support.fake_engine import SCHEDULER_CONFIG, FakeEngine, plan_of


def test_the_engine_is_asked_for_fewer_rows_outside_the_interval(tmp_path: Path) -> None:
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 4)
    low, high = schedule.sigmas[2], schedule.sigmas[1]
    plan, engine = plan_of(pids=("0001",), pairs_per_identity=1, guidance_interval=(low, high)), FakeEngine()
    synthesize(plan, engine, tmp_path / "out", rows=8, progress=False)
    assert engine.eps_rows == [4, 8, 4, 4]  # four images; of the steps the second alone lies in low < sigma <= high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_interval": (5.0, 0.5)}, "low < high"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(**change)


def test_a_plan_keeps_its_settings_on_disk(tmp_path: Path) -> None:
    plan = plan_of(guidance_interval=(0.25, 4))
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.plan_id != plan_of().plan_id and replace(plan, plan_id="").guidance_interval == (0.25, 4.0)


def test_options_go_before_a_preset(tmp_path: Path, tiny_engine: Path) -> None:
    def planned(*options: str) -> tuple[object, ...]:
        command = ["plan", "--model", str(tiny_engine), "--mode", "synthetic", "--rgb", "cam1", "--out"]
        done = CliRunner().invoke(app, [*command, str(tmp_path / "p.json"), *options])
        assert done.exit_code == 0, done.output
        plan = load_plan(tmp_path / "p.json")
        return plan.steps, plan.guidance_interval

    fast, turbo = PRESETS["fast"], PRESETS["turbo"]
    assert planned() == (20, None)
    assert planned("--preset", "fast") == (fast.steps, fast.interval)
    assert planned("--preset", "turbo") == (turbo.steps, turbo.interval)
    own = ("--steps", "7", "--guidance-interval", "all")
    assert planned("--preset", "fast", *own) == (7, None)
    assert planned("--guidance-interval", "0.5,2") == (20, (0.5, 2.0))
