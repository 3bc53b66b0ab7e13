"""Plans with guidance intervals and reuse: what the engine is asked, what is refused, and the command's options."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dive_fast.cli import app
from dive_fast.engines import load_engine
from dive_fast.io import sha256_file
from dive_fast.sampling import PRESETS, Schedule, initial_noise
from dive_fast.synth import load_plan, make_plan, synthesize
from dive_fast.synth.manifest import read_manifest
from dive_fast.synth.plan import save_plan
from dive_fast.types import InputError
from tests.support.fake_engine import SCHEDULER_CONFIG, FakeEngine, plan_of


def test_the_engine_is_asked_for_fewer_rows_outside_the_interval(tmp_path: Path) -> None:
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 4)
    low, high = schedule.sigmas[2], schedule.sigmas[1]
    plan, engine = plan_of(pids=("0001",), pairs_per_identity=1, guidance_interval=(low, high)), FakeEngine()
    synthesize(plan, engine, tmp_path / "out", rows=8, progress=False)
    assert engine.eps_rows == [4, 8, 4, 4]  # four images; of the steps the second alone lies in low < sigma <= high


def test_deep_features_are_made_at_whole_steps_and_used_at_the_others(tmp_path: Path) -> None:
    """Against the solver's recursion written out: DPM-Solver++ 2M with the bias of the last whole step."""
    plan = plan_of(pids=("0001",), pairs_per_identity=1, ir=["cam3"], guidance=1.0, reuse=2, reuse_depth=1, steps=3)
    engine = FakeEngine()
    latents: list[torch.Tensor] = []
    decode = engine.decode
    engine.decode = lambda x: (latents.append(x), decode(x))[1]  # type: ignore[method-assign]
    synthesize(plan, engine, tmp_path / "out", rows=1, progress=False)
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 3)
    assert engine.whole == [schedule.timesteps[0], schedule.timesteps[2]] * 2  # two images, one at a time
    pair = plan.pairs[0]
    prompt = engine.encode_text(engine.prompts.token_ids([(pair.pid, pair.rgb)])).flatten().double()
    x, previous, gap = initial_noise([pair.seed], engine.latent_shape).double(), None, 0.0
    for i, bias in enumerate((0, 0, 2)):
        t, sigma, after = schedule.timesteps[bias], schedule.sigmas[i], schedule.sigmas[i + 1]
        (alpha, noise), (alpha_after, noise_after) = schedule.signal(i), schedule.signal(i + 1)
        eps = 0.5 * x + prompt * (0.2 + t / 2000)
        clean = (x - noise * eps) / alpha
        guess = clean
        if after > 0:
            step = float(torch.log(torch.tensor(sigma / after, dtype=torch.float64)))
            if previous is not None:
                guess = clean + (clean - previous) * step / gap / 2
            gap = step
        x = noise_after / noise * x + alpha_after * (1 - after / sigma) * guess
        previous = clean
    torch.testing.assert_close(latents[0].double(), x, rtol=0, atol=1e-5)


def test_a_real_engine_makes_other_images_from_reused_features_and_the_same_ones_again(
    tmp_path: Path, tiny_fused: Path
) -> None:
    engine = load_engine(tiny_fused, "torch", device="cpu")
    height, width = engine.spec.profile.height, engine.spec.profile.width
    common = partial(
        make_plan, mode="synthetic", pids=["0001", "0002"], cameras=engine.prompts.table.cameras, ir=["cam3"],
        rgb=["cam1"], pairs_per_identity=1, seed=1, steps=6, guidance=3.0, height=height, width=width,
        model_fingerprint=engine.spec.model_fingerprint,
    )  # fmt: skip
    plans = {"whole": common(), "short": common(reuse=3, reuse_depth=1, guidance_interval=(0.5, 5.0))}
    images = {}
    for name, plan in plans.items():
        for rows in (4, 8):
            out = tmp_path / f"{name}{rows}"
            synthesize(plan, engine, out, rows=rows, progress=False)
            images[name, rows] = (
                [r.spec.pair_id for r in read_manifest(out)],
                sorted(sha256_file(p) for p in out.glob("cam*/*/*.png")),
            )
    assert images["whole", 8][0] == images["short", 8][0] and images["whole", 8][1] != images["short", 8][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_interval": (5.0, 0.5)}, "low < high"),
        ({"reuse": 0}, "reuse must be a whole number >= 1"),
        ({"reuse": 2, "reuse_depth": 0}, "reuse 2 does not go with reuse_depth 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(**change)


def test_an_engine_without_deep_features_says_how_to_get_them(tmp_path: Path, tiny_engine: Path) -> None:
    engine = load_engine(tiny_engine, device="cpu")
    table, profile = engine.prompts.table, engine.spec.profile
    plan = make_plan(
        mode="synthetic", pids=["0001"], cameras=table.cameras, ir=["cam3"], rgb=["cam1"], pairs_per_identity=1, seed=1,
        steps=2, guidance=1.0, height=profile.height, width=profile.width, reuse=2,
        model_fingerprint=engine.spec.model_fingerprint,
    )  # fmt: skip
    with pytest.raises(InputError, match="export it with --reuse-depth 1, or plan without reuse"):
        synthesize(plan, engine, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_plan_keeps_its_settings_on_disk(tmp_path: Path) -> None:
    plan = plan_of(guidance_interval=(0.25, 4), reuse=3, reuse_depth=2)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.plan_id != plan_of().plan_id and replace(plan, plan_id="").guidance_interval == (0.25, 4.0)


def test_options_go_before_a_preset(tmp_path: Path, tiny_engine: Path) -> None:
    def planned(*options: str) -> tuple[object, ...]:
        command = ["plan", "--model", str(tiny_engine), "--mode", "synthetic", "--rgb", "cam1", "--out"]
        done = CliRunner().invoke(app, [*command, str(tmp_path / "p.json"), *options])
        assert done.exit_code == 0, done.output
        plan = load_plan(tmp_path / "p.json")
        return plan.steps, plan.guidance_interval, plan.reuse, plan.reuse_depth

    fast, turbo = PRESETS["fast"], PRESETS["turbo"]
    assert planned() == (20, None, 1, 0)
    assert planned("--preset", "fast") == (fast.steps, fast.interval, 1, 0)
    assert planned("--preset", "turbo") == (turbo.steps, turbo.interval, turbo.reuse, turbo.reuse_depth)
    own = ("--steps", "7", "--guidance-interval", "all", "--reuse", "4", "--reuse-depth", "2")
    assert planned("--preset", "fast", *own) == (7, None, 4, 2)
    assert planned("--guidance-interval", "0.5,2", "--reuse", "2") == (20, (0.5, 2.0), 2, 1)
