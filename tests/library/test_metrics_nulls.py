"""p-values from nulls against brute force, scipy, and the error rates they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from sae_lib.metrics import nulls


def drawn(*shape, seed, ties=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * x).round() if ties else x


problems = {
    "seed": st.integers(0, 10_000),
    "r": st.integers(19, 40),
    "f": st.integers(1, 6),
    "ties": st.booleans(),
}


@settings(max_examples=40, deadline=None)
@given(**problems)
def test_empirical_p_values_count_the_draws(seed, r, f, ties):
    observed, null = drawn(f, seed=seed, ties=ties), drawn(r, f, seed=seed + 1, ties=ties)
    larger = [(1 + sum(null[i, j] >= observed[j] for i in range(r)).item()) / (r + 1) for j in range(f)]
    smaller = [(1 + sum(null[i, j] <= observed[j] for i in range(r)).item()) / (r + 1) for j in range(f)]
    assert nulls.empirical_p_values(observed, null).tolist() == larger
    both = nulls.empirical_p_values(observed, null, two_sided=True, level=0.1).tolist()
    assert both == [min(1, 2 * min(pair)) for pair in zip(larger, smaller, strict=True)]
    one_family = nulls.max_statistic_p_values(observed, null).tolist()
    assert one_family == [
        (1 + sum(max(row) >= x for row in null.tolist())) / (r + 1) for x in observed.tolist()
    ]


@settings(max_examples=40, deadline=None)
@given(**problems)
def test_step_down_as_defined_and_never_above_single_step(seed, r, f, ties):
    observed, null = drawn(f, seed=seed, ties=ties), drawn(r, f, seed=seed + 1, ties=ties)
    order = sorted(range(f), key=lambda j: -observed[j].item())
    expected, highest = [0.0] * f, 0.0
    for k, j in enumerate(order):
        count = sum(max(row[i] for i in order[k:]) >= observed[j].item() for row in null.tolist())
        highest = max(highest, (1 + count) / (r + 1))
        expected[j] = highest
    p_values = nulls.max_statistic_p_values(observed, null, step_down=True)
    assert p_values.tolist() == expected
    assert (p_values <= nulls.max_statistic_p_values(observed, null)).all()


def test_only_the_maxima_count_so_widths_may_differ():
    observed, null = drawn(3, seed=0), drawn(19, 50, seed=1)
    p_values = nulls.max_statistic_p_values(observed, null)
    assert torch.equal(p_values, nulls.max_statistic_p_values(observed, null.amax(dim=1, keepdim=True)))


@settings(max_examples=100, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_by_its_definition(p):
    """The least F p / k over the p-values that are at least as large, k of them at most p, and at most 1."""
    adjusted = nulls.benjamini_hochberg(torch.tensor(p, dtype=torch.float64))
    ranked = list(enumerate(sorted(p), start=1))
    expected = [min(1.0, *(len(p) * x / k for k, x in ranked if x >= own)) for own in p]
    np.testing.assert_allclose(adjusted, expected, rtol=1e-12, atol=0)


@settings(max_examples=100, deadline=None)
@given(ranks=st.lists(st.integers(1, 60), min_size=1, max_size=12), q=st.integers(1, 59))
def test_discoveries_are_exact_for_p_values_on_a_lattice(ranks, q):
    """Benjamini–Hochberg's own rule in whole numbers: reject the k smallest, k the last with p_(k) ≤ kq/F."""
    ordered, f = sorted(ranks), len(ranks)
    last = max((k for k in range(1, f + 1) if ordered[k - 1] * f <= k * q), default=0)
    p = torch.tensor(ranks, dtype=torch.float64) / 60
    discovered = nulls.discoveries(nulls.benjamini_hochberg(p), q / 60)
    assert discovered.tolist() == [last > 0 and rank <= ordered[last - 1] for rank in ranks]


def test_p_values_are_uniform_where_nothing_is_to_be_found():
    tests, r = 20_000, 39
    p = nulls.empirical_p_values(drawn(tests, seed=0), drawn(r, tests, seed=1))
    counts = torch.bincount((p * (r + 1)).round().long(), minlength=r + 2)[1:].double()
    expected = tests / (r + 1)
    # χ² with 39 degrees of freedom: mean 39, standard deviation 8.8
    assert ((counts - expected).square() / expected).sum() < 39 + 4 * 8.8


@pytest.mark.parametrize("step_down", [False, True])
def test_family_wise_error_keeps_its_level_with_dependent_statistics(step_down):
    trials, r, f, level = 1500, 19, 8, 0.1
    common = drawn(trials, r + 1, 1, seed=2)
    tables = common + drawn(trials, r + 1, f, seed=3)
    # two true effects among the statistics must not raise the error among the rest
    tables[:, 0, :2] += 6 if step_down else 0
    nothing = slice(2, f) if step_down else slice(0, f)
    wrong = sum(
        (nulls.max_statistic_p_values(t[0], t[1:], step_down=step_down, level=level)[nothing] <= level)
        .any()
        .item()
        for t in tables
    )
    assert wrong <= binom.ppf(0.9999, trials, level)
    assert step_down or wrong >= binom.ppf(0.0001, trials, level)


def test_label_permutation_keeps_the_labels_and_repeats():
    labels, values = torch.tensor([0, 0, 0, 1]), torch.arange(8.0).reshape(4, 2)

    def difference(x, y):
        assert y.sum() == 1
        return x[y == 1].mean(dim=0) - x[y == 0].mean(dim=0)

    null = nulls.label_permutation_null(difference, values, labels, 400, seed=5)
    assert null.shape == (400, 2)
    assert null.dtype == torch.float64
    assert torch.equal(null, nulls.label_permutation_null(difference, values, labels, 400, seed=5))
    # the largest row is the odd one out in one order of four
    p = nulls.empirical_p_values(difference(values, labels), null)
    assert p.tolist() == pytest.approx([0.25, 0.25], abs=4 * math.sqrt(0.25 * 0.75 / 400))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nulls.empirical_p_values(torch.ones(2), torch.ones(18, 2)), r"18 draws.*least 19 draws"),
        (
            lambda: nulls.max_statistic_p_values(torch.ones(2), torch.ones(19, 2), level=0.01),
            "least 99 draws",
        ),
        (
            lambda: nulls.empirical_p_values(torch.ones(2), torch.ones(38, 2), two_sided=True),
            "least 39 draws",
        ),
        (lambda: nulls.empirical_p_values(torch.ones(2), torch.ones(19, 3)), "3 columns for 2 statistics"),
        (lambda: nulls.empirical_p_values(torch.ones(2), torch.ones(19)), r"null \(19,\)"),
        (lambda: nulls.max_statistic_p_values(torch.ones(0), torch.ones(19, 2)), "F at least 1"),
        (
            lambda: nulls.max_statistic_p_values(torch.ones(2), torch.ones(19, 3), step_down=True),
            "3 columns for 2 statistics",
        ),
        (
            lambda: nulls.empirical_p_values(torch.tensor([1.0, math.nan]), torch.ones(19, 2)),
            r"observed is NaN at \(1,\)",
        ),
        (lambda: nulls.empirical_p_values(torch.ones(1), torch.ones(19, 1), level=1.0), "level is 1.0"),
        (lambda: nulls.benjamini_hochberg(torch.tensor([0.5, 1.5])), r"p\[1\] is 1.5"),
        (lambda: nulls.discoveries(torch.tensor([math.nan])), r"p\[0\] is nan"),
        (lambda: nulls.discoveries(torch.ones(1), 0.0), "level is 0.0"),
        (
            lambda: nulls.label_permutation_null(lambda x, y: x, torch.ones(3), torch.ones(2), 5),
            "3 values, 2 labels",
        ),
    ],
)
def test_errors_name_value_and_bound(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_least_number_of_draws_is_enough():
    for level, r in [(0.05, 19), (0.01, 99), (0.1, 9), (1 / 3, 2)]:
        p = nulls.empirical_p_values(torch.ones(1), torch.zeros(r, 1), level=level)
        assert nulls.discoveries(p, level).all()


@settings(max_examples=40, deadline=None)
@given(**problems)
def test_studentised_holds_every_value_against_the_others(seed, r, f, ties):
    observed, null = drawn(f, seed=seed, ties=ties), drawn(r, f, seed=seed + 1, ties=ties)
    z, z_null = nulls.studentised(observed, null)
    every = np.concatenate([observed[None], null])
    for i, scores in enumerate([z, *z_null]):
        others = np.delete(every, i, axis=0)
        np.testing.assert_allclose(scores, (every[i] - others.mean(0)) / others.std(0, ddof=1), atol=1e-9)


def test_studentised_values_change_places_with_the_raw_ones():
    """Whoever is observed, the R + 1 values on the scale are the same: what keeps p-values valid."""
    every = drawn(20, 4, seed=0)
    first, rest = nulls.studentised(every[0], every[1:])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    other, others = nulls.studentised(every[order][0], every[order][1:])
    before, after = torch.cat([first[None], rest]), torch.cat([other[None], others])
    torch.testing.assert_close(before[order], after, rtol=1e-9, atol=1e-9)


def test_studentised_level_with_statistics_of_different_spread():
    trials, r, f, level = 1500, 19, 5, 0.1
    spread = torch.tensor([0.01, 1.0, 5.0, 1.0, 100.0], dtype=torch.float64)
    tables = drawn(trials, r + 1, f, seed=7) * spread + 3 * spread
    wrong = 0
    for t in tables:
        p = nulls.max_statistic_p_values(*nulls.studentised(t[0], t[1:]), level=level)
        wrong += int((p <= level).any())
    assert binom.ppf(0.0001, trials, level) <= wrong <= binom.ppf(0.9999, trials, level)


def test_studentised_where_nothing_varies():
    z, null = nulls.studentised(torch.tensor([0.1, 2.0, 0.0]), torch.tensor([[0.1, 0.1, 0.1]] * 3))
    assert z.tolist() == [0, math.inf, -math.inf]
    assert null[:, 0].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="R at least 2"):
        nulls.studentised(torch.ones(1), torch.ones(1, 1))
