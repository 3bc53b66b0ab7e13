"""Plans with guidance intervals and precisions: what the engine computes, what is refused, and the command's options."""

from __future__ import annotations

from pathlib import Path

import pytest

from dive_fast.commands.common import preset_sampling
from dive_fast.io import write_json
from dive_fast.models.tiny_decoder import TinyDecoder
from dive_fast.sampling import SD15, Sampling, Schedule
from dive_fast.synth import load_plan
from dive_fast.types import to_dict
from tests.support.cli import Run
from tests.support.distilling import save_student
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
    assert planned("--preset exact --guidance 3 --precision any") == (Sampling(50, 3.0), None)
    own = "--steps 9 --guidance-interval all --precision fp16"
    assert planned(f"--preset fast {own}") == (Sampling(9, 7.5), "fp16")
    assert planned("--guidance-interval 0.5,2") == (Sampling(50, 7.5, (0.5, 2.0)), None)


@pytest.mark.slow
def test_turbo_is_a_student_and_no_other_preset_is(tmp_path: Path, tiny_fused: Path, run: Run) -> None:
    student = save_student(tiny_fused, tmp_path / "student")

    def planned(model: Path, options: str) -> tuple[int, str]:
        line = f"plan --model {model} --mode synthetic --rgb cam1 --out {tmp_path / 'p.json'} --overwrite {options}"
        code, _, error = run(line)
        return code, error

    code, error = planned(student, "--preset turbo")
    assert code == 0 and "dive-fast distil-decoder --model STUDENT" in error and "--decoder DECODER" in error
    assert load_plan(tmp_path / "p.json").sampling == Sampling(2, 1.0)
    for options in ("--preset exact", "--preset fast", "--preset turbo --steps 7", "--preset turbo --guidance 2"):
        code, error = planned(student, options)
        assert code == 2 and str(student) in error, options
    code, error = planned(tiny_fused, "--preset turbo")
    assert code == 2 and str(tiny_fused) in error
    for command in ("distil --model", "distil-decoder --model", "export --model STUDENT --decoder"):
        assert f"dive-fast {command}" in error


def test_a_student_with_a_tiny_decoder_has_nothing_left_to_make(
    tmp_path: Path, tiny_fused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, own = save_student(tiny_fused, tmp_path / "student"), Sampling(2, 1.0)
    (student / "vae_decoder").mkdir()
    for decoder, noted in ((None, True), (TinyDecoder("a" * 64, 8, 30.0), False)):
        if decoder is not None:
            write_json(student / "vae_decoder" / "decoder.json", to_dict(decoder))
        assert preset_sampling("turbo", student, own) == own
        assert ("distil-decoder" in capsys.readouterr().err) == noted
    assert preset_sampling(None, tiny_fused, SD15) == SD15


def test_an_engine_of_another_precision_than_the_plan_wants_is_refused(tmp_path: Path) -> None:
    engine = FakeEngine()  # fp32
    refused("fp8.* fp32.*--precision any", make, plan_of(precision="fp8"), tmp_path / "out", engine)
    assert not (tmp_path / "out").exists() and not engine.eps_rows
    assert make(plan_of(precision="fp32"), tmp_path / "out", engine).finished
