"""Virtual people: Gaussian and parts, the distances against loops, and marks that stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dive_fast.encoder.config import VirtualConfig
from dive_fast.encoder.distribution import KEPT, Distribution, nearest
from dive_fast.encoder.virtual import add_virtual, own_sampler
from dive_fast.models import load_adapter, save_adapter
from dive_fast.types import DiveError
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused


def people(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, width)) * np.arange(1, width + 1) + 3).float()


def test_components_are_numpys():
    """Within half of float16's last place, which all entries of the components are rounded to."""
    tokens = people(40)
    fitted = Distribution.fit(tokens)
    variances, vectors = np.linalg.eigh(np.cov(tokens.double().numpy().T))
    np.testing.assert_allclose(fitted.deviations.square(), variances[::-1], rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(fitted.components.double().numpy() @ vectors[:, ::-1]), np.eye(6), atol=6 * 2**-12
    )
    np.testing.assert_allclose(fitted.mean, tokens.double().mean(0), rtol=1e-6)
    longest = tokens.norm(dim=1).max().item()
    np.testing.assert_allclose(fitted.tokens, tokens, atol=2**-10 * longest)
    assert len(Distribution.fit(people(3)).deviations) == 2  # three people span two directions


def test_draws_have_mean_and_covariance_of_the_people():
    tokens = people(40)
    drawn = Distribution.fit(tokens).draw(20_000, torch.Generator().manual_seed(0)).double().numpy()
    deviations = tokens.double().numpy().std(axis=0, ddof=1)
    expected = np.cov(tokens.double().numpy().T) / np.outer(deviations, deviations)
    # four standard errors of a mean and of a covariance of 20,000 draws
    np.testing.assert_allclose((drawn - tokens.double().numpy().mean(0)).mean(0) / deviations, 0, atol=4 / 20_000**0.5)
    np.testing.assert_allclose(
        np.cov(drawn.T) / np.outer(deviations, deviations), expected, atol=4 * (2 / 20_000) ** 0.5
    )


def test_recombined_parts_are_each_of_somebody_and_together_of_nobody():
    fitted = Distribution.fit(people(40))
    drawn = fitted.recombine([1, 3, 2], 500, torch.Generator().manual_seed(0))
    assert drawn.shape == (500, 6)
    firsts = (0, 1, 4)
    of = [
        [
            int((fitted.tokens[:, a:b] == row[a:b]).all(dim=1).nonzero()[0])
            for a, b in zip(firsts, (1, 4, 6), strict=True)
        ]
        for row in drawn
    ]
    assert {each[0] for each in of} == {each[1] for each in of} == {each[2] for each in of} == set(range(40))
    assert np.mean([len(set(each)) == 3 for each in of]) == pytest.approx(39 * 38 / 40**2, abs=4 * (0.08 / 500) ** 0.5)


def test_parts_are_recombined_where_a_phrase_has_some_and_one_word_is_drawn(encoder):
    tokens = encoder.distribution.tokens
    parts = replace(encoder, phrase="{a} person , {b} coat")
    drawn = own_sampler(parts)(20, torch.Generator().manual_seed(1)).split(encoder.row_width, dim=1)
    assert all(
        bool((part[:, None] == real[None]).all(dim=2).any(dim=1).all())
        for part, real in zip(drawn, tokens.split(encoder.row_width, dim=1), strict=True)
    )
    whole = own_sampler(replace(encoder, phrase="{a} {b} person"))(20, torch.Generator().manual_seed(1))
    assert torch.equal(whole, encoder.distribution.draw(20, torch.Generator().manual_seed(1)))


def test_components_of_next_to_no_variance_are_left_out():
    tokens = people(40)
    tokens[:, 2:] = 1e-3 * tokens[:, 2:]  # a millionth of the variance
    fitted = Distribution.fit(tokens)
    assert fitted.components.shape == (2, 6)
    lost = (fitted.tokens - tokens).square().sum() / (tokens - tokens.mean(0)).square().sum()
    assert lost < 1 - KEPT


def test_nearest_by_loops():
    rows, to = people(1100, 3), people(17, 3, seed=1)
    expected = [min(np.linalg.norm(a - b) for b in to.double().numpy()) for a in rows.double().numpy()]
    np.testing.assert_allclose(nearest(rows, to), expected, rtol=1e-6)
    some = rows[:50].double().numpy()
    others = [min(np.linalg.norm(a - b) for j, b in enumerate(some) if j != i) for i, a in enumerate(some)]
    np.testing.assert_allclose(nearest(rows[:50], rows[:50], others=True), others, rtol=1e-6)
    assert nearest(rows[:2], to[:0]).isinf().all()


@pytest.mark.slow
def test_virtual_people_are_marked_and_nothing_old_changes(encoder, adapter, tmp_path):
    config = VirtualConfig(people=20, seed=3, percentile=0.0)
    made, drawn = add_virtual(encoder, adapter, "A", config)
    known = len(adapter.identities)
    assert made.identities[:known] == adapter.identities and not any(i.virtual for i in adapter.identities)
    assert torch.equal(made.embeddings[: len(adapter.embeddings)], adapter.embeddings)
    assert_same_tensors(made.lora, adapter.lora)
    assert [i.pid for i in made.identities[known:]] == [f"9{n:06d}" for n in range(1, 21)]
    assert all(i.virtual for i in made.identities[known:])
    assert torch.equal(made.embeddings[len(adapter.embeddings) :].flatten(), drawn.rows.flatten())
    save_adapter(made, tmp_path / "out")
    assert load_adapter(tmp_path / "out").identities == made.identities
    noted = made.metadata["virtual"]
    assert noted["people"] == 20 and noted["encoder"] == encoder.fingerprint
    assert noted["nearest_real_person"][0] >= noted["least_distance"]
    again, _ = add_virtual(encoder, adapter, "A", config)
    assert again.fingerprint == made.fingerprint
    fewer, _ = add_virtual(encoder, adapter, "A", VirtualConfig(people=7, seed=3, percentile=0.0))
    assert torch.equal(fewer.embeddings, made.embeddings[: len(fewer.embeddings)])
    other, _ = add_virtual(encoder, adapter, "A", VirtualConfig(people=20, seed=4, percentile=0.0))
    assert not torch.equal(other.embeddings, made.embeddings)
    refused("'9000001'", add_virtual, encoder, made, "A", config)
    more, _ = add_virtual(encoder, made, "A", VirtualConfig(people=3, seed=3, percentile=0.0, prefix="8"))
    assert more.identities[-1].pid == "8000003"
    refused("--prefix", add_virtual, encoder, made, "A", VirtualConfig(people=3, prefix="a/b"))


@pytest.mark.slow
def test_draws_near_a_person_or_each_other_are_refused_and_a_sampler_may_be_another(encoder, adapter):
    """A sampler that copies people, then repeats one new person: only that person may come out, once."""
    tokens = encoder.distribution.tokens
    far = tokens.mean(0) + 100 * tokens.std()

    def sampler(count, generator):
        return torch.cat([tokens, tokens[:1] + 1e-7, far.expand(count - len(tokens) - 1, -1)])

    made, drawn = add_virtual(encoder, adapter, "A", VirtualConfig(people=1), sampler)
    assert torch.equal(made.embeddings[-encoder.words :].flatten(), far)
    assert drawn.refused == 255
    expected = np.quantile(nearest(tokens, tokens, others=True).double().numpy(), 0.05)
    assert drawn.limit == pytest.approx(expected, rel=1e-6)
    refused("1 of 2", add_virtual, encoder, adapter, "A", VirtualConfig(people=2), sampler, error=DiveError)


@pytest.mark.slow
def test_an_adapters_own_people_count_and_those_of_another_phrase_are_counted(encoder, adapter):
    from dive_fast.types import Identity

    single = replace(
        adapter,
        identities=(*adapter.identities, Identity("0099", "<one>")),
        embeddings=torch.cat([adapter.embeddings, torch.ones(1, encoder.row_width)]),
    )
    assert add_virtual(encoder, single, "A", VirtualConfig(people=1, percentile=0.0))[1].uncompared == 1
    target = encoder.distribution.tokens.mean(0) + 1.0
    near = replace(adapter, embeddings=torch.cat([target.view(2, -1), adapter.embeddings[2:]]))
    refused(
        "0 of 1",
        add_virtual,
        encoder,
        near,
        "A",
        VirtualConfig(people=1),
        lambda n, _: target.expand(n, -1),
        error=DiveError,
    )
