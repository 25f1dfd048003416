"""Consistency across seeds against exhaustive matching, closed forms and invariances."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib import SparseAutoencoder, metrics


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine_table(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def exhaustive_mcc(a, b):
    """The best mean cosine over all one-to-one matchings, tried one by one."""
    table = cosine_table(a, b)
    table = table if table.shape[0] <= table.shape[1] else table.T
    n, m = table.shape
    return max(np.mean([table[i, p[i]] for i in range(n)]) for p in itertools.permutations(range(m), n))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 5), m=st.integers(1, 5), d=st.integers(1, 4))
def test_pw_mcc_of_two_runs_equals_exhaustive_matching(seed, n, m, d):
    a, b = gaussian(n, d, seed=seed), gaussian(m, d, seed=seed + 1)
    assert metrics.pairwise_mcc([a, b]) == pytest.approx(exhaustive_mcc(a, b), abs=1e-9)


def test_pw_mcc_is_the_mean_over_all_pairs():
    runs = [gaussian(4, 3, seed=s) for s in range(4)]
    expected = [exhaustive_mcc(a, b) for a, b in itertools.combinations(runs, 2)]
    assert metrics.pair_correlations(runs).tolist() == pytest.approx(expected, abs=1e-9)
    assert metrics.pairwise_mcc(runs) == pytest.approx(np.mean(expected), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 12), d=st.integers(2, 8))
def test_order_size_and_coordinates_do_not_count(seed, m, d):
    a, b = gaussian(m, d, seed=seed), gaussian(m, d, seed=seed + 1)
    stream = torch.Generator().manual_seed(seed)
    order = torch.randperm(m, generator=stream)
    size = torch.rand(m, 1, generator=stream, dtype=torch.float64) + 0.1
    turn = torch.linalg.qr(gaussian(d, d, seed=seed + 2)).Q
    same = (a * size)[order] @ turn
    mcc = metrics.pairwise_mcc([a, b])
    assert metrics.pairwise_mcc([same, b @ turn]) == pytest.approx(mcc, abs=1e-9)
    assert metrics.pairwise_mcc([b, a]) == pytest.approx(mcc, abs=1e-9)
    assert metrics.pairwise_mcc([a, same @ turn.T]) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(
        metrics.max_cosine_similarity(same, b @ turn), metrics.max_cosine_similarity(a, b)[order]
    )
    # one-to-one matching can only lose against taking the best for each latent
    assert mcc <= metrics.max_cosine_similarity(a, b).mean() + 1e-9


@pytest.mark.parametrize("angle", [0.1, 0.7])
def test_orthogonal_latents_turned_by_an_angle(angle):
    """Each latent turned towards an axis of its own: every matched cosine is cos(angle)."""
    a = torch.eye(4, 8, dtype=torch.float64)
    b = math.cos(angle) * a + math.sin(angle) * torch.eye(8, dtype=torch.float64)[4:]
    assert metrics.pairwise_mcc([a, b.flip(0)]) == pytest.approx(math.cos(angle))


def test_signs_count():
    a = torch.eye(3)
    assert metrics.pairwise_mcc([a, -a]) == pytest.approx(0)
    assert metrics.mean_correlation_coefficient(a, -a, signed=False) == pytest.approx(1)


def test_mcs_looks_from_the_first_run_to_the_second():
    a = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    b = torch.tensor([[2.0, 0], [3, 0.0]])
    torch.testing.assert_close(metrics.max_cosine_similarity(a, b), torch.tensor([1.0, 0, -1]))
    torch.testing.assert_close(metrics.max_cosine_similarity(b, a), torch.tensor([1.0, 1]))


def statistics(values):
    values = torch.tensor(values, dtype=torch.float64)
    return metrics.LatentStatistics(firing_rate=values, peak=-values, z_score=values.abs())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), rule=st.sampled_from(sorted(metrics.RULES)))
def test_the_curve_counts_among_the_top_latents_one_by_one(seed, rule):
    a, b = gaussian(30, 3, seed=seed), gaussian(20, 3, seed=seed + 1)
    stats = statistics(gaussian(30, seed=seed + 2).round(decimals=1).tolist())  # with ties
    score = getattr(stats, metrics.RULES[rule])
    ranked = sorted(range(30), key=lambda m: (-score[m].item(), m))
    agreed = [cosine_table(a, b)[m].max() > 0.8 for m in ranked]
    expected = [np.mean(agreed[:k]) for k in range(1, 31)]
    curve = metrics.consistency_curve(metrics.max_cosine_similarity(a, b), stats, rule=rule, threshold=0.8)
    np.testing.assert_allclose(curve, expected)


def test_latent_statistics_match_numpy_in_float64(dice):
    sae = SparseAutoencoder(6, 9, seed=1).double()
    with torch.no_grad():
        sae.bias.uniform_(-0.6, 0.0, generator=dice)
        sae.bias[4] = -100.0
        sae.scale.uniform_(-2, 2, generator=dice)
    rows = gaussian(200, 6, seed=3)
    codes = (sae.encode(rows) * sae.scale.abs()).detach().numpy()
    statistics = metrics.latent_statistics(sae, rows, batch_size=64)
    np.testing.assert_allclose(statistics.firing_rate, (codes != 0).mean(axis=0))
    np.testing.assert_allclose(statistics.peak, codes.max(axis=0))
    spread = codes.std(axis=0)
    alive = spread > 0
    expected = ((codes.max(axis=0) - codes.mean(axis=0)) / np.where(alive, spread, 1)) * alive
    np.testing.assert_allclose(statistics.z_score, expected, rtol=1e-9)
    assert not alive[4]
    assert statistics.z_score[4] == 0


def test_z_score_of_a_latent_with_codes_of_one_size():
    """It fires on a share p of the rows, always with the same code: z = √((1 − p)/p)."""
    sae = SparseAutoencoder(2, 1).double()
    with torch.no_grad():
        sae.weight.copy_(torch.tensor([[1.0, 0]]))
    rows = torch.zeros(50, 2, dtype=torch.float64)
    rows[:2, 0] = 3.0
    statistics = metrics.latent_statistics(sae, rows)
    assert statistics.firing_rate.item() == pytest.approx(0.04)
    assert statistics.z_score.item() == pytest.approx(math.sqrt(0.96 / 0.04))


def test_autoencoders_and_their_decoder_rows_score_alike():
    saes = [SparseAutoencoder(8, 12, tied=tied, seed=s) for s, tied in enumerate((True, False, True))]
    rows = [sae.decoder_rows.detach() for sae in saes]
    assert metrics.pairwise_mcc(saes) == pytest.approx(metrics.pairwise_mcc(rows))


def test_random_dictionaries_are_uniform_and_differ():
    first, second = metrics.random_dictionaries(20_000, 5, 2, seed=3)
    assert first.shape == (20_000, 5)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(20_000))
    cosine = (first * second).sum(dim=1)
    # a random cosine in d dimensions has mean 0 and variance 1/d; ± 5 standard errors
    assert abs(cosine.mean()) < 5 / math.sqrt(5 * 20_000)
    assert abs(cosine.var() - 1 / 5) < 5 * math.sqrt(2) * 0.2 / math.sqrt(20_000)
    assert torch.equal(first, metrics.random_dictionaries(20_000, 5, 2, seed=3)[0])
    assert not torch.equal(first, metrics.random_dictionaries(20_000, 5, 2, seed=4)[0])


def test_row_dictionaries_are_centred_rows_each_used_once():
    rows = gaussian(50, 4, seed=1) + 3
    directions = torch.cat(metrics.row_dictionaries(rows, 8, 5, seed=2))
    centred = rows.numpy() - rows.numpy().mean(axis=0)
    table = cosine_table(directions, torch.from_numpy(centred))
    nearest = table.argmax(axis=1)
    np.testing.assert_allclose(table.max(axis=1), 1)
    np.testing.assert_allclose(directions.norm(dim=1), 1)
    assert len(set(nearest.tolist())) == 40
    again = metrics.row_dictionaries(rows, 8, 5, seed=2)
    assert torch.equal(torch.cat(again), directions)
    assert not torch.equal(torch.cat(metrics.row_dictionaries(rows, 8, 5, seed=3)), directions)


def test_where_the_data_lie_is_agreement_without_features():
    """Rows with nearly all variance in 2 of 40 dimensions: two sets of them agree, uniform sets do not."""
    spread = torch.full((40,), 0.05, dtype=torch.float64)
    spread[:2] = 1.0
    rows = gaussian(2_000, 40, seed=3) * spread
    near = metrics.pairwise_mcc(metrics.row_dictionaries(rows, 64, 3))
    far = metrics.pairwise_mcc(metrics.random_dictionaries(64, 40, 3))
    assert near > 0.8
    assert far < 0.4


def test_the_null_of_pw_mcc_is_far_from_zero():
    """Matching finds agreement in noise: for one latent the mean is 0, for many it is not."""
    one = [metrics.pairwise_mcc(metrics.random_dictionaries(1, 16, 2, seed=s)) for s in range(200)]
    assert abs(np.mean(one)) < 5 * 0.25 / math.sqrt(200)
    assert metrics.pairwise_mcc(metrics.random_dictionaries(32, 16, 5)) > 0.4


def test_bad_input_names_value_and_bound():
    a, stats = torch.eye(3), statistics([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="1 run; expected at least 2"):
        metrics.pairwise_mcc([a])
    with pytest.raises(ValueError, match="dimension 3, features 4"):
        metrics.pairwise_mcc([a, torch.eye(4)])
    mcs = metrics.max_cosine_similarity(a, a)
    with pytest.raises(ValueError, match="rule is 'loudness'; expected one of firing rate, peak, z-score"):
        metrics.consistency_curve(mcs, stats, rule="loudness")
    with pytest.raises(ValueError, match="threshold is 1"):
        metrics.consistency_curve(mcs, stats, threshold=1)
    with pytest.raises(ValueError, match="statistics of 3 latents for a run of 2"):
        metrics.consistency_curve(mcs[:2], stats)
    with pytest.raises(ValueError, match="0 latents"):
        metrics.max_cosine_similarity(a, a[:0])
    with pytest.raises(ValueError, match="3 features and 0 latents"):
        metrics.mean_correlation_coefficient(a[:0], a)
    with pytest.raises(ValueError, match="number is 0; expected at least 1"):
        metrics.random_dictionaries(4, 2, 0)
    with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
        metrics.latent_statistics(SparseAutoencoder(4, 8), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"rows have shape \(3, 3\); expected \(N, d\) with N ≥ 4"):
        metrics.row_dictionaries(a, 2, 2)
    with pytest.raises(ValueError, match="width is 0; expected at least 1"):
        metrics.row_dictionaries(a, 0, 2)
