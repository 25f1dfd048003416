"""Spectra of feature frequencies f_1 ≥ … ≥ f_n, each above 0 and at most 1.

Each function can scale its spectrum to a chosen mean number of active features a row, Σ f_i. No frequency
exceeds 1; the excess goes to the rarer features.
"""

import torch
from torch import Tensor

from sae_lib.checks import at_least
from sae_lib.randomness import generator


def zipf_frequencies(n_features: int, *, mean_active: float, exponent: float = 1.0) -> Tensor:
    """Return frequencies (n,) proportional to rank^−exponent that sum to ``mean_active``."""
    at_least(1, n_features=n_features)
    ranks = torch.arange(1, n_features + 1, dtype=torch.float64)
    return _with_mean(ranks**-exponent, mean_active)


def geometric_frequencies(n_features: int, *, mean_active: float, span: float = 100.0) -> Tensor:
    """Return frequencies (n,) that fall by a constant factor from rank to rank.

    >>> f = sae_lib.synthetic.geometric_frequencies(3, mean_active=0.5, span=100)
    >>> [round(x, 4) for x in f.tolist()]
    [0.4505, 0.045, 0.0045]

    Args:
        n_features: Number of frequencies n.
        mean_active: Mean number of active features a row, above 0 and at most n.
        span: Most common over rarest frequency, before any is cut off at 1; 1 makes all equal.

    Raises:
        ValueError: ``mean_active`` out of range, or a span below 1.
    """
    at_least(1, n_features=n_features)
    if not 1 <= span < float("inf"):
        raise ValueError(f"span is {span}; expected a finite number of at least 1")
    exponents = torch.linspace(0, 1, n_features, dtype=torch.float64)
    return _with_mean(torch.tensor(span, dtype=torch.float64) ** -exponents, mean_active)


def power_law_frequencies(
    n_features: int,
    *,
    low: float,
    high: float,
    exponent: float = 1.0,
    mean_active: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Draw frequencies (n,) with density ∝ f^−exponent between ``low`` and ``high``, in falling order.

    Args:
        n_features: Number of frequencies n.
        low: Lower bound, above 0.
        high: Upper bound, from ``low`` to 1.
        exponent: 1 is log-uniform (as many features in each decade), 0 uniform; more favours the rare.
        mean_active: If given, one factor scales all frequencies so that they sum to it.
        seed: Seed of the draw.

    Raises:
        ValueError: Bounds or ``mean_active`` out of range.
    """
    at_least(1, n_features=n_features)
    if not 0 < low <= high <= 1:
        raise ValueError(f"low={low}, high={high}; expected 0 < low ≤ high ≤ 1")
    u = torch.rand(n_features, generator=generator(seed, "frequencies"), dtype=torch.float64)
    power = 1.0 - exponent
    # the inverse of the distribution function; at power 0 its limit, the log-uniform law
    if abs(power) < 1e-9:
        f = low * (high / low) ** u
    else:
        f = (low**power + u * (high**power - low**power)) ** (1 / power)
    f = f.clamp(low, high).sort(descending=True).values
    return f.float() if mean_active is None else _with_mean(f, mean_active)


def _with_mean(shape: Tensor, mean_active: float) -> Tensor:
    """Return frequencies (n,) ∝ the falling ``shape`` (n,), cut off at 1, that sum to ``mean_active``."""
    n_features = len(shape)
    if not 0 < mean_active <= n_features:
        raise ValueError(f"mean_active is {mean_active}; expected above 0 and at most {n_features}")
    for full in range(n_features):
        factor = (mean_active - full) / shape[full:].sum()
        if factor * shape[full] <= 1:
            return torch.cat([torch.ones(full, dtype=torch.float64), factor * shape[full:]]).float()
    return torch.ones(n_features)
