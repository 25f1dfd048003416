"""The estimate of feature frequencies, on cases whose answer is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from sae_lib import synthetic
from sae_lib.metrics import spectrum
from sae_lib.metrics.spectrum import (
    agreed_directions,
    estimate_frequencies,
    gaussian_twin,
    half_level,
    lasso_codes,
    log_distance,
)
from sae_lib.sae import SparseAutoencoder


def toy(seed=0, n_rows=8000, **rows):
    f = synthetic.geometric_frequencies(48, mean_active=2.0, span=50.0)
    return synthetic.independent(f, d_in=24, n_rows=n_rows, seed=seed, **rows)


def noisy(dictionary, sigma, seed):
    noise = torch.randn(dictionary.shape, generator=torch.Generator().manual_seed(seed))
    return dictionary + sigma * noise / dictionary.shape[1] ** 0.5


def test_orthogonal_features_are_counted_exactly():
    support = synthetic.bernoulli_support(2000, [0.5, 0.1, 0.03, 0.004], seed=1)
    data = synthetic.compose(synthetic.orthogonal_dictionary(4, 6, seed=1), support)
    spectrum = estimate_frequencies([data.dictionary, data.dictionary.flip(0)], data.rows)
    assert torch.equal(spectrum.frequency, support.double().mean(dim=0))
    assert torch.allclose(spectrum.directions, data.dictionary)
    assert torch.allclose(spectrum.agreement, torch.ones(4))


@pytest.mark.parametrize("coefficients", ["constant", "lognormal"])
def test_frequencies_in_superposition(coefficients):
    data = toy(coefficients=coefficients)
    runs = [noisy(data.dictionary, 0.2, seed) for seed in (1, 2)]
    spectrum = estimate_frequencies(runs, data.rows)
    assert len(spectrum) == 48
    match = (spectrum.directions @ data.dictionary.T).argmax(dim=1)
    error = (spectrum.frequency.log10() - data.feature_frequency.double()[match].log10()).abs()
    assert error.median() < 0.03
    assert log_distance(spectrum.frequency, data.feature_frequency) < 0.06


def test_directions_of_one_run_alone_do_not_count():
    data = toy()
    stray = torch.nn.functional.normalize(torch.randn(100, 24, generator=torch.Generator().manual_seed(5)))
    first = torch.cat([data.dictionary[:30], stray[:50]])
    second = torch.cat([stray[50:], data.dictionary[20:]])
    directions, agreement = agreed_directions([first, second], threshold=0.95)
    assert len(directions) == 10
    assert torch.allclose((directions @ data.dictionary[20:30].T).amax(dim=0), torch.ones(10))
    assert torch.allclose(agreement, torch.ones(10))


def test_a_latent_that_writes_backwards_agrees_with_none():
    """Equal rows with scales of opposite sign write in opposite directions."""
    first, other = (SparseAutoencoder(4, 4) for _ in range(2))
    first.weight.data.copy_(torch.eye(4))
    other.weight.data.copy_(torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0])))
    other.scale.data.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    directions, _ = agreed_directions([first, other])
    assert torch.equal(directions.sum(dim=0), torch.tensor([1.0, 0.0, 1.0, 1.0]))


def test_a_feature_shared_by_several_latents_counts_once():
    data = toy()
    runs = [torch.cat([noisy(data.dictionary, 0.1, seed + i) for i in range(3)]) for seed in (1, 11)]
    directions, _ = agreed_directions(runs)
    assert len(directions) == 48
    # the mean of six noisy versions is closer than one of them
    single = (runs[0][:48] * data.dictionary).sum(dim=1) / runs[0][:48].norm(dim=1)
    assert (directions @ data.dictionary.T).amax(dim=0).mean() > single.mean()


def test_latents_of_a_third_run_are_found_by_any_second():
    eye = torch.eye(4)
    directions, _ = agreed_directions([eye[:2], eye[1:3], eye[2:]])
    assert sorted(directions.argmax(dim=1).tolist()) == [1, 2]


def test_autoencoders_are_read_by_their_decoder():
    runs = [SparseAutoencoder(6, 8, tied=False, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        runs[1].decoder[2] = runs[0].decoder[5]
    directions, _ = agreed_directions(runs, threshold=0.999)
    assert torch.allclose(directions, runs[0].decoder[5:6].detach(), atol=1e-6)


def test_without_agreement_the_spectrum_is_empty(dice):
    runs = [torch.eye(4)[:2], torch.eye(4)[2:]]
    spectrum = estimate_frequencies(runs, torch.randn(50, 4, generator=dice))
    assert len(spectrum) == 0
    assert math.isnan(log_distance(spectrum.frequency, torch.tensor([0.1])))


def test_codes_are_the_positive_lasso():
    data = toy(n_rows=40)
    penalty = 0.05
    codes = lasso_codes(data.rows, data.dictionary, penalty=penalty)
    size = penalty * data.rows.square().sum(dim=1).mean().sqrt().item()
    for x, z in zip(data.rows, codes, strict=True):
        # scikit-learn divides the square by the number of dimensions
        lasso = Lasso(alpha=size / 24, positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000)
        expected = torch.tensor(lasso.fit(data.dictionary.T.double().numpy(), x.double().numpy()).coef_)
        assert torch.allclose(z, expected.float(), atol=0.02)


def test_codes_do_not_depend_on_the_batch_or_the_scale():
    data = toy(n_rows=100)
    codes = lasso_codes(data.rows, data.dictionary)
    assert torch.allclose(codes, lasso_codes(data.rows, data.dictionary, batch_size=7), atol=1e-5)
    assert torch.allclose(8 * codes, lasso_codes(8 * data.rows, data.dictionary), atol=1e-4)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
@settings(deadline=None)
def test_half_level_is_the_highest_fixed_point(values):
    """Of whole numbers, whose sums are exact: a code equal to the level is never above it."""
    column = torch.tensor(values, dtype=torch.float64)

    def half_of_mean(level):
        above = column[column > level]
        return above.sum().item() / len(above) / 2 if len(above) else 0.0

    level = half_level(column[:, None]).item()
    assert level == pytest.approx(half_of_mean(level), abs=1e-9)
    # no fixed point above: the levels between two neighbouring values share one half-mean
    for candidate in column[column > 0].tolist():
        above = half_of_mean(candidate)
        if above > level + 1e-9:
            assert half_of_mean(above) < above - 1e-12


def test_half_level_ignores_many_small_codes():
    column = torch.cat([torch.full((990,), 0.2), torch.ones(10)])[:, None]
    assert half_level(column).item() == pytest.approx(0.5)


def test_weak_occurrences_are_missed():
    """A known limit: of the two voices of the imbalanced toy only the loud one is counted."""
    data = synthetic.preset("imbalanced", n_rows=5000)
    spectrum = estimate_frequencies([data.dictionary, data.dictionary], data.rows)
    assert spectrum.frequency.median() < 0.6 * data.feature_frequency.median()


def test_distance_in_decades():
    f = torch.tensor([0.5, 0.1, 0.01])
    assert log_distance(f, f.flip(0)) == 0
    assert log_distance(f, f / 10) == pytest.approx(1.0)
    assert log_distance(f, f.repeat(2)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        log_distance(f, torch.tensor([0.0]))


def test_gaussian_twin_has_the_same_moments_and_no_features():
    data = toy(n_rows=20_000)
    twin = gaussian_twin(data.rows, seed=3)
    assert twin.shape == data.rows.shape
    assert twin.dtype == data.rows.dtype
    spread = data.rows.std()
    assert torch.allclose(twin.mean(dim=0), data.rows.mean(dim=0), atol=0.04 * spread)
    assert torch.allclose(twin.T.cov(), data.rows.T.cov(), atol=0.06 * spread**2)
    # projections on a feature are skewed in the data, not in the twin
    skew = {}
    for name, rows in {"data": data.rows, "twin": twin}.items():
        u = rows @ data.dictionary[3]
        u = (u - u.mean()) / u.std()
        skew[name] = (u**3).mean().item()
    assert skew["data"] > 0.5
    assert abs(skew["twin"]) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agreed_directions([torch.eye(3)]), "1 run"),
        (lambda: agreed_directions([torch.eye(3), torch.eye(3)], threshold=1.0), "threshold is 1.0"),
        (lambda: agreed_directions([torch.eye(3), torch.eye(2)]), r"\[3, 2\]"),
        (lambda: estimate_frequencies([torch.eye(3)] * 2, torch.ones(5, 2)), r"\(5, 2\)"),
        (lambda: lasso_codes(torch.ones(5, 3), torch.eye(3), penalty=0), "penalty is 0"),
        (lambda: gaussian_twin(torch.ones(1, 3)), r"\(1, 3\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_module_says_what_it_cannot_see():
    assert "Not seen" in (spectrum.__doc__ or "")
