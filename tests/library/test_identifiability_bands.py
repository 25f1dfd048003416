"""The theorem's bounds against hand calculation and against each other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lib.identifiability.bands import resonance_band, sufficient_width, summary_band


def test_band_by_hand():
    # n = 256 = 2^8, d = 16, s = 4, ε = 1/2, ς = 1/2: exponents −(1 + 1/4)/2 = −5/8, −2·(9/4)/4 = −9/8
    band = resonance_band(256, 16, 4, epsilon=0.5, varsigma=0.5)
    assert band.low == 2**-8
    assert band.terms == pytest.approx({"noise": 2**-5, "sparsity": 2**-9, "dimension": 4 / 256})
    assert (band.high, band.binding, band.empty) == (2**-9, "sparsity", True)
    assert 2**-9 not in band


def test_both_exponents_are_equal_at_three_features_a_row():
    band = resonance_band(256, 128, 3)
    assert band.terms["noise"] == pytest.approx(band.terms["sparsity"])
    assert band.high == pytest.approx(256 ** (-2 / 3))
    assert 0.005 in band
    assert 0.12 not in band
    assert 0.003 not in band


@given(n=st.integers(4, 10**6), s=st.integers(3, 4), d=st.integers(1, 10**6))
def test_the_dimension_binds_below_a_power_of_n(n, s, d):
    limit = n ** ((1 - 1 / s) / 2)
    binding = resonance_band(n, d, s).binding
    if d < 0.999 * limit:
        assert binding == "dimension"
    elif d > 1.001 * limit:
        assert binding in ("noise", "sparsity")


@given(
    n=st.integers(2, 10**6),
    d=st.integers(1, 10**4),
    s=st.integers(1, 8),
    epsilon=st.floats(0, 1),
    varsigma=st.floats(0, 0.99),
)
def test_slack_narrows_the_band(n, d, s, epsilon, varsigma):
    s = min(s, n)
    widest, narrower = resonance_band(n, d, s), resonance_band(n, d, s, epsilon=epsilon, varsigma=varsigma)
    assert narrower.low == widest.low
    assert narrower.high <= widest.high * (1 + 1e-12)
    assert narrower.high == min(narrower.terms.values()) == narrower.terms[narrower.binding]


def test_summary_form():
    band = summary_band(1 / 64, 4)
    assert (band.low, band.terms) == (1 / 64, {"noise": 1 / 8, "dimension": 1 / 16})
    assert (band.high, band.binding) == (1 / 16, "dimension")
    assert summary_band(1 / 64, 100).binding == "noise"


def test_width():
    assert sufficient_width(128, 3, 3 / 128) == pytest.approx(128 * (128 / 3) ** 3)  # about 1e7
    assert 0.9e7 < sufficient_width(128, 3, 3 / 128) < 1.1e7
    assert sufficient_width(16, 1, 0.5, epsilon=0.5) == pytest.approx(16 * 2**4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resonance_band(1, 4, 1), "n_features is 1; expected at least 2"),
        (lambda: resonance_band(8, 0, 1), "d_in is 0; expected at least 1"),
        (lambda: resonance_band(8, 4, 9), "sparsity is 9; expected 1 … 8"),
        (lambda: resonance_band(8, 4, 0), "sparsity is 0; expected 1 … 8"),
        (lambda: resonance_band(8, 4, 2, epsilon=-1), "epsilon is -1"),
        (lambda: resonance_band(8, 4, 2, epsilon=math.nan), "epsilon is nan"),
        (lambda: resonance_band(8, 4, 2, varsigma=1), "varsigma is 1"),
        (lambda: summary_band(0, 4), "feature_frequency is 0; expected above 0, at most 1"),
        (lambda: summary_band(1.5, 4), "feature_frequency is 1.5"),
        (lambda: summary_band(0.1, 0), "d_in is 0"),
        (lambda: sufficient_width(8, 9, 0.1), "sparsity is 9"),
        (lambda: sufficient_width(8, 2, 0), "target_frequency is 0"),
        (lambda: sufficient_width(8, 2, 0.1, epsilon=1), "epsilon is 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
