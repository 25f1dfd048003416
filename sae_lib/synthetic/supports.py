"""Supports: which features occur in which rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_lib.randomness import generator
from sae_lib.synthetic.checks import at_least_one


def uniform_support(n_rows: int, n_features: int, *, sparsity: int, seed: int = 0) -> Tensor:
    """Boolean (N, n): in each row exactly ``sparsity`` features, every set equally likely; f = s/n."""
    at_least_one(n_rows=n_rows, n_features=n_features)
    if not 0 <= sparsity <= n_features:
        raise ValueError(f"sparsity is {sparsity}; expected 0 … {n_features} (the number of features)")
    scores = torch.rand(n_rows, n_features, generator=generator(seed, "support"))
    chosen = scores.topk(sparsity, dim=1).indices
    return torch.zeros(n_rows, n_features, dtype=torch.bool).scatter_(1, chosen, True)


def bernoulli_support(n_rows: int, frequencies: Tensor | Sequence[float], *, seed: int = 0) -> Tensor:
    """Boolean (N, n): feature i occurs in each row independently with probability ``frequencies[i]``."""
    f = torch.as_tensor(frequencies, dtype=torch.float32)
    if f.ndim != 1 or len(f) == 0 or not ((f >= 0) & (f <= 1)).all():
        raise ValueError("frequencies must be a non-empty list of probabilities between 0 and 1")
    at_least_one(n_rows=n_rows)
    return torch.rand(n_rows, len(f), generator=generator(seed, "support")) < f
