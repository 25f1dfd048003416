"""Purity, readings, splitting, absorption and predictions against brute force and closed forms."""

import itertools

import lm_fixtures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from sae_lib import SparseAutoencoder, interventions
from sae_lib.metrics import predictions, reading, splitting

seeds = st.integers(0, 10_000)


def f1_score(truth, said):
    return 2 * (truth & said).sum() / max(truth.sum() + said.sum(), 1)


def table(seed, n=40, m=6, share=0.3):
    dice = np.random.default_rng(seed)
    return csr_array(dice.random((n, m)) * (dice.random((n, m)) < share))


# ---------------------------------------------------------------- codes and rows


@pytest.mark.parametrize("negative", [False, True])
def test_code_table_holds_the_codes_in_units_of_the_contribution(negative):
    sae = SparseAutoencoder(8, 16, activation="relu", seed=1)
    with torch.no_grad():
        sae.scale.fill_(-2.0 if negative else 2.0)
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    expected = 2 * sae.encode(rows).detach().numpy()
    # twice a sum of 8 products, known to 8 · 2⁻²⁴ of the row's length (about 4) however near 0 it comes
    for batches in (rows, iter(rows.split(7))):
        np.testing.assert_allclose(reading.code_table(sae, batches).toarray(), expected, rtol=1e-6, atol=4e-6)
    with pytest.raises(ValueError, match="no rows"):
        reading.code_table(sae, [])


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_scattered_codes_keep_each_latents_codes_and_nothing_else(seed):
    codes = table(seed)
    null = reading.scattered(codes, seed=seed)
    assert null.shape == codes.shape
    np.testing.assert_array_equal(np.sort(null.toarray(), axis=0), np.sort(codes.toarray(), axis=0))


def test_scattered_latents_are_independent():
    """Two latents that always fire together on half of the rows: P(j | i) falls from 1 to about a half."""
    fires = np.repeat([[1.0, 1.0], [0.0, 0.0]], 2000, axis=0)
    null = reading.scattered(csr_array(fires)).toarray()
    assert abs((null[:, 0] * null[:, 1]).sum() / 2000 - 0.5) < 0.05


def test_strongest_rows_are_those_of_a_full_sort():
    codes = table(3, n=60)
    dense = codes.toarray()
    expected = np.argsort(-dense, axis=0, kind="stable")[:5].T
    np.testing.assert_array_equal(reading.strongest_rows(codes, range(6), top=5), expected)
    with pytest.raises(ValueError, match="latent 0 fires on"):
        reading.strongest_rows(codes, [0], top=60)


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=1, max_size=5))
def test_purity_counts_the_most_common_token(tokens):
    expected = [max(row.count(t) for t in row) / 7 for row in tokens]
    assert reading.purity(np.array(tokens)).tolist() == pytest.approx(expected)


def test_evenly_spaced_goes_from_the_largest_to_the_smallest():
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    assert reading.evenly_spaced(scores, 5).tolist() == [1, 3, 2, 4, 0]
    assert reading.evenly_spaced(scores, 3).tolist() == [1, 2, 0]
    assert reading.evenly_spaced(np.zeros(10), 2).tolist() == [0, 9]
    with pytest.raises(ValueError, match=r"expected 2\.\.5"):
        reading.evenly_spaced(scores, 6)


# ---------------------------------------------------------------- readings


@settings(max_examples=40, deadline=None)
@given(seed=seeds, share=st.sampled_from([0.05, 0.3, 0.7]))
def test_the_best_reading_beats_every_set_of_tokens(seed, share):
    codes = table(seed, n=30, m=2, share=share)
    tokens = np.random.default_rng(seed + 1).integers(0, 6, 30)
    token_table = reading.TokenTable(codes, tokens, 6)
    fires = codes.toarray()[:, 0] > 0
    best = token_table.best_reading(0)
    if not fires.any():
        assert len(best) == 0
        return
    every = itertools.chain.from_iterable(itertools.combinations(range(6), k) for k in range(7))
    highest = max(f1_score(fires, np.isin(tokens, said)) for said in every)
    assert token_table.score([0], [best]).f1[0] == pytest.approx(highest)


def test_scores_are_those_of_a_detector():
    codes, tokens = table(5), np.random.default_rng(0).integers(0, 8, 40)
    said = [np.array([1, 4]), np.array([], dtype=int), np.array([0, 2, 7])]
    scores = reading.TokenTable(codes, tokens, 8).score([2, 0, 5], said)
    for i, latent in enumerate([2, 0, 5]):
        fires, claim = codes.toarray()[:, latent] > 0, np.isin(tokens, said[i])
        assert scores.precision[i] == pytest.approx((fires & claim).sum() / max(claim.sum(), 1))
        assert scores.recall[i] == pytest.approx((fires & claim).sum() / fires.sum())
        assert scores.f1[i] == pytest.approx(f1_score(fires, claim))


def test_typical_tokens_have_the_largest_surplus():
    codes, tokens = table(5, n=200), np.random.default_rng(0).integers(0, 8, 200)
    fires = codes.toarray()[:, 3] > 0
    surplus = np.array([(fires & (tokens == t)).sum() - fires.sum() * (tokens == t).mean() for t in range(8)])
    expected = [t for t in np.argsort(-surplus) if surplus[t] > 0]
    token_table = reading.TokenTable(codes, tokens, 8)
    assert token_table.typical(3).tolist() == expected
    assert token_table.typical(3, n=2).tolist() == expected[:2]


def test_tokens_that_do_not_fit_the_codes_are_refused():
    with pytest.raises(ValueError, match="need equal"):
        reading.TokenTable(table(0), np.zeros(39, dtype=int), 3)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        reading.TokenTable(table(0), np.full(40, -1), 3)
    with pytest.raises(ValueError, match="2 latents and 1 readings"):
        reading.TokenTable(table(0), np.zeros(40, dtype=int), 3).score([0, 1], [np.array([0])])


# ---------------------------------------------------------------- splitting


def brute_splitting(narrow, wide, inside, part, most, min_firings):
    """The definition, pair by pair, on dense bools."""
    out = []
    for p in range(narrow.shape[1]):
        parent = narrow[:, p]
        if parent.sum() < min_firings:
            continue
        children = []
        for c in range(wide.shape[1]):
            both = (parent & wide[:, c]).sum()
            share = both / parent.sum()
            if wide[:, c].any() and both >= inside * wide[:, c].sum() and part <= share <= most:
                children.append(c)
        out.append((p, children, (parent & wide[:, children].any(axis=1)).sum() / parent.sum()))
    return out


@settings(max_examples=40, deadline=None)
@given(seed=seeds, inside=st.sampled_from([0.4, 0.6, 1.0]))
def test_splitting_is_its_definition(seed, inside):
    narrow, wide = table(seed, m=4, share=0.5), table(seed + 1, m=12, share=0.1)
    families = splitting.splitting(narrow, wide, inside=inside, part=0.02, most=0.7, min_firings=10)
    expected = brute_splitting(narrow.toarray() > 0, wide.toarray() > 0, inside, 0.02, 0.7, 10)
    assert families.parents.tolist() == [e[0] for e in expected]
    assert [sorted(young.tolist()) for young in families.members] == [e[1] for e in expected]
    assert families.children.tolist() == [len(e[1]) for e in expected]
    assert families.covered.tolist() == pytest.approx([e[2] for e in expected])


def test_a_latent_shared_out_among_three_is_split_and_a_copy_is_not():
    parent = np.zeros((300, 1))
    parent[:90] = 1
    parts = np.zeros((300, 4))
    for i in range(3):
        parts[30 * i : 30 * i + 30, i] = 1
    parts[100:200, 3] = 1
    families = splitting.splitting(csr_array(parent), csr_array(parts))
    assert (families.children[0], families.covered[0]) == (3, 1.0)
    assert families.split()[0]
    same = splitting.splitting(csr_array(parent), csr_array(parent))
    assert (same.children[0], same.covered[0]) == (0, 0.0)
    assert not same.split()[0]
    with pytest.raises(ValueError, match="no latent"):
        splitting.splitting(csr_array(parent), csr_array(parts), min_firings=91)
    with pytest.raises(ValueError, match="same rows"):
        splitting.splitting(csr_array(parent), csr_array(parts[:10]))


def test_near_latents_are_counted_by_cosine():
    narrow = torch.eye(3)[:2]
    wide = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1], [0.6, 0.6, 0]])
    assert splitting.near_latents(narrow, wide, 0.5).tolist() == [3, 1]
    assert splitting.near_latents(narrow, wide, 0.9).tolist() == [2, 0]
    with pytest.raises(ValueError, match="threshold is 1"):
        splitting.near_latents(narrow, wide, 1)


# ---------------------------------------------------------------- absorption


def absorbing(n=1000):
    """Latent 0 stands for a class but is silent on a fifth of it, where latent 1 fires; latent 2 is noise."""
    label = np.arange(n) % 2 == 0
    special = np.arange(n) % 10 == 0
    codes = np.zeros((n, 3))
    codes[label & ~special, 0] = 1.0
    codes[special, 1] = 1.5
    codes[:, 2] = 0.1
    sae = SparseAutoencoder(4, 3, seed=0)
    with torch.no_grad():
        sae.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0], [0.1, 0, 0.995, 0]]))
    return sae, csr_array(codes), label


def test_absorption_is_found_where_it_was_put():
    sae, codes, label = absorbing()
    all_rows, direction = np.ones(len(label), dtype=bool), torch.tensor([1.0, 0, 0, 0])
    counts = splitting.absorption(sae, (codes, label), codes, label, all_rows, direction)
    assert (counts.main, counts.found, counts.missed, counts.absorbed, counts.absorbers) == (
        0,
        500,
        100,
        100,
        1,
    )
    assert counts.rate == pytest.approx(0.2)
    assert counts.recall == pytest.approx(0.8)
    assert counts.f1 == pytest.approx(2 * 400 / (400 + 500))
    # only rows the probe recognises count
    half = np.arange(len(label)) < 500
    assert splitting.absorption(sae, (codes, label), codes, label, half, direction).found == 250
    # a direction that the specific latent does not write: latent 2 contributes most, and is not specific
    other = torch.tensor([0.0, 0, 1.0, 0])
    assert splitting.absorption(sae, (codes, label), codes, label, all_rows, other).absorbed == 0


def test_a_negative_scale_turns_the_absorber_round():
    sae, codes, label = absorbing()
    with torch.no_grad():
        sae.scale[1] = -1
    all_rows, direction = np.ones(len(label), dtype=bool), torch.tensor([1.0, 0, 0, 0])
    assert splitting.absorption(sae, (codes, label), codes, label, all_rows, direction).absorbed == 0


def test_scattering_the_other_latents_takes_absorption_to_chance():
    sae, codes, label = absorbing()
    null = reading.scattered(codes, seed=1)
    all_rows, direction = np.ones(len(label), dtype=bool), torch.tensor([1.0, 0, 0, 0])
    counts = splitting.absorption(sae, (codes, label), codes, label, all_rows, direction, others=null)
    # latent 1 fires on a tenth of all rows, so on about a tenth of the 100 missed ones
    assert counts.missed == 100
    assert 1 <= counts.absorbed <= 25


# ---------------------------------------------------------------- predictions


@settings(max_examples=40, deadline=None)
@given(seed=seeds, ties=st.booleans())
def test_rank_score_is_the_area_under_the_curve(seed, ties):
    dice = np.random.default_rng(seed)
    changes = dice.integers(0, 5, 30).astype(float) if ties else dice.normal(size=30)
    tokens = dice.choice(30, 4, replace=False)
    truth = np.isin(np.arange(30), tokens)
    score = predictions.rank_scores(torch.from_numpy(changes)[None], [tokens])[0, 0]
    assert score == pytest.approx(roc_auc_score(truth, changes))
    assert score == pytest.approx(mannwhitneyu(changes[truth], changes[~truth]).statistic / (4 * 26))


def test_rank_scores_at_the_ends_and_bad_predictions():
    changes = torch.arange(6.0)
    table = predictions.rank_scores(torch.stack([changes, -changes, torch.zeros(6)]), [[5, 4], [0]])
    assert table.tolist() == [[1, 0, 0.5], [0, 1, 0.5]]
    for bad in ([], [1, 1], list(range(6))):
        with pytest.raises(ValueError, match="predicted tokens"):
            predictions.rank_scores(changes[None], [bad])


def test_changes_with_one_clean_pass_are_those_of_one_intervention_at_a_time():
    model = lm_fixtures.language_model("llama")
    sae = SparseAutoencoder(lm_fixtures.D_MODEL, 8, activation="relu", seed=0)
    blocks = lm_fixtures.random_blocks(2, 12)
    where = torch.zeros(2, 12, dtype=torch.bool)
    where[:, 3:6] = True

    def both():
        return [
            interventions.steer(model, "resid_post.2", sae, 3, 2.0),
            interventions.ablate(model, "resid_post.2", sae, [1]),
        ]

    for positions in (None, where):
        one = [lm_fixtures.log_prob_changes(model, blocks, i, positions) for i in both()]
        got = predictions.next_token_changes(model, blocks, both(), positions)
        torch.testing.assert_close(got, torch.stack(one), rtol=1e-4, atol=1e-5)
        later = predictions.next_token_changes(model, blocks, both(), positions, layer=2)
        torch.testing.assert_close(later, got, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="True somewhere"):
        predictions.next_token_changes(model, blocks, both(), torch.zeros(2, 12, dtype=torch.bool))
