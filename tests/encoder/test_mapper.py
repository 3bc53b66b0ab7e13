"""The mapper: where it starts, what it must not depend on, and its numbers against numpy."""

import numpy as np
import pytest
import torch

from dive_fast.encoder.mapper import Mapper
from dive_fast.train.embedding import PhraseRows

FEATURES, WIDTH = 7, 12


@pytest.fixture
def words() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 5, generator=generator) for count in (1, 3, 1, 2)]


@pytest.fixture
def mapper(words) -> Mapper:
    """One that is not at its start."""
    torch.manual_seed(1)
    mapper = Mapper(FEATURES, WIDTH, PhraseRows(words), torch.randn(50, 5))
    for parameter in mapper.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mapper


def seen(*photos: torch.Tensor, padded: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos of one person, and so many places that hold none."""
    features = torch.stack([*photos, *[torch.full((FEATURES,), 9.0)] * padded])
    return features[None], (torch.arange(len(features)) < len(photos))[None]


def test_everyone_starts_at_the_phrases_own_words(words):
    mapper = Mapper(FEATURES, WIDTH, PhraseRows(words))
    rows = mapper(*seen(torch.randn(FEATURES), torch.randn(FEATURES)))
    torch.testing.assert_close(rows[0], torch.stack([each.mean(dim=0) for each in words]))


def test_a_taggers_words_are_where_mixes_start(words):
    """Two photos, whose log probabilities of three and of two words are the first five features."""
    said = [torch.randn(3).log_softmax(0), torch.randn(2).log_softmax(0)], [torch.randn(3), torch.randn(2)]
    photos = [torch.cat([*each, torch.randn(FEATURES - 5)]) for each in said]
    mapper = Mapper(FEATURES, WIDTH, PhraseRows(words), said=True)
    rows = mapper(*seen(*photos, padded=1))[0]
    expected = [((a + b) / 2 * 3).softmax(0) for a, b in zip(*said, strict=True)]
    torch.testing.assert_close(rows[1], expected[0] @ words[1])
    torch.testing.assert_close(rows[3], expected[1] @ words[3])
    torch.testing.assert_close(rows[[0, 2]], torch.cat([words[0], words[2]]))


def test_neither_order_nor_number_of_places_nor_repeats_matter(mapper):
    one, two, three = torch.randn(3, FEATURES)
    rows = mapper(*seen(one, two, three))
    assert (rows - mapper(*seen(one, two))).abs().max() > 1e-3
    for same in (seen(three, one, two), seen(one, two, three, padded=4), seen(*[one, two, three] * 300)):
        torch.testing.assert_close(mapper(*same), rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mapper(*seen(one, one, one)), mapper(*seen(one)), rtol=1e-4, atol=1e-5)


def test_a_place_without_a_photo_has_no_gradient_and_no_nan(mapper):
    features, given = seen(torch.randn(FEATURES), padded=2)
    features[0, 1:] = torch.nan
    features.requires_grad_(True)
    mapper(features.nan_to_num(), given).sum().backward()
    assert features.grad.isfinite().all() and features.grad[0, 0].abs().max() > 0
    assert not features.grad[0, 1:].any()


def test_mixed_words_stay_mixes(mapper, words):
    mixed = mapper(*seen(torch.randn(FEATURES)))[0, 1].detach()
    weights = torch.linalg.lstsq(words[1].T, mixed[:, None]).solution
    torch.testing.assert_close(words[1].T @ weights, mixed[:, None], rtol=1e-4, atol=1e-5)
    assert weights.min() > 0 and abs(float(weights.sum()) - 1) < 1e-4


def test_features_are_normalised_and_one_that_never_changes_counts_nothing(mapper):
    values = torch.randn(40, FEATURES) * torch.arange(1, FEATURES + 1) + 3
    values[:, 4] = 2.5
    mapper.normalise_by(values)
    numbers = values.numpy().astype(np.float64)
    np.testing.assert_allclose(mapper.mean, numbers.mean(axis=0), rtol=1e-6)
    expected = np.where(np.arange(FEATURES) == 4, 0, 1 / np.maximum(numbers.std(axis=0), 1e-9))
    np.testing.assert_allclose(mapper.scale, expected, rtol=1e-6)
    moved = values[:1].clone()
    moved[0, 4] = 1e6
    assert torch.equal(mapper(*seen(values[0])), mapper(*seen(moved[0])))
    values[:, 5] = 300 + 0.01 * torch.randn(40)  # rounding of float16 alone: its steps are 0.25 there
    mapper.normalise_by(values)
    assert mapper.scale[5] == 0 and mapper.scale[6] > 0


def test_a_photo_of_another_kind_stays_near_the_others(mapper):
    far, farther = torch.full((FEATURES,), 1e3), torch.full((FEATURES,), 1e4)
    assert torch.equal(mapper(*seen(far)), mapper(*seen(farther)))


def test_the_penalty_by_hand():
    table = torch.tensor([[3.0, 4.0], [0.0, 1.0]])  # lengths 5 and 1, mean 3
    mapper = Mapper(2, 4, PhraseRows([table[:1]]), table)
    rows = torch.tensor([[0.0, 6.0], [3.0, 0.0]])  # ratios 2 and 1
    assert float(mapper.penalty(rows)) == pytest.approx(0.5)
    assert float(mapper.unit) == pytest.approx(np.std([3, 4, 0, 1], ddof=1))
