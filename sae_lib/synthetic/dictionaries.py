"""Dictionaries V: unit feature vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.randomness import generator
from sae_lib.synthetic.checks import at_least_one


def gaussian_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Independent uniformly random directions (n, d): Gaussian rows scaled to unit norm."""
    at_least_one(n_features=n_features, d_in=d_in)
    return normalize(torch.randn(n_features, d_in, generator=generator(seed, "dictionary")), dim=1)


def orthogonal_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Orthonormal rows (n, d), a random rotation. Needs n ≤ d: no superposition."""
    at_least_one(n_features=n_features, d_in=d_in)
    if n_features > d_in:
        raise ValueError(
            f"{n_features} orthogonal features do not fit in {d_in} dimensions; "
            f"take n_features ≤ {d_in} or another dictionary"
        )
    gaussian = torch.randn(d_in, n_features, generator=generator(seed, "dictionary"), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).T.float().contiguous()


def coherent_dictionary(n_features: int, d_in: int, *, coherence: float, seed: int = 0) -> Tensor:
    """Unit rows (n, d) that lean towards one common direction.

    coherence: the cosine of two rows, in expectation up to O(1/√d); 0 ≤ coherence < 1. At 0 this is
        :func:`gaussian_dictionary` of dimension d − 1.
    """
    at_least_one(n_features=n_features, d_in=d_in)
    if not 0 <= coherence < 1:
        raise ValueError(f"coherence is {coherence}; expected 0 ≤ coherence < 1")
    stream = generator(seed, "dictionary")
    common = normalize(torch.randn(d_in, generator=stream), dim=0)
    own = torch.randn(n_features, d_in, generator=stream)
    own = normalize(own - (own @ common)[:, None] * common, dim=1)
    return math.sqrt(coherence) * common + math.sqrt(1 - coherence) * own
