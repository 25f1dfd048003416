"""Dictionaries V: unit feature vectors."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import at_least
from sae_lib.randomness import generator


def gaussian_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Draw independent, uniformly random directions (n, d): Gaussian rows scaled to unit norm."""
    at_least(1, n_features=n_features, d_in=d_in)
    return normalize(torch.randn(n_features, d_in, generator=generator(seed, "dictionary")), dim=1)


def orthogonal_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Draw orthonormal rows (n, d), a random rotation without superposition; ValueError if n > d."""
    at_least(1, n_features=n_features, d_in=d_in)
    if n_features > d_in:
        raise ValueError(
            f"{n_features} orthogonal features do not fit in {d_in} dimensions; "
            f"take n_features ≤ {d_in} or another dictionary"
        )
    stream = generator(seed, "dictionary")
    q, r = torch.linalg.qr(torch.randn(d_in, n_features, generator=stream, dtype=torch.float64))
    # the signs make the rotation uniformly distributed
    return (q * r.diagonal().sign()).T.float().contiguous()


def coherent_dictionary(n_features: int, d_in: int, *, coherence: float, seed: int = 0) -> Tensor:
    """Draw unit rows (n, d) that lean towards one direction: :func:`clustered_dictionary` of one cluster.

    At coherence 0 this is :func:`gaussian_dictionary` of dimension d − 1.
    """
    return clustered_dictionary(n_features, d_in, clusters=1, coherence=coherence, seed=seed)


def clustered_dictionary(
    n_features: int, d_in: int, *, clusters: int, coherence: float, seed: int = 0
) -> Tensor:
    """Draw unit rows (n, d) in equal groups; the rows of a group lean towards a direction of its own.

    Args:
        n_features: Number of rows n.
        d_in: Dimension d.
        clusters: Number of groups; row i belongs to group i mod ``clusters``.
        coherence: Expected cosine of two rows of one group, up to O(1/√d); 0 ≤ coherence < 1. Rows of
            different groups have expected cosine 0.
        seed: Seed of the directions.

    Raises:
        ValueError: A size below 1, or a coherence out of range.
    """
    at_least(1, n_features=n_features, d_in=d_in, clusters=clusters)
    if not 0 <= coherence < 1:
        raise ValueError(f"coherence is {coherence}; expected 0 ≤ coherence < 1")
    stream = generator(seed, "dictionary")
    centres = normalize(torch.randn(clusters, d_in, generator=stream), dim=1)
    centre = centres[torch.arange(n_features) % clusters]
    offset = torch.randn(n_features, d_in, generator=stream)
    offset = normalize(offset - (offset * centre).sum(dim=1, keepdim=True) * centre, dim=1)
    return math.sqrt(coherence) * centre + math.sqrt(1 - coherence) * offset
