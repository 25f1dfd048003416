"""The statistical model: what is drawn has the structure that was asked for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib import BatchSource, synthetic


def test_imbalanced_preset_is_a_sparse_mixture_of_unit_features():
    data = synthetic.preset("imbalanced", n_rows=4000, seed=3)
    assert data.rows.shape == (4000, 42)
    assert data.coefficients.shape == (4000, 128)
    assert data.dictionary.shape == (128, 42)
    torch.testing.assert_close(data.rows, data.coefficients @ data.dictionary)
    torch.testing.assert_close(data.rows.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(data.dictionary.norm(dim=1), torch.ones(128))
    active = (data.coefficients > 0).sum(dim=1)
    assert (data.coefficients >= 0).all()
    assert torch.bincount(active).nonzero().flatten().tolist() == [3, 20]
    assert (active == 3).sum() == 2000
    # rows are in random order, so any stretch of them is mixed
    assert 0.3 < (active[:500] == 3).float().mean() < 0.7
    # (3 + 20) / 2 / 128, within four standard errors
    assert data.feature_frequency.mean().item() == pytest.approx(11.5 / 128)
    assert (data.feature_frequency - 11.5 / 128).abs().max() < 4.5 * math.sqrt(0.09 / 4000)
    assert isinstance(data, BatchSource)


def test_preset_takes_overrides_by_keyword():
    data = synthetic.preset("imbalanced", n_features=160, d_in=48, sparsities=(4, 24), n_rows=1000, seed=11)
    assert data.rows.shape == (1000, 48)
    assert set((data.coefficients > 0).sum(dim=1).tolist()) == {4, 24}


def test_seed_decides_everything_and_parts_are_independent():
    one, again, other = (synthetic.preset("uniform", n_rows=200, seed=s) for s in (5, 5, 6))
    assert torch.equal(one.rows, again.rows)
    assert not torch.equal(one.rows, other.rows)
    assert not torch.equal(one.dictionary, other.dictionary)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synthetic.preset("balanced"), "imbalanced, uniform, zipf"),
        (lambda: synthetic.preset("uniform", n_feature=3), "n_features"),
        (lambda: synthetic.uniform_support(5, 4, sparsity=6), "0 … 4"),
        (lambda: synthetic.orthogonal_dictionary(5, 4), "n_features ≤ 4"),
        (lambda: synthetic.coherent_dictionary(5, 4, coherence=1.0), "coherence is 1.0"),
        (lambda: synthetic.bernoulli_support(5, [0.5, 1.5]), "between 0 and 1"),
        (lambda: synthetic.gaussian_dictionary(0, 3), "n_features is 0"),
        (lambda: synthetic.preset("uniform", n_rows=10, coefficients="gamma"), "lognormal"),
        (lambda: synthetic.zipf_frequencies(4, mean_active=5), "mean_active is 5"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        call()


def test_orthogonal_dictionary_is_orthonormal():
    v = synthetic.orthogonal_dictionary(12, 20, seed=1).double()
    torch.testing.assert_close(v @ v.T, torch.eye(12).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("coherence", [0.0, 0.3, 0.8])
def test_coherent_dictionary_has_the_mean_cosine_it_promises(coherence):
    v = synthetic.coherent_dictionary(300, 400, coherence=coherence, seed=2)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(300))
    off_diagonal = (v @ v.T)[~torch.eye(300, dtype=torch.bool)]
    assert off_diagonal.mean().item() == pytest.approx(coherence, abs=0.005)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    share=st.floats(0.01, 1.0),
    exponent=st.floats(0.0, 2.0),
)
def test_zipf_frequencies_are_decreasing_probabilities_with_the_mean_asked_for(n, share, exponent):
    f = synthetic.zipf_frequencies(n, mean_active=share * n, exponent=exponent)
    assert ((f > 0) & (f <= 1 + 1e-6)).all()
    assert (f.diff() <= 1e-6).all()
    assert f.sum().item() == pytest.approx(share * n, rel=1e-4)


def test_bernoulli_support_has_the_frequencies_asked_for():
    f = torch.tensor([0.0, 0.02, 0.3, 1.0])
    measured = synthetic.bernoulli_support(50_000, f, seed=4).float().mean(dim=0)
    assert ((measured - f).abs() <= 4.5 * (f * (1 - f) / 50_000).sqrt()).all()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), rows=st.integers(1, 50), data=st.data())
def test_uniform_support_has_exactly_s_features_a_row(n, rows, data):
    s = data.draw(st.integers(0, n))
    support = synthetic.uniform_support(rows, n, sparsity=s, seed=data.draw(st.integers(0, 1000)))
    assert (support.sum(dim=1) == s).all()


def test_coefficient_laws():
    dictionary = synthetic.gaussian_dictionary(50, 20)
    support = synthetic.uniform_support(20_000, 50, sparsity=5)
    constant, log_normal, half_normal = (
        synthetic.compose(dictionary, support, coefficients=c, sigma=0.5).coefficients[support]
        for c in synthetic.COEFFICIENTS
    )
    assert (constant == 1).all()
    assert log_normal.log().mean().item() == pytest.approx(0, abs=0.01)
    assert log_normal.log().std().item() == pytest.approx(0.5, abs=0.01)
    assert half_normal.mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)


def test_empty_rows_stay_empty_under_unit_norm():
    data = synthetic.compose(
        synthetic.gaussian_dictionary(3, 4), torch.tensor([[False] * 3, [True] * 3]), unit_norm=True
    )
    assert data.rows[0].abs().sum() == 0
    assert data.rows[1].norm().item() == pytest.approx(1)
