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


def test_perfect_dictionary_in_any_order_is_fully_recovered(dice):
    v = synthetic.gaussian_dictionary(30, 12)
    shuffled = 3 * v[torch.randperm(30, generator=dice)]
    assert metrics.feature_recovery_rate(shuffled, v, 0.99) == 1
    assert metrics.mean_correlation_coefficient(shuffled, v) == pytest.approx(1, abs=1e-5)


def test_a_latent_with_a_negative_scale_writes_the_opposite_direction():
    sae = SparseAutoencoder(4, 2)
    with torch.no_grad():
        sae.scale.copy_(torch.tensor([1.0, -1.0]))
    features = sae.weight.detach() * torch.tensor([[1.0], [-1.0]])
    assert metrics.feature_recovery_rate(sae, features, 0.99) == 1
    assert metrics.feature_recovery_rate(sae, -features, 0.99) == 0


def test_bad_input_to_recovery():
    with pytest.raises(ValueError, match="dimension 3, features 4"):
        metrics.feature_recovery_rate(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="threshold is 90"):
        metrics.feature_recovery_rate(torch.ones(2, 3), torch.ones(2, 3), 90)


def test_reconstruction_matches_float64_formulas(dice):
    data = synthetic.preset("uniform", n_features=20, d_in=10, n_rows=500)
    sae = GroupBiasAdaptation(groups=2).build(10, 16, normalisation=Normalisation(), seed=1)
    with torch.no_grad():
        sae.bias.uniform_(-0.8, 0.0, generator=dice)
        sae.bias[3] = -100.0
        sae.scale.uniform_(0.5, 1.5, generator=dice)
    measured = metrics.reconstruction(sae, data.rows, batch_size=64)
    x, w, a, b = (t.detach().double() for t in (data.rows, sae.weight, sae.scale, sae.bias))
    u = x @ w.T
    z = u * (u + b > 0)
    error = (z * a) @ w - x
    assert measured.nmse == pytest.approx((error.square().sum() / x.square().sum()).item(), rel=1e-5)
    centred = x - x.mean(dim=0)
    assert measured.explained_variance == pytest.approx(
        (1 - error.square().sum() / centred.square().sum()).item(), rel=1e-5
    )
    assert measured.l0 == pytest.approx((z != 0).double().sum(dim=1).mean().item())
    torch.testing.assert_close(measured.firing_rate, (z != 0).double().mean(dim=0))
    assert measured.firing_rate[3] == 0
    assert measured.dead_share == ((z != 0).sum(dim=0) == 0).double().mean().item()


def test_reconstruction_refuses_rows_of_another_dimension():
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        metrics.reconstruction(SparseAutoencoder(4, 8), torch.ones(3, 5))


def test_uniqueness_counts_features_claimed():
    dictionary = torch.eye(4)
    latents = torch.tensor([[1.0, 0.1, 0, 0], [2.0, 0.3, 0, 0], [0, 0, 1.0, 0.2], [0, -1.0, 0, 0.1]])
    assert metrics.best_features(latents, dictionary).tolist() == [0, 0, 2, 3]
    assert metrics.best_features(latents, dictionary, signed=False).tolist() == [0, 0, 2, 1]
    assert metrics.feature_uniqueness(latents, dictionary) == 0.75
    assert metrics.feature_uniqueness(latents[:2], dictionary) == 0.5


def toy_sae(d_in=10, width=16):
    """An autoencoder with biases of all kinds, one latent dead; its data."""
    data = synthetic.preset("uniform", n_features=20, d_in=d_in, n_rows=500)
    sae = GroupBiasAdaptation(groups=2).build(d_in, width, normalisation=Normalisation(), seed=1)
    with torch.no_grad():
        sae.bias.uniform_(-0.8, 0.0, generator=torch.Generator().manual_seed(0))
        sae.bias[3] = -100.0
    return sae, data


@pytest.mark.parametrize("signed", [True, False])
def test_classification_equals_scikit_learn(signed):
    scores = pytest.importorskip("sklearn.metrics")
    sae, data = toy_sae()
    measured = metrics.classification(
        sae, data.rows, data.coefficients, data.dictionary, signed=signed, batch_size=64
    )
    fires = (sae.encode(data.rows) != 0).numpy()
    for m in range(16):
        cosines = metrics.cosines(sae, data.dictionary)[:, m]
        best = int((cosines if signed else cosines.abs()).argmax())
        assert measured.feature[m] == best
        p, r, f1, _ = scores.precision_recall_fscore_support(
            (data.coefficients[:, best] > 0).numpy(), fires[:, m], average="binary", zero_division=0
        )
        assert (measured.precision[m], measured.recall[m], measured.f1[m]) == pytest.approx((p, r, f1))
    assert measured.f1[3] == measured.precision[3] == measured.recall[3] == 0
    assert measured.n_rows == 500


def test_an_autoencoder_of_the_features_classifies_perfectly():
    data = synthetic.compose(
        torch.eye(6), synthetic.uniform_support(300, 6, sparsity=2), coefficients="lognormal"
    )
    sae = SparseAutoencoder(6, 6)
    with torch.no_grad():
        sae.weight.copy_(torch.eye(6).flip(0))
    scores = metrics.classification(sae, data.rows, data.coefficients, data.dictionary)
    assert scores.feature.tolist() == [5, 4, 3, 2, 1, 0]
    assert scores.f1.tolist() == [1.0] * 6


@pytest.mark.parametrize(("n", "m"), [(20, 20), (30, 12), (12, 30)])
def test_scores_equal_those_of_saelens(n, m, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    theirs = pytest.importorskip("sae_lens.synthetic", reason="optional extra: pip install sae_lib[bench]")
    generator = torch.Generator().manual_seed(n)
    v, w = torch.randn(n, 5, generator=generator), torch.randn(m, 5, generator=generator)
    assert metrics.mean_correlation_coefficient(w, v, signed=False) == pytest.approx(
        theirs.mean_correlation_coefficient(w, v), abs=1e-6
    )
    assert metrics.feature_uniqueness(w, v, signed=False) == theirs.feature_uniqueness(w, v)


def test_classification_equals_that_of_saelens(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    evals = pytest.importorskip("sae_lens.synthetic.evals", reason="pip install sae_lib[bench]")
    sae, data = toy_sae()
    theirs = evals.compute_classification_metrics(
        sae.encode(data.rows).detach(), data.coefficients, sae.decoder_rows.detach(), data.dictionary
    )
    ours = metrics.classification(sae, data.rows, data.coefficients, data.dictionary, signed=False)
    assert ours.precision.mean().item() == pytest.approx(theirs.precision, abs=1e-6)
    assert ours.recall.mean().item() == pytest.approx(theirs.recall, abs=1e-6)
    assert ours.f1.mean().item() == pytest.approx(theirs.f1_score, abs=1e-6)


def test_bad_input_to_uniqueness_and_classification():
    sae, data = toy_sae()
    with pytest.raises(ValueError, match="0 latents; expected at least one"):
        metrics.feature_uniqueness(torch.ones(0, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"shape \(400, 20\); expected \(500, 20\)"):
        metrics.classification(sae, data.rows, data.coefficients[:400], data.dictionary)
