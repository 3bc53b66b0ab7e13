"""Settings: bounds, and a help text for every field."""

from dataclasses import fields, is_dataclass

import pytest

from dive_fast.options import field_docs
from dive_fast.train import config as train
from dive_fast.world import config as world
from dive_fast.world.base import config as base
from tests.support.refusals import refused


@pytest.mark.parametrize("room", [train, world, base], ids=lambda room: room.__name__)
def test_every_field_with_a_simple_value_has_a_help_text(room):
    for record in vars(room).values():
        if is_dataclass(record) and record.__module__ == room.__name__:
            simple = {field.name for field in fields(record) if not is_dataclass(field.default)}
            assert not simple - field_docs(record).keys(), record


@pytest.mark.parametrize(
    ("record", "settings", "named"),
    [
        (
            train.PersonalizeConfig,
            {"batch": 0, "noisy_fraction": 1.0},
            r"batch .*got 0; noisy_fraction .*0\.05\.\.0\.95",
        ),
        (train.PersonalizeConfig, {"lora_lr": float("nan")}, "lora_lr .*got nan"),
        (train.Compute, {"accumulate": 0}, "accumulate"),
        (train.Prior, {"prior_weight": -1.0}, "prior_weight .*-1"),
        (train.Samples, {"sheet_people": 0}, "sheet_people"),
        (train.Samples, {"sample_steps": 10_001}, "sample_steps"),
        (world.WorldSpec, {"paired_ids": 0, "test_ids": 999}, r"paired_ids .*1\.\.300, got 0; test_ids .*1\.\.200"),
        (base.UnetConfig, {"batch": 0}, "batch"),
        (base.TaggerConfig, {"images": 0}, "images"),
        (base.BaseTrainConfig, {"monochrome": 1.5}, r"monochrome .*1\.5"),
    ],
)
def test_values_out_of_bounds_are_named_together(record, settings, named):
    refused(named, record, **settings)
