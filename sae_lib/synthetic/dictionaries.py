"""Dictionaries V: unit feature vectors."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import at_least
from sae_lib.randomness import generator


def gaussian_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Independent uniformly random directions (n, d): Gaussian rows scaled to unit norm."""
    at_least(1, n_features=n_features, d_in=d_in)
    return normalize(torch.randn(n_features, d_in, generator=generator(seed, "dictionary")), dim=1)


def orthogonal_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Orthonormal rows (n, d), a random rotation. Needs n ≤ d: no superposition."""
    at_least(1, n_features=n_features, d_in=d_in)
    if n_features > d_in:
        raise ValueError(
            f"{n_features} orthogonal features do not fit in {d_in} dimensions; "
            f"take n_features ≤ {d_in} or another dictionary"
        )
    return _orthonormal(n_features, d_in, generator(seed, "dictionary"))


def _orthonormal(n_features: int, d_in: int, stream: torch.Generator) -> Tensor:
    gaussian = torch.randn(d_in, n_features, generator=stream, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).T.float().contiguous()


def coherent_dictionary(n_features: int, d_in: int, *, coherence: float, seed: int = 0) -> Tensor:
    """Unit rows (n, d) that lean towards one common direction: :func:`clustered_dictionary` of one cluster.

    At coherence 0 this is :func:`gaussian_dictionary` of dimension d − 1.
    """
    return clustered_dictionary(n_features, d_in, clusters=1, coherence=coherence, seed=seed)


def clustered_dictionary(
    n_features: int, d_in: int, *, clusters: int, coherence: float, seed: int = 0
) -> Tensor:
    """Unit rows (n, d) in ``clusters`` equal groups; those of a group lean towards one direction of its own.

    coherence: the cosine of two rows of one group, in expectation up to O(1/√d); 0 ≤ coherence < 1. Rows of
        different groups have cosine 0 in expectation. Row i belongs to group i mod ``clusters``.
    """
    at_least(1, n_features=n_features, d_in=d_in, clusters=clusters)
    if not 0 <= coherence < 1:
        raise ValueError(f"coherence is {coherence}; expected 0 ≤ coherence < 1")
    stream = generator(seed, "dictionary")
    centres = normalize(torch.randn(clusters, d_in, generator=stream), dim=1)
    centre = centres[torch.arange(n_features) % clusters]
    own = torch.randn(n_features, d_in, generator=stream)
    own = normalize(own - (own * centre).sum(dim=1, keepdim=True) * centre, dim=1)
    return math.sqrt(coherence) * centre + math.sqrt(1 - coherence) * own


def rademacher_dictionary(n_features: int, d_in: int, *, density: float = 1.0, seed: int = 0) -> Tensor:
    """Unit rows (n, d) with entries 0 and ± one size: discrete, and sparse where ``density`` < 1.

    density: chance that an entry is nonzero, above 0 and at most 1. Every row keeps at least one.
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
    """Unit rows (n, d) whose entries, before scaling, follow Student's t law: a few large ones a row.

    degrees: degrees of freedom, at least 1 (1 is the Cauchy law; many come near :func:`gaussian_dictionary`).
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
    """Unit rows (n, d): Gaussian with unequal variances λ along random axes, scaled to unit norm.

    The variances fall geometrically, as steep as it takes for the participation ratio (Σλ)² / Σλ² to be
    ``effective_dimension``, above 1 and at most d. Scaling the rows evens the variances out a little: the
    ratio of the unit rows is larger by about 1.
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

    # without end of axes the ratio is coth(steepness / 2); with d of them it is smaller
    steepest = 2.1 * math.atanh(1 / effective_dimension)
    steepness = brentq(excess, 0.0, steepest) if effective_dimension < d_in else 0.0
    own = torch.randn(n_features, d_in, generator=generator(seed, "dictionary"))
    axes = _orthonormal(d_in, d_in, generator(seed, "axes"))
    return normalize((own * torch.exp(-0.5 * steepness * axis).float()) @ axes, dim=1)
