"""Recovery and reconstruction metrics against brute force and plain formulas."""

import itertools

import pytest
import torch

from sae_lib import GroupBiasAdaptation, Normalisation, SparseAutoencoder, metrics, synthetic


def test_recovery_rate_counts_features_not_latents():
    dictionary = torch.eye(4)
    latents = torch.tensor([[1.0, 0, 0, 0], [0.95, 0.1, 0, 0], [0, 0.85, 0.527, 0], [0, 0, -1.0, 0]])
    # feature 0 found (twice), feature 1 at 0.85, feature 2 at 0.53, feature 3 not at all
    assert metrics.feature_recovery_rate(latents, dictionary, 0.9) == 0.25
    assert metrics.feature_recovery_rate(latents, dictionary, 0.8) == 0.5
    assert metrics.feature_recovery_rate(latents * 7, dictionary, 0.8) == 0.5


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 4)])
def test_mcc_equals_exhaustive_matching(n, m):
    generator = torch.Generator().manual_seed(n * 10 + m)
    v, w = torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator)
    c = torch.nn.functional.cosine_similarity(v[:, None].double(), w[None].double(), dim=-1)
    k = min(n, m)
    if n <= m:
        best = max(sum(c[i, p[i]] for i in range(k)) for p in itertools.permutations(range(m), k))
    else:
        best = max(sum(c[p[j], j] for j in range(k)) for p in itertools.permutations(range(n), k))
    assert metrics.mean_correlation_coefficient(w, v) == pytest.approx(float(best) / k, abs=1e-6)


def test_perfect_dictionary_in_any_order_is_fully_recovered():
    v = synthetic.gaussian_dictionary(30, 12)
    shuffled = 3 * v[torch.randperm(30)]
    assert metrics.feature_recovery_rate(shuffled, v, 0.99) == 1
    assert metrics.mean_correlation_coefficient(shuffled, v) == pytest.approx(1, abs=1e-5)


def test_bad_input_to_recovery():
    with pytest.raises(ValueError, match="dimension 3, features 4"):
        metrics.feature_recovery_rate(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="threshold is 90"):
        metrics.feature_recovery_rate(torch.ones(2, 3), torch.ones(2, 3), 90)


def test_reconstruction_matches_float64_formulas():
    data = synthetic.preset("uniform", n_features=20, d_in=10, n_rows=500)
    sae = GroupBiasAdaptation(groups=2).build(10, 16, normalisation=Normalisation(), seed=1)
    with torch.no_grad():
        sae.bias.uniform_(-0.8, 0.0)
        sae.bias[3] = -100.0
        sae.scale.uniform_(0.5, 1.5)
    found = metrics.reconstruction(sae, data.rows, batch_size=64)
    x, w, a, b = (t.detach().double() for t in (data.rows, sae.weight, sae.scale, sae.bias))
    u = x @ w.T
    z = u * (u + b > 0)
    error = (z * a) @ w - x
    assert found.nmse == pytest.approx((error.square().sum() / x.square().sum()).item(), rel=1e-5)
    centred = x - x.mean(dim=0)
    assert found.explained_variance == pytest.approx(
        (1 - error.square().sum() / centred.square().sum()).item(), rel=1e-5
    )
    assert found.l0 == pytest.approx((z != 0).double().sum(dim=1).mean().item())
    torch.testing.assert_close(found.firing_rate, (z != 0).double().mean(dim=0))
    assert found.firing_rate[3] == 0
    assert found.dead_share == ((z != 0).sum(dim=0) == 0).double().mean().item()


def test_reconstruction_refuses_rows_of_another_dimension():
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        metrics.reconstruction(SparseAutoencoder(4, 8), torch.ones(3, 5))
