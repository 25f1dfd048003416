"""The bounds of the paper's Theorem 6.1 as numbers.

The theorem is known here from a published *summary*; the paper's full text was not at hand. Every bound
holds up to a constant that the summary does not give (its ≲), so the numbers say how the band moves with n,
d and s, and roughly where it is; a measurement may differ from them by a factor.

With n features in d dimensions, s of them a row (so that each has the frequency f = s/n), and modified bias
adaptation at target frequency p:

    1/n  ≲  p  ≲  min{ n^(−(1 + 1/s)/2),  n^(−2(1 + ε)²/s),  d^(1 − ς)/n },     width ≳ n p^(−s/(1 − ε)²)

every feature is recovered after 1/ς steps with probability at least 1 − n^(−4ε).
"""

import math
from dataclasses import dataclass

from sae_lib.checks import at_least, between, fraction


@dataclass(frozen=True)
class Band:
    """An interval of target frequencies from ``low`` to ``high``, both shares of rows; empty if high < low.

    Attributes:
        low: Lower end.
        terms: Upper bounds by name; ``high`` is the smallest.
    """

    low: float
    terms: dict[str, float]

    @property
    def high(self) -> float:
        """The smallest of the upper bounds."""
        return min(self.terms.values())

    @property
    def binding(self) -> str:
        """Name of the smallest upper bound; the first if several are equal."""
        return min(self.terms, key=lambda name: self.terms[name])

    @property
    def empty(self) -> bool:
        """Whether no target frequency satisfies both ends (with constants of 1)."""
        return self.high < self.low

    def __contains__(self, target_frequency: float) -> bool:
        return self.low <= target_frequency <= self.high


def resonance_band(
    n_features: int, d_in: int, sparsity: int, *, epsilon: float = 0.0, varsigma: float = 0.0
) -> Band:
    """Return the band of target frequencies of Theorem 6.1 (published in summary; constants taken as 1).

    >>> band = sae_lib.identifiability.resonance_band(n_features=128, d_in=64, sparsity=4)
    >>> round(band.low, 4), round(band.high, 4), band.binding, 0.02 in band
    (0.0078, 0.0482, 'noise', True)

    The terms: ``"noise"`` n^(−(1 + 1/s)/2), ``"sparsity"`` n^(−2(1 + ε)²/s), ``"dimension"`` d^(1 − ς)/n. At
    ε = 0 the sparsity term is the smaller of the first two for s < 3, they are equal at s = 3, and for s = 1
    and s = 2 it leaves no band wider than a point.

    Args:
        n_features: n ≥ 2.
        d_in: d ≥ 1.
        sparsity: s from 1 to n.
        epsilon: Slack ε ≥ 0 of the failure probability n^(−4ε); 0 gives the widest band.
        varsigma: ς in [0, 1); 1/ς is the number of steps, so 0 gives the widest band and no bound on steps.

    Raises:
        ValueError: An argument out of range.
    """
    _check_sizes(n_features, d_in, sparsity)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon is {epsilon}; expected a finite number ≥ 0")
    if not 0 <= varsigma < 1:
        raise ValueError(f"varsigma is {varsigma}; expected 0 ≤ varsigma < 1")
    n = float(n_features)
    terms = {
        "noise": n ** (-(1 + 1 / sparsity) / 2),
        "sparsity": n ** (-2 * (1 + epsilon) ** 2 / sparsity),
        "dimension": d_in ** (1 - varsigma) / n,
    }
    return Band(1 / n, terms)


def summary_band(feature_frequency: float, d_in: int) -> Band:
    """Return the band in the form f ≲ p ≲ min{√f, f d} (published in summary; constants taken as 1).

    >>> band = sae_lib.identifiability.summary_band(feature_frequency=0.01, d_in=64)
    >>> band.low, band.high, band.binding
    (0.01, 0.1, 'noise')

    With f in (0, 1] and d ≥ 1, the terms are ``"noise"`` √f and ``"dimension"`` f d.
    """
    fraction(feature_frequency=feature_frequency)
    at_least(1, d_in=d_in)
    terms = {"noise": math.sqrt(feature_frequency), "dimension": feature_frequency * d_in}
    return Band(feature_frequency, terms)


def sufficient_width(
    n_features: int, sparsity: int, target_frequency: float, *, epsilon: float = 0.0
) -> float:
    """Return the width n p^(−s/(1 − ε)²) of Theorem 6.1, ε in [0, 1).

    Published in summary; the unknown constant is taken as 1. At sizes that a laptop can run the width is far
    out of reach (1e7 for n = 128, s = 3, p = s/n), and far from necessary: chapter 4 recovers with a few
    latents a feature.
    """
    _check_sizes(n_features, 1, sparsity)
    fraction(target_frequency=target_frequency)
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}; expected 0 ≤ epsilon < 1")
    return n_features * target_frequency ** (-sparsity / (1 - epsilon) ** 2)


def _check_sizes(n_features: int, d_in: int, sparsity: int) -> None:
    at_least(2, n_features=n_features)
    at_least(1, d_in=d_in)
    between(1, n_features, "the number of features", sparsity=sparsity)
