"""Dictionaries that break the theorem's condition on V, for chapter 6: entries that are not Gaussian."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import at_least
from sae_lib.randomness import generator


def rademacher_dictionary(n_features: int, d_in: int, *, density: float = 1.0, seed: int = 0) -> Tensor:
    """Draw unit rows (n, d) with entries 0 and ± one size: discrete, and sparse where ``density`` < 1.

    ``density`` is the chance that an entry is nonzero, above 0 and at most 1. Every row keeps at least one.

    Raises:
        ValueError: An argument out of range.
    """
    at_least(1, n_features=n_features, d_in=d_in)
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; expected above 0 and at most 1")
    stream = generator(seed, "dictionary")
    sign = torch.randint(0, 2, (n_features, d_in), generator=stream) * 2.0 - 1.0
    draw = torch.rand(n_features, d_in, generator=stream)
    kept = (draw < density) | (draw == draw.amin(dim=1, keepdim=True))
    return normalize(sign * kept, dim=1)


def heavy_tailed_dictionary(n_features: int, d_in: int, *, degrees: int = 2, seed: int = 0) -> Tensor:
    """Draw unit rows (n, d) whose entries, before scaling, follow Student's t law: a few large ones a row.

    ``degrees`` of freedom are at least 1 (1 is the Cauchy law; many come near a Gaussian dictionary).
    """
    at_least(1, n_features=n_features, d_in=d_in, degrees=degrees)
    stream = generator(seed, "dictionary")
    normal = torch.randn(n_features, d_in, generator=stream)
    square = torch.zeros_like(normal)
    for _ in range(degrees):
        square += torch.randn(n_features, d_in, generator=stream).square()
    return normalize(normal / (square / degrees).sqrt(), dim=1)


def anisotropic_dictionary(
    n_features: int, d_in: int, *, effective_dimension: float, seed: int = 0
) -> Tensor:
    """Draw unit rows (n, d): Gaussian with unequal variances λ along random axes, scaled to unit norm.

    The variances fall geometrically, so steeply that the participation ratio (Σλ)² / Σλ² is
    ``effective_dimension``, above 1 and at most d. Scaling the rows evens the variances out a little: the
    ratio of the unit rows is larger by about 1.

    Raises:
        ValueError: An argument out of range.
    """
    at_least(1, n_features=n_features, d_in=d_in)
    if not 1 < effective_dimension <= d_in:
        raise ValueError(
            f"effective_dimension is {effective_dimension}; expected above 1 and at most {d_in} (d_in)"
        )
    axis = torch.arange(d_in, dtype=torch.float64)

    def excess(steepness: float) -> float:
        variance = torch.exp(-steepness * axis)
        return (variance.sum().square() / variance.square().sum()).item() - effective_dimension

    # with infinitely many axes the ratio is coth(steepness / 2); with d of them it is smaller
    steepest = 2.1 * math.atanh(1 / effective_dimension)
    steepness = brentq(excess, 0.0, steepest) if effective_dimension < d_in else 0.0
    coordinates = torch.randn(n_features, d_in, generator=generator(seed, "dictionary"))
    gaussian = torch.randn(d_in, d_in, generator=generator(seed, "axes"), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    axes = (q * r.diagonal().sign()).T.float()
    return normalize((coordinates * torch.exp(-0.5 * steepness * axis).float()) @ axes, dim=1)
