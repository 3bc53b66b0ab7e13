"""Config records: a bad value names its field, every field has a help text, and reading them loads nothing heavy."""

import ast
import inspect
import itertools
import subprocess
import sys
from dataclasses import fields

import pytest

from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.pictures.config import ShowConfig
from dive_fast.reid.training.config import ReidConfig, ValidationConfig
from dive_fast.types import InputError

RECORDS = (ReidConfig, ValidationConfig, AugmentConfig, ModelConfig, RerankConfig, Protocol, ShowConfig)
BACK = {"direction": "visible-to-ir"}
VIT = {"backbone": "vit-b16", "height": 256, "width": 128, "pooling": "avg"}


ALONE = {  # values that no other setting can make right
    ReidConfig: [
        *({"epochs": 3}, {"steps": None}, {"steps": 0}, {"optimizer": "lion"}, {"missing": "guess"}, {"identities": 1}),
        *({"identities": 4.5}, {"identities": True}, {"schedule": "flat"}, {"triplet": "soft"}, {"lr": 0.0}),
        *({"lr": float("nan")}, {"lr": "fast"}, {"warmup": 1}, {"precision": "fp8"}, {"clip": 0.0}),
        *({"warmup_epochs": -1}, {"drop_epochs": (3, "x")}, {"synthetic_schedule": ((0.5, 0.5), (0.2, 0.1))}),
        *({"synthetic_schedule": value} for value in (((0.0, 1.5),), ((0, 1, 2),), ())),
        {"synthetic_schedule": ((0.0, 0.5),), "synthetic_fraction": 0.5},
    ],
    ValidationConfig: [
        *(
            {"people": 1},
            {"people": -1},
            {"every_steps": 0},
            {"every_epochs": 0},
            {"every_steps": 2, "every_epochs": 3},
        ),
    ],
    AugmentConfig: [{"flip": 1.5}, {"erase": -0.1}, {"crop": -1}, {"fill": "white"}, {"erase_most": 0.0}],
    ModelConfig: [
        *({"backbone": "vit"}, {"pooling": "max"}, {"pooling": "cls"}, {"height": 16}, {"width": 2.5}, {"stripes": 0}),
    ],
    RerankConfig: [{"k1": 0}, {"k2": 0}, {"share": 1.5}],
    Protocol: [{"name": "market"}, {"search": "outdoor"}, {"shots": 0}],
    ShowConfig: [{"orders": ("wurst",)}, {"orders": ()}, {"top": 0}],
}
TOGETHER = [
    (ModelConfig, {"height": 64}, {"stripes": 5}),
    (ModelConfig, {"weights": "somewhere"}, {"backbone": "pocket"}),
    (ModelConfig, VIT, {"pooling": "gem"}),
    (ModelConfig, VIT, {"pooling": "cls", "stripes": 3}),
    (ModelConfig, VIT, {"height": 100}),
    (ModelConfig, {**VIT, "nonlocal_blocks": True}, {"backbone": "vit-b16"}),
    (ModelConfig, {"pooling": "avg", "weights": "somewhere"}, {"backbone": "pocket-vit"}),
    (Protocol, {"name": "sysu"}, BACK),
    (Protocol, {"name": "pocket"}, BACK),
    (Protocol, {"name": "regdb"}, {"shots": 10}),
    (Protocol, {"name": "llcm"}, {"search": "indoor"}),
    (Protocol, {"name": "llcm"}, {"draw": "official"}),
    (Protocol, {"name": "regdb"}, {"trials": 3}),
    (Protocol, {"name": "regdb"}, {"trial": 11}),
    (Protocol, {"name": "llcm"}, {"trial": 2}),
    (Protocol, {"name": "llcm"}, {"mode": "legacy"}),
    (Protocol, {"name": "regdb", **BACK}, {"mode": "legacy"}),
]


@pytest.mark.parametrize(
    ("record", "settings", "bad"), [*((record, {}, bad) for record in ALONE for bad in ALONE[record]), *TOGETHER]
)
def test_a_bad_value_names_its_field(record, settings, bad):
    with pytest.raises(InputError) as caught:
        record(**{**settings, **bad})
    message = str(caught.value)
    assert all(name in message and (str(value) in message or not value) for name, value in bad.items()), message


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_has_a_help_text(record):
    """A string literal under the field: command lines and documentation read it there."""
    body = ast.parse(inspect.getsource(record)).body[0].body
    documented = {
        field.target.id
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    assert documented == {field.name for field in fields(record)}


def test_reading_the_configs_loads_nothing_heavy():
    modules = ["training.config", "training.recipes", "models.config", "evaluation.protocols", "pictures.config"]
    code = f"import sys, {', '.join(f'dive_fast.reid.{name}' for name in modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "scipy", "typer"} & set(loaded)
