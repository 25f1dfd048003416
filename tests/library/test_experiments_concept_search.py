"""The search for latents against brute force; the probe against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_experiments.concept_search import permuted_scores, phi, search
from sae_lib.metrics import nulls


def coins(n, f, seed, p=0.4):
    return torch.rand(n, f, generator=torch.Generator().manual_seed(seed)) < p


def correlation(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.corrcoef(a, b)[0, 1] if a.std() and b.std() else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
def test_phi_is_the_correlation(n, f, m, seed):
    labels, fired = coins(n, f, seed), coins(n, m, seed + 1)
    expected = [[correlation(labels[:, i], fired[:, j]) for j in range(m)] for i in range(f)]
    np.testing.assert_allclose(phi(labels, fired), expected, atol=1e-12)


def test_search_is_brute_force():
    labels, fired, other_labels, other_fired = (coins(60, k, seed) for seed, k in enumerate((3, 9, 3, 9)))
    found = search(labels, fired, other_labels, other_fired)
    for i in range(3):
        scores = [correlation(labels[:, i], fired[:, j]) for j in range(9)]
        best = int(np.argmax(scores))
        assert found.latent[i] == best
        assert found.chosen[i].item() == pytest.approx(scores[best])
        assert found.score[i].item() == pytest.approx(correlation(other_labels[:, i], other_fired[:, best]))


def test_search_finds_the_latent_that_is_the_concept_and_nothing_elsewhere():
    labels, other = coins(2000, 2, 0), coins(2000, 2, 1)
    noise, other_noise = coins(2000, 50, 2), coins(2000, 50, 3)
    noise[:, 7], other_noise[:, 7] = labels[:, 1], other[:, 1]
    found = search(labels, noise, other, other_noise)
    assert found.latent[1] == 7
    assert found.score[1] == 1
    # chosen for its score on one half, worth nothing on the other
    assert found.chosen[0] > 0.04
    assert abs(found.score[0].item()) < 4 / 2000**0.5


def test_permuted_scores_are_the_search_on_permuted_labels():
    args = [coins(40, k, seed) for seed, k in enumerate((2, 6, 2, 6))]
    null = permuted_scores(*args, 300, seed=3)
    assert null.shape == (300, 2)
    # where labels say nothing the observed score is one of them
    p = nulls.empirical_p_values(search(*args).score, null)
    assert ((p > 0.01) & (p <= 1)).all()
    constant = [torch.ones_like(args[0]), args[1], torch.ones_like(args[2]), args[3]]
    assert permuted_scores(*constant, 5).abs().max() == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"labels have shape \(3, 1\), firings \(4, 1\)"):
        phi(coins(3, 1, 0), coins(4, 1, 0))
