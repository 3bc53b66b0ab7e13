"""Recipes are what was published, single settings can be changed, and wrong ones are named."""

import pytest

from dive_fast.reid.training.config import learning_rate, scheduled_fraction
from dive_fast.reid.training.recipes import recipe
from tests.support.refusals import refused


def test_agw_as_published():
    agw = recipe("agw")
    assert (agw.model.backbone, agw.model.height, agw.model.width, agw.model.stripes) == ("resnet50", 288, 144, 1)
    assert agw.model.nonlocal_blocks and not agw.gem_learns and agw.model.pooling == "gem"
    assert (agw.identities, agw.per_modality, agw.epochs, agw.steps) == (8, 4, 60, None)
    assert (agw.optimizer, agw.lr, agw.backbone_lr, agw.weight_decay, agw.decay_all) == ("sgd", 0.1, 0.1, 5e-4, True)
    assert (agw.augment.crop, agw.augment.fill, agw.augment.flip) == (10, "black", 0.5)
    assert (agw.augment.erase, agw.augment.exchange, agw.augment.brightness, agw.exchange_view) == (0, 0, 0, False)
    assert (agw.triplet, agw.smoothing) == ("weighted", 0)


def test_agw_rates_by_epoch():
    """0.1 is reached in ten even steps, one an epoch, and falls tenfold after 20 and after 50 epochs."""
    per_epoch = 7
    rates = [0.1 * learning_rate(step, 60 * per_epoch, recipe("agw"), per_epoch) for step in range(60 * per_epoch)]
    expected = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1] + 10 * [0.1] + 30 * [0.01] + 10 * [0.001]
    assert rates == pytest.approx([rate for rate in expected for _ in range(per_epoch)])


def test_caj_is_agw_with_a_second_view():
    agw, caj = recipe("agw"), recipe("caj")
    assert (caj.exchange_view, caj.triplet, caj.epochs) == (True, "squared", 100)
    assert (caj.augment.erase, caj.augment.erase_most, caj.augment.erase_fill) == (0.5, 0.4, "channels")
    same = [(c.model, c.lr, c.identities, c.augment.crop) for c in (agw, caj)]
    assert same[0] == same[1]


def test_settings_are_replaced_by_their_own_names():
    config = recipe("agw", backbone="pocket", height=64, width=32, steps=3, erase=0.25, people=4, lr=1, clip=None)
    assert (config.model.backbone, config.model.height, config.steps, config.epochs) == ("pocket", 64, 3, None)
    assert (config.augment.erase, config.validation.people, config.lr) == (0.25, 4, 1)
    assert recipe("pocket", epochs=2).steps is None
    shares = ((0.0, 0.5), (1.0, 0.0))
    assert recipe("pocket", synthetic_schedule=shares).synthetic_schedule == shares


def test_unknown_recipes_and_settings_are_named():
    refused(r"heigth.*height", recipe, "agw", heigth=3)
    for call in (lambda: recipe("agw", model="x"), lambda: recipe("agw", fill="white"), lambda: recipe("deen")):
        refused("'(model|white|deen)'", call)


def test_shares_run_along_their_points():
    line = ((0.0, 0.5), (1.0, 0.0))
    assert [scheduled_fraction(step, 5, line) for step in range(5)] == pytest.approx([0.5, 0.375, 0.25, 0.125, 0])
    stairs = ((0.0, 0.5), (0.5, 0.5), (0.5, 0.1))
    assert [scheduled_fraction(step, 5, stairs) for step in range(5)] == pytest.approx([0.5, 0.5, 0.1, 0.1, 0.1])
    late = ((0.5, 0.2), (0.75, 0.6))
    assert [scheduled_fraction(step, 9, late) for step in (0, 4, 5, 6, 8)] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])
    assert scheduled_fraction(0, 1, line) == 0.5
