"""The ambiguities, the certificate and the conditions, against brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sae_lib import SparseAutoencoder, synthetic
from sae_lib.identifiability import certify, conditions, from_autoencoder, permute, rescale, split


def small(n_features=6, d_in=4, n_rows=60, sparsity=2, seed=0):
    return synthetic.preset(
        "uniform", n_features=n_features, d_in=d_in, sparsity=sparsity, n_rows=n_rows,
        coefficients="lognormal", seed=seed,
    )  # fmt: skip


def random_pair(n, m, d=3, seed=0):
    """Two unrelated decompositions; the rows differ, the matching does not depend on them."""
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randn(n, d, generator=g), torch.randn(m, d, generator=g)
    return (torch.rand(9, n, generator=g) + 0.1, first), (torch.rand(9, m, generator=g) + 0.1, second)


def cosine_table(first, second):
    a, b = first[1].double(), second[1].double()
    return ((a @ b.T) / a.norm(dim=1)[:, None] / b.norm(dim=1)).numpy()


# --- the ambiguities ----------------------------------------------------------------------------------


def test_ambiguities_keep_every_row_and_do_what_they_say():
    data = small()
    order = [3, 0, 1, 5, 4, 2]
    moved = permute(data, order)
    assert torch.equal(moved.dictionary[0], data.dictionary[3])
    longer = rescale(data, [1.0, 2.0, 3.0, 0.5, 1.0, 1.0])
    torch.testing.assert_close(longer.dictionary.norm(dim=1), torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 1.0]))
    pieces = split(data, [1, 2, 3, 1, 1, 4], seed=1)
    assert pieces.dictionary.shape == (12, 4)
    # each occurrence is told by one piece
    assert torch.equal((pieces.coefficients > 0).sum(dim=1), (data.coefficients > 0).sum(dim=1))
    spread = split(data, 3, spread=0.2)
    assert (spread.dictionary[0] - spread.dictionary[1]).norm() > 0.05
    assert torch.equal((spread.coefficients > 0).sum(dim=1), 3 * (data.coefficients > 0).sum(dim=1))
    for changed in (moved, longer, pieces, spread):
        torch.testing.assert_close(changed.rows, data.rows, atol=1e-5, rtol=0)
        assert (changed.coefficients >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    d=st.integers(2, 8),
    seed=st.integers(0, 1000),
    most=st.integers(1, 4),
    share=st.floats(0.1, 1.0),
)
@example(n=9, d=2, seed=25, most=1, share=0.125)  # a feature that no row holds
def test_permutation_scaling_and_splitting_are_always_undone(n, d, seed, most, share):
    data = small(n, d, n_rows=40, sparsity=max(1, round(share * n)), seed=seed)
    counts = torch.randint(1, most + 1, (n,), generator=torch.Generator().manual_seed(seed))
    other = permute(rescale(split(data, counts, seed=seed), seed=seed), seed=seed)
    for pair in ((data, other), (other, data), (split(data, 2, seed=seed + 1), other)):
        certificate = certify(*pair, epsilon=1e-6)
        assert certificate.holds
        assert certificate.epsilon < 1e-9
        assert certificate.row_error < 1e-6
        assert certificate.code_error < 1e-5
    certificate = certify(data, other, epsilon=1e-6)
    # Ω carries one into the other, both ways; features and pieces that no row drew stay out of it
    back = certify(other, data, epsilon=1e-6)
    merged, seen = back.omega, (data.coefficients > 0).any(dim=0)
    assert back.unused_second == tuple((~seen).nonzero().flatten().tolist())
    torch.testing.assert_close((merged @ other.dictionary)[seen], data.dictionary[seen], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(data.coefficients @ merged @ other.dictionary, data.rows, atol=1e-4, rtol=1e-4)
    drawn = [m for block in certificate.blocks for m in block.second]
    torch.testing.assert_close((certificate.omega @ data.dictionary)[drawn], other.dictionary[drawn])
    torch.testing.assert_close(
        other.coefficients @ certificate.omega, data.coefficients, atol=1e-5, rtol=1e-4
    )
    assert set(drawn) | set(certificate.unused_second) == set(range(len(other.dictionary)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 8))
def test_another_random_dictionary_is_not_certified(seed, n):
    data, other = small(n, 20, seed=seed), synthetic.gaussian_dictionary(n, 20, seed=seed + 1)
    certificate = certify(data, (data.coefficients, other), epsilon=0.05)
    assert not certificate.holds
    assert not certificate.blocks
    assert certificate.row_error > 0.1


def test_spread_pieces_match_at_the_epsilon_of_their_angle():
    data = small(5, 30, sparsity=2)
    other = split(data, 2, spread=math.tan(0.3))
    certificate = certify(data, other)
    assert certificate.holds
    # the tilt is not orthogonal to v_i, so the angle is near 0.3 only
    assert certificate.epsilon == pytest.approx(
        1 - cosine_table((0, data.dictionary), other).max(axis=0).min()
    )
    assert 1 - math.cos(0.1) < certificate.epsilon < 1 - math.cos(0.5)
    assert not certify(data, other, epsilon=0.9 * certificate.epsilon).holds
    assert certify(data, other, epsilon=1.01 * certificate.epsilon).holds


def test_an_autoencoder_as_a_decomposition(dice):
    data = small(5, 8, n_rows=30)
    sae = SparseAutoencoder(8, 12, seed=1)
    with torch.no_grad():
        sae.scale.uniform_(-1.5, 1.5, generator=dice)
        sae.pre_bias.fill_(0.1)
        sae.bias.fill_(-0.05)
        expected = sae(data.rows) - sae.pre_bias
    decomposed = from_autoencoder(sae, data.rows)
    assert (decomposed.coefficients >= 0).all()
    torch.testing.assert_close(decomposed.rows, expected)
    flipped = SparseAutoencoder(8, 12, seed=1)
    with torch.no_grad():
        flipped.scale.fill_(-1.0)
    same = from_autoencoder(SparseAutoencoder(8, 12, seed=1), data.rows)
    assert torch.equal(from_autoencoder(flipped, data.rows).dictionary, -same.dictionary)


# --- the matching against exhaustive search -----------------------------------------------------------


def smallest_by_covers(cosine):
    """Smallest ε over all sets of pairs in which every feature of both sides takes part."""
    n, m = cosine.shape
    best = math.inf
    pairs = list(itertools.product(range(n), range(m)))
    for size in range(1, len(pairs) + 1):
        for chosen in itertools.combinations(pairs, size):
            if {i for i, _ in chosen} == set(range(n)) and {j for _, j in chosen} == set(range(m)):
                best = min(best, max(1 - cosine[p] for p in chosen))
    return best


@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 5), (4, 2), (1, 3), (3, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_epsilon_with_splitting_is_that_of_the_best_cover(n, m, seed):
    first, second = random_pair(n, m, seed=seed)
    cosine = cosine_table(first, second)
    assert certify(first, second).epsilon == pytest.approx(smallest_by_covers(cosine), abs=1e-12)
    # a set of pairs is a cover exactly if no feature is unmatched
    for epsilon in (0.2, 0.5, 0.8):
        certificate = certify(first, second, epsilon=epsilon)
        near = cosine >= 1 - epsilon
        assert certificate.unmatched_first == tuple(np.flatnonzero(~near.any(axis=1)))
        assert certificate.unmatched_second == tuple(np.flatnonzero(~near.any(axis=0)))


def set_partitions(items):
    if not items:
        yield []
        return
    head, *rest = items
    for partition in set_partitions(rest):
        yield [[head], *partition]
        for k in range(len(partition)):
            yield [*partition[:k], [head, *partition[k]], *partition[k + 1 :]]


@pytest.mark.parametrize("seed", range(12))
def test_blocks_are_the_finest_partition_that_no_match_crosses(seed):
    n, m, epsilon = 3, 4, 0.35
    first, second = random_pair(n, m, seed=seed)
    near = cosine_table(first, second) >= 1 - epsilon
    nodes = [("first", i) for i in range(n)] + [("second", j) for j in range(m)]
    finest = max(
        (
            partition
            for partition in set_partitions(nodes)
            if not any(
                near[i, j] and not any({("first", i), ("second", j)} <= set(part) for part in partition)
                for i in range(n)
                for j in range(m)
            )
        ),
        key=len,
    )
    expected = {
        (tuple(sorted(k for side, k in part if side == "first")),
         tuple(sorted(k for side, k in part if side == "second")))
        for part in finest if len(part) > 1
    }  # fmt: skip
    certificate = certify(first, second, epsilon=epsilon)
    assert {(block.first, block.second) for block in certificate.blocks} == expected
    for block in certificate.blocks:
        cosine = cosine_table(first, second)[np.ix_(block.first, block.second)]
        assert block.cosine == pytest.approx(cosine.min())
    # Ω is zero outside its blocks
    inside = torch.zeros(m, n, dtype=torch.bool)
    for block in certificate.blocks:
        inside[np.ix_(block.second, block.first)] = True
    assert (certificate.omega[~inside] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 4, 5])
@pytest.mark.parametrize("seed", range(5))
def test_one_to_one_matching_equals_all_permutations(n, seed):
    first, second = random_pair(n, n, seed=seed)
    cosine = cosine_table(first, second)
    ways = list(itertools.permutations(range(n)))
    certificate = certify(first, second, splitting=False)
    assert certificate.epsilon == pytest.approx(min(max(1 - cosine[i, p[i]] for i in range(n)) for p in ways))
    for epsilon in (0.4, 0.9):
        near = cosine >= 1 - epsilon
        scores = [
            (sum(near[i, p[i]] for i in range(n)), sum(cosine[i, p[i]] for i in range(n) if near[i, p[i]]))
            for p in ways
        ]
        most, total = max(scores)
        certificate = certify(first, second, epsilon=epsilon, splitting=False)
        assert len(certificate.blocks) == most
        assert sum(block.cosine for block in certificate.blocks) == pytest.approx(total)
        assert all(len(block.first) == len(block.second) == 1 for block in certificate.blocks)


# --- edge cases ---------------------------------------------------------------------------------------


def test_one_to_one_refuses_what_splitting_allows():
    data = small()
    certificate = certify(data, split(data, [2, 1, 1, 1, 1, 1]), splitting=False)
    assert not certificate.holds
    assert certificate.epsilon == math.inf
    assert len(certificate.blocks) == 6
    assert len(certificate.unmatched_second) == 1


def test_unused_features_are_left_out_of_the_verdict():
    data = small()
    h, v = data.coefficients, data.dictionary
    never = torch.zeros(len(h), 1)
    other = (torch.cat([h, never, never + 3], dim=1), torch.cat([v, v[:1].flip(1), torch.zeros(1, 4)]))
    certificate = certify(data, other)
    assert certificate.holds
    assert certificate.unused_second == (6, 7)
    assert certificate.unused_first == ()
    measured = conditions(*other)
    assert (measured.n_features, measured.n_unused) == (6, 2)
    assert measured.sparsity_max == 2
    assert measured.rho2 == conditions(h, v).rho2


def test_opposite_features_do_not_match():
    data = small()
    certificate = certify(data, (data.coefficients, -data.dictionary), epsilon=0.99)
    assert 0 not in [block.first for block in certificate.blocks if block.first == block.second]
    assert certificate.row_error == pytest.approx(2, rel=1e-5)


def test_same_directions_with_other_codes_are_reported():
    # e2 = (e1 + e3)/√2 gives every row on it two codes
    v = torch.tensor([[1.0, 0.0], [math.sqrt(0.5), math.sqrt(0.5)], [0.0, 1.0]])
    h = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    again = torch.tensor([[0.5, math.sqrt(0.5), 0.5], [1.5, 1 - math.sqrt(0.5), 1.5]])
    certificate = certify((h, v), (again, v), epsilon=0.01)
    assert certificate.holds
    assert certificate.epsilon < 1e-12
    assert certificate.code_error == pytest.approx(((again - h).norm() / h.norm()).item(), rel=1e-5)


def test_rows_that_differ_fail_whatever_the_features():
    data = small()
    certificate = certify(data, (1.01 * data.coefficients, data.dictionary))
    assert certificate.row_error == pytest.approx(0.01, rel=1e-3)
    assert not certificate.holds
    assert not certificate.unmatched_first
    assert certify(data, (1.01 * data.coefficients, data.dictionary), row_tolerance=0.02).holds


def test_empty_explanations():
    nothing = (torch.zeros(3, 2), torch.eye(2))
    certificate = certify(nothing, nothing)
    assert certificate.row_error == 0
    assert not certificate.holds
    assert math.isnan(certificate.code_error)
    assert certify(nothing, (torch.ones(3, 2), torch.eye(2))).row_error == math.inf


def test_chained_blocks_show_a_low_cosine():
    angles = torch.tensor([0.0, 0.4, 0.8, 1.2])
    fan = torch.stack([angles.cos(), angles.sin()], dim=1)
    (block,) = certify((torch.ones(2, 4), fan), (torch.ones(2, 4), fan), epsilon=1 - math.cos(0.41)).blocks
    assert block.first == block.second == (0, 1, 2, 3)
    assert block.cosine == pytest.approx(math.cos(1.2), abs=1e-6)


def test_certificate_reads_well():
    data = small(8, 6, sparsity=2)
    text = str(certify(data, split(data)))
    assert text.startswith("the same up to ε = 0.1; all match from ε = 0.0000 on")
    assert "8 of 8 features with 16 of 16" in text
    assert "8: 0 one to one, 8 split" in text
    assert str(certify(data, (data.coefficients, -data.dictionary), epsilon=0.01)).startswith("NOT the same")


# --- conditions ---------------------------------------------------------------------------------------


def by_hand(h, v):
    """The definitions, in loops."""
    n = h.shape[1]
    norms = v.double().norm(dim=1)
    active = h > 0
    occurs = [active[:, i] for i in range(n)]
    ratios = [
        (occurs[i] & occurs[j]).sum().item() / occurs[i].sum().item()
        for i in range(n) for j in range(n) if i != j
    ]  # fmt: skip
    cosines = [
        abs((v[i].double() @ v[j].double() / norms[i] / norms[j]).item()) for i in range(n) for j in range(i)
    ]
    sizes = sorted((h.double() * norms)[active].tolist())
    median = sizes[(len(sizes) - 1) // 2]
    return {
        "sparsity_max": max(active.sum(dim=1).tolist()),
        "sparsity_mean": active.sum().item() / len(h),
        "smallest": sizes[0] / median,
        "weak_share": sum(size < 0.1 * median for size in sizes) / len(sizes),
        "rho2": max(ratios),
        "rho2_mean": sum(ratios) / len(ratios),
        "coherence": max(cosines),
        "coherence_mean": sum(cosines) / len(cosines),
    }


@pytest.mark.parametrize(("sparsity", "n"), [(2, 60), (5, 7)])
def test_conditions_equal_their_definitions(sparsity, n, monkeypatch):
    monkeypatch.setattr("sae_lib.identifiability.decompositions._CHUNK_NUMBERS", 100 * n)
    data = synthetic.preset(
        "uniform", n_features=n, d_in=5, sparsity=sparsity, n_rows=950, coefficients="half-normal"
    )
    scaled = rescale(data)
    expected = by_hand(*scaled)
    layouts = scaled.coefficients, scaled.coefficients.to_sparse_coo()
    for h in layouts:
        measured = conditions(h, scaled.dictionary)
        for name, value in expected.items():
            assert getattr(measured, name) == pytest.approx(value, rel=1e-5), name
        singular = torch.linalg.svdvals(data.dictionary.double())
        assert measured.operator_norm == pytest.approx(singular[0].item(), rel=1e-5)
        i, j = measured.rho2_pair
        assert (data.coefficients[data.coefficients[:, i] > 0][:, j] > 0).double().mean().item() == (
            pytest.approx(measured.rho2)
        )
        i, j = measured.coherence_pair
        assert abs(data.dictionary[i] @ data.dictionary[j]).item() == pytest.approx(
            measured.coherence, abs=1e-6
        )
    assert certify(data, (layouts[1], scaled.dictionary)).holds


@pytest.mark.parametrize(("n", "s"), [(5, 2), (6, 3), (7, 1), (4, 4)])
def test_rho2_of_all_supports_is_the_closed_form(n, s):
    support = torch.zeros(math.comb(n, s), n)
    for row, chosen in enumerate(itertools.combinations(range(n), s)):
        support[row, list(chosen)] = 1
    measured = conditions(support, synthetic.gaussian_dictionary(n, 5))
    assert measured.rho2 == pytest.approx((s - 1) / (n - 1))
    assert measured.rho2_mean == pytest.approx((s - 1) / (n - 1))
    assert measured.rho2_sqrt_n == pytest.approx((s - 1) / (n - 1) * math.sqrt(n))


def test_rho2_of_random_supports():
    n, s, n_rows = 40, 4, 50_000
    data = synthetic.preset("uniform", n_features=n, d_in=20, sparsity=s, n_rows=n_rows)
    measured = conditions(data.coefficients, data.dictionary)
    # the mean is exact up to the spread of the feature counts, the maximum is above it by chance alone
    expected = (s - 1) / (n - 1)
    assert measured.rho2_mean == pytest.approx(expected, rel=1e-3)
    spread = math.sqrt(expected * (1 - expected) / (n_rows * s / n))
    assert expected < measured.rho2 < expected + 5.5 * spread


def test_conditions_do_not_see_permutation_and_scale():
    data = small(10, 6, n_rows=400)
    before = conditions(data.coefficients, data.dictionary)
    after = conditions(*permute(rescale(data)))
    for name in ("sparsity_max", "sparsity_mean", "smallest", "rho2", "coherence", "operator_norm"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-5), name


def test_orthonormal_dictionary_and_single_feature():
    v = synthetic.orthogonal_dictionary(6, 9)
    measured = conditions(torch.eye(6), v)
    assert measured.coherence == pytest.approx(0, abs=1e-6)
    assert measured.operator_norm == pytest.approx(1, abs=1e-6)
    assert measured.rho2 == 0
    alone = conditions(torch.ones(3, 1), torch.ones(1, 2))
    assert (alone.rho2, alone.rho2_pair, alone.coherence, alone.coherence_pair) == (0, None, 0, None)
    assert "of 1 features" in str(alone)


# --- bad input ----------------------------------------------------------------------------------------

GOOD = (torch.ones(4, 3), torch.eye(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: certify(GOOD, (torch.ones(4, 2), torch.eye(3))),
            r"second: coefficients \(4, 2\) .*\(N, 3\)",
        ),
        (
            lambda: certify((torch.ones(4, 0), torch.ones(0, 3)), GOOD),
            r"first: dictionary has shape \(0, 3\)",
        ),
        (lambda: certify(GOOD, (torch.ones(5, 3), torch.eye(3))), "4 rows of dimension 3, the second 5 of"),
        (lambda: certify(GOOD, (torch.ones(4, 2), torch.eye(2))), "dimension 2; expected the same rows"),
        (
            lambda: certify(GOOD, (-torch.eye(4, 3), torch.eye(3))),
            "feature 0 in row 0 is -1; .*flip the signs",
        ),
        (lambda: certify(GOOD, (torch.full((4, 3), math.nan), torch.eye(3))), "NaN or infinity in row 0"),
        (lambda: certify(GOOD, (torch.ones(4, 3), torch.full((3, 3), math.inf))), "second: dictionary holds"),
        (lambda: certify(GOOD, GOOD, epsilon=0.0), "epsilon is 0.0; expected 0 < epsilon < 1"),
        (lambda: certify(GOOD, GOOD, epsilon=math.nan), "epsilon is nan"),
        (lambda: conditions(torch.zeros(4, 3), torch.eye(3)), "nothing to measure"),
        (lambda: conditions(torch.ones(0, 3), torch.eye(3)), "N at least 1"),
        (lambda: permute(GOOD, [0, 1, 1]), "each of 0 … 2 once"),
        (lambda: rescale(GOOD, [1.0, -2.0, 1.0]), "3 finite numbers above 0"),
        (lambda: rescale(GOOD, [1.0]), "3 finite numbers above 0"),
        (lambda: split(GOOD, 0), "pieces is 0"),
        (lambda: split(GOOD, [1, 2]), "or 3 of them"),
        (lambda: split(GOOD, 2, spread=-1.0), "spread is -1.0"),
    ],
)
def test_bad_input_is_refused_with_the_value_and_the_bound(call, message):
    with pytest.raises(ValueError, match=message):
        call()
