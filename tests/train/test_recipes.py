"""Recipes of `personalize` against what is published of DiVE, and the learning rates that an adapter passes on."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from dive_fast.commands import model as commands
from dive_fast.sampling import Sampling
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.photos import BalancedSampler
from dive_fast.train.recipes import RECIPES, recipe, with_rates_of
from dive_fast.types import Sample
from tests.support.cli import parse
from tests.support.refusals import refused
from tests.support.tiny import tiny_adapter


def test_dive_as_its_public_code_runs_it():
    """arXiv 2503.12472 and its repository: the table of the method."""
    dive = recipe("dive")
    assert (dive.rank, dive.steps, dive.batch, dive.identity_steps) == (128, 400_000, 16, 0)
    assert (dive.lora_lr, dive.token_lr, dive.weight_decay) == (5e-5, 5e-5, 1e-2)
    assert (dive.lr_scheduler, dive.warmup) == ("constant", 0)
    assert dive.compute.mixed_precision == "fp16"
    assert (dive.bare_code, dive.empty_captions, dive.text_noise) == (0.5, 0, 0)  # half bare codes, no empty caption
    assert (dive.weighting, dive.noisy_fraction, dive.prior.prior_weight) == ("plain", 0.5, 0)  # plain MSE
    assert dive.identities_from_ir and dive.phrase == "{person}" and dive.average == 0
    assert (dive.samples.sample_steps, dive.samples.sample_guidance) == (50, 7.5)
    assert dive.batch * dive.steps == 6_400_000  # photos seen


def test_dive_draws_infrared_as_often_as_it_comes():
    """SYSU-MM01 and Market as DiVE trains on them: 11,909 of 53,722 photos are infrared, 3.5 of 16."""
    kinds = ["rgb"] * 41_813 + ["ir"] * 11_909
    photos = [Sample(Path("a"), str(number % 7), "cam1", modality=kind) for number, kind in enumerate(kinds)]
    dive = recipe("dive")
    assert BalancedSampler(photos, dive.batch, dive.ir_fraction, 0).counts == {"ir": 4, "rgb": 12}
    assert BalancedSampler(photos, 1000, None, 0).counts["ir"] == round(1000 * 11_909 / 53_722)
    assert BalancedSampler(photos[:9], 4, None, 0).counts == {"ir": 0, "rgb": 4}
    assert BalancedSampler(photos[-9:], 4, None, 0).counts == {"ir": 4, "rgb": 0}


def test_ours_differs_from_dive_in_what_helped_on_the_pocket_world():
    ours, dive, pocket = recipe("sd15"), recipe("dive"), recipe("pocket")
    same = ("rank", "batch", "lora_lr", "token_lr", "compute", "samples")
    assert [getattr(ours, name) for name in same] == [getattr(dive, name) for name in same]
    assert ours.identity_steps + ours.steps == dive.steps
    helped = (
        "ir_fraction",
        "noisy_fraction",
        "identities_from_ir",
        "bare_code",
        "empty_captions",
        "weighting",
        "average",
    )
    assert [getattr(ours, name) for name in helped] == [getattr(pocket, name) for name in helped]
    assert ours.text_noise > 0 and not ours.identities_from_ir
    assert pocket == PersonalizeConfig()


def test_unknown_recipes_are_named():
    refused("'deen'", recipe, "deen")
    refused("--recipe", parse, ["personalize", "--out", "a", "--recipe", "deen"])


def test_given_options_override_the_recipe():
    line = "personalize --out a --recipe dive --mixed-precision no --steps 3 --sheet-people 2"
    given = parse(shlex.split(line))
    settings = given["config"].apply_to(recipe(given["recipe"]))
    dive = recipe("dive")
    assert (settings.steps, settings.compute.mixed_precision, settings.samples.sheet_people) == (3, "no", 2)
    assert (settings.batch, settings.rank, settings.samples.sample_guidance) == (dive.batch, dive.rank, 7.5)


def test_an_adapter_passes_its_rates_on():
    pocket = recipe("pocket")
    rates = {"lora_lr": 1e-4, "token_lr": 5e-5, "mix_lr": 0.01}
    assert with_rates_of(pocket, {**rates, "steps": 9, "batch": 1}, "x") == replace(pocket, **rates)
    assert with_rates_of(pocket, {"imported": {}}, "x") == pocket
    for wrong in ("fast", -1.0, float("nan"), None):
        refused("adapter x: token_lr", with_rates_of, pocket, {"token_lr": wrong}, "adapter x")


@pytest.fixture
def learned(monkeypatch):
    """The settings that the command would learn with, in place of learning."""
    from dive_fast.train import personalize

    seen = []

    def learn(bundle, photos, out, config, init_from=None, **_):
        seen.append(config)
        return init_from or tiny_adapter(bundle)

    monkeypatch.setattr(personalize, "personalize", learn)
    monkeypatch.setattr(commands, "without", lambda photos, excluded: photos)
    return seen


def test_new_identities_learn_at_the_rates_of_their_adapter(tiny_base, folders, learned, run, tmp_path):
    from dive_fast.models import load_bundle, save_adapter

    adapter = replace(tiny_adapter(load_bundle(tiny_base)), metadata={"lora_lr": 1e-5, "token_lr": 5e-5})
    save_adapter(adapter, tmp_path / "a")
    line = f"personalize --model {tiny_base} --photos folder:{folders[0]} --init-from {tmp_path}/a --out {tmp_path}/b"
    for options in ("", "--recipe dive --mixed-precision no", "--token-lr 0.5"):
        assert run(f"{line} --device cpu {options}")[0] == 0
    assert [settings.token_lr for settings in learned] == [5e-5, 5e-5, 0.5]
    assert [settings.mix_lr for settings in learned] == [PersonalizeConfig.mix_lr] * 3
    assert [settings.steps for settings in learned] == [PersonalizeConfig.steps, 400_000, PersonalizeConfig.steps]


def test_the_pocket_recipe_on_another_model_is_warned_of(tiny_base, folders, learned, run, tmp_path):
    from dive_fast.models import load_bundle, save_bundle

    save_bundle(replace(load_bundle(tiny_base), sampling=Sampling()), tmp_path / "own")
    for model, options, warned in (
        (tiny_base, "", True),
        (tiny_base, "--recipe dive --mixed-precision no", False),
        (tmp_path / "own", "", False),
    ):
        line = f"personalize --model {model} --photos folder:{folders[0]} --out {tmp_path}/b --device cpu {options}"
        code, _, error = run(line)
        assert code == 0, error
        assert bool(re.search("recipe pocket.*--recipe dive", error)) == warned


def test_every_recipe_is_a_choice_of_the_command():
    for name in RECIPES:
        assert parse(["personalize", "--out", "a", "--recipe", name])["recipe"] == name
