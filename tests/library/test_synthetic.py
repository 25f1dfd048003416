"""The statistical model: what is drawn has the structure that was asked for."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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
    first, again, other = (synthetic.preset("uniform", n_rows=200, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    assert not torch.equal(first.dictionary, other.dictionary)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: synthetic.preset("balanced"),
            "consistency, continuous, geometric, imbalanced, sanity_check, uniform, zipf",
        ),
        (lambda: synthetic.preset("uniform", n_feature=3), "n_features"),
        (lambda: synthetic.uniform_support(5, 4, sparsity=6), "0 … 4"),
        (lambda: synthetic.orthogonal_dictionary(5, 4), "n_features ≤ 4"),
        (lambda: synthetic.coherent_dictionary(5, 4, coherence=1.0), "coherence is 1.0"),
        (
            lambda: synthetic.bernoulli_support(5, [0.5, 1.5]),
            "frequency 1 is 1.5; expected above 0 and at most 1",
        ),
        (lambda: synthetic.bernoulli_support(5, [0.0]), "frequency 0 is 0; expected above 0"),
        (lambda: synthetic.bernoulli_support(5, [math.nan]), "frequency 0 is nan"),
        (lambda: synthetic.bernoulli_support(5, []), "shape (0,)"),
        (
            lambda: synthetic.block_support(5, [0.1] * 5, co_occurrence=0.5),
            "divisor of the number of features, 5",
        ),
        (
            lambda: synthetic.block_support(5, [0.1] * 4, co_occurrence=0.05),
            "co_occurrence is 0.05; expected from 0.1",
        ),
        (lambda: synthetic.block_support(5, [0.1] * 4, co_occurrence=1.5), "to 1"),
        (
            lambda: synthetic.geometric_frequencies(4, mean_active=0),
            "mean_active is 0; expected above 0 and at most 4",
        ),
        (lambda: synthetic.geometric_frequencies(4, mean_active=1, span=0.5), "span is 0.5"),
        (lambda: synthetic.power_law_frequencies(4, low=0.5, high=0.1), "low=0.5, high=0.1"),
        (lambda: synthetic.power_law_frequencies(4, low=0.1, high=2), "high ≤ 1"),
        (lambda: synthetic.clustered_dictionary(4, 3, clusters=0, coherence=0), "clusters is 0"),
        (lambda: synthetic.preset("sanity_check", spectrum="zipf"), "constant, log-uniform"),
        (lambda: synthetic.preset("continuous", span=0.5), "span is 0.5; expected at least 1"),
        (lambda: synthetic.compose(torch.ones(0, 3), torch.ones(2, 0) > 0), "dictionary has shape (0, 3)"),
        (
            lambda: synthetic.compose(torch.ones(3, 4), torch.ones(2, 5) > 0),
            "support (2, 5) and dictionary (3, 4)",
        ),
        (lambda: synthetic.compose(torch.ones(3, 4), torch.ones(0, 3) > 0), "N at least 1"),
        (lambda: synthetic.gaussian_dictionary(0, 3), "n_features is 0"),
        (lambda: synthetic.preset("uniform", n_rows=10, coefficients="gamma"), "lognormal"),
        (lambda: synthetic.zipf_frequencies(4, mean_active=5), "mean_active is 5"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
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
    f = torch.tensor([0.002, 0.02, 0.3, 1.0])
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


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), share=st.floats(0.01, 1.0), span=st.floats(1.0, 1e4))
def test_geometric_frequencies_fall_by_one_factor_to_the_mean_asked_for(n, share, span):
    f = synthetic.geometric_frequencies(n, mean_active=share * n, span=span)
    assert ((f > 0) & (f <= 1 + 1e-6)).all()
    assert f.sum().item() == pytest.approx(share * n, rel=1e-4)
    if n > 1 and f[0] < 1:
        ratio = f[1:] / f[:-1]
        torch.testing.assert_close(ratio, torch.full_like(ratio, span ** (-1 / (n - 1))), rtol=1e-4, atol=0)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_power_law_frequencies_have_the_density_asked_for(exponent):
    low, high = 0.001, 0.2
    f = synthetic.power_law_frequencies(4000, low=low, high=high, exponent=exponent, seed=1).double().numpy()
    if exponent == 1:
        law = stats.loguniform(low, high).cdf
    else:
        power = 1 - exponent
        law = lambda x: (x**power - low**power) / (high**power - low**power)  # noqa: E731
    assert stats.kstest(f, law).pvalue > 0.01
    assert (np.diff(f) <= 0).all()
    scaled = synthetic.power_law_frequencies(
        4000, low=low, high=high, exponent=exponent, mean_active=30.0, seed=1
    )
    assert scaled.sum().item() == pytest.approx(30, rel=1e-4)
    torch.testing.assert_close(scaled / scaled[0], torch.from_numpy(f / f[0]).float(), rtol=1e-4, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), block=st.integers(1, 4), blocks=st.integers(1, 4), seed=st.integers(0, 1000))
def test_block_support_keeps_frequencies_and_has_the_co_occurrence_asked_for(data, block, blocks, seed):
    n, rows = block * blocks, 20_000
    f = data.draw(st.floats(0.02, 0.3))
    rho = data.draw(st.floats(f, 1.0))
    support = synthetic.block_support(rows, [f] * n, co_occurrence=rho, block=block, seed=seed).double()
    together = support.T @ support / rows
    expected = torch.full((n, n), f * f, dtype=torch.float64)
    for i in range(0, n, block):
        expected[i : i + block, i : i + block] = f * rho
    expected.fill_diagonal_(f)
    deviation = (expected * (1 - expected) / rows).sqrt()
    assert ((together - expected).abs() < 6 * deviation).all()


def test_blocks_of_unequal_frequencies_keep_them():
    f = torch.tensor([0.2, 0.05, 0.1, 0.1])
    support = synthetic.block_support(40_000, f, co_occurrence=0.6, seed=3).double()
    measured = support.mean(dim=0)
    assert ((measured - f).abs() < 5 * (f * (1 - f) / 40_000).sqrt()).all()
    # P(first | second) = ρ, P(second | first) = ρ f_2 / f_1
    both = (support[:, 0] * support[:, 1]).mean()
    assert (both / measured[1]).item() == pytest.approx(0.6, abs=0.05)
    assert (both / measured[0]).item() == pytest.approx(0.15, abs=0.02)


def test_all_or_nothing_blocks_and_independent_blocks_are_the_two_ends():
    together = synthetic.block_support(5000, [0.2] * 6, co_occurrence=1.0, block=3)
    assert (together[:, :1] == together[:, :3]).all()
    assert (together[:, 3:4] == together[:, 3:]).all()
    apart = synthetic.block_support(50_000, [0.2] * 2, co_occurrence=0.2).double()
    assert torch.corrcoef(apart.T)[0, 1].abs() < 4.5 / math.sqrt(50_000)


def test_clustered_dictionary_has_unit_rows_and_depends_on_the_seed():
    v, again, other = (
        synthetic.clustered_dictionary(20, 9, clusters=4, coherence=0.5, seed=seed) for seed in (1, 1, 2)
    )
    torch.testing.assert_close(v.norm(dim=1), torch.ones(20))
    assert torch.equal(v, again)
    assert not torch.equal(v, other)


def test_clustered_dictionary_is_coherent_within_a_cluster_only():
    v = synthetic.clustered_dictionary(240, 400, clusters=6, coherence=0.4, seed=2)
    cluster = torch.arange(240) % 6
    same = (cluster[:, None] == cluster) & ~torch.eye(240, dtype=torch.bool)
    cosine = v @ v.T
    assert cosine[same].mean().item() == pytest.approx(0.4, abs=0.01)
    assert cosine[cluster[:, None] != cluster].mean().item() == pytest.approx(0, abs=0.02)
    single = synthetic.clustered_dictionary(30, 40, clusters=1, coherence=0.3, seed=2)
    assert torch.equal(single, synthetic.coherent_dictionary(30, 40, coherence=0.3, seed=2))


@pytest.mark.parametrize("name", sorted(synthetic.PRESETS))
def test_every_preset_is_what_it_says(name):
    sizes = {"n_features": 40, "d_in": 16, "n_rows": 400, "seed": 4}
    data, again = (synthetic.preset(name, **sizes) for _ in range(2))
    assert torch.equal(data.rows, again.rows)
    torch.testing.assert_close(data.rows, data.coefficients @ data.dictionary)
    torch.testing.assert_close(data.feature_frequency, (data.coefficients > 0).float().mean(dim=0))
    torch.testing.assert_close(data.dictionary.norm(dim=1), torch.ones(40))
    assert (data.coefficients >= 0).all()
    assert data.describe() == {"source": name, "n_rows": 400, "n_features": 40, "d_in": 16}
    assert synthetic.preset(name, **sizes, unit_norm=True).rows.norm(dim=1).max() < 1 + 1e-5


def test_sanity_check_preset_has_the_published_frequencies():
    constant = synthetic.preset("sanity_check", n_rows=300, seed=1)
    assert constant.rows.shape == (300, 100)
    assert constant.feature_frequency.mean().item() == pytest.approx(0.00625, abs=0.00025)
    log_sizes = constant.coefficients[constant.coefficients > 0].log()
    assert log_sizes.std().item() == pytest.approx(0.25, abs=0.02)
    active = (synthetic.preset("sanity_check", n_features=800, d_in=50, n_rows=300).coefficients > 0).sum(
        dim=1
    )
    assert active.float().mean().item() == pytest.approx(20, abs=1.5)
    # of LogUniform(10^-5.5, 10^-1.2) half lies below 10^-3.35
    f = synthetic.power_law_frequencies(3200, low=10**-5.5, high=10**-1.2, mean_active=20, seed=1)
    assert f.median().log10().item() == pytest.approx(-3.35, abs=0.15)


def test_consistency_preset_has_three_half_normal_atoms_a_row():
    data = synthetic.preset("consistency", n_rows=5000)
    assert data.dictionary.shape == (32, 16)
    assert ((data.coefficients > 0).sum(dim=1) == 3).all()
    nonzero = data.coefficients[data.coefficients > 0]
    assert nonzero.mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)
