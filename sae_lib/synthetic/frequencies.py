"""Spectra of feature frequencies f_1 … f_n."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lib.synthetic.checks import at_least_one


def zipf_frequencies(n_features: int, *, mean_active: float, exponent: float = 1.0) -> Tensor:
    """Frequencies (n,) proportional to rank^−exponent, with ``mean_active`` features a row on average.

    A frequency never exceeds 1; what is cut off there is given to the rarer features.
    """
    at_least_one(n_features=n_features)
    if not 0 < mean_active <= n_features:
        raise ValueError(f"mean_active is {mean_active}; expected above 0 and at most {n_features}")
    shape = torch.arange(1, n_features + 1, dtype=torch.float64) ** -exponent
    for full in range(n_features):
        factor = (mean_active - full) / shape[full:].sum()
        if factor * shape[full] <= 1:
            return torch.cat([torch.ones(full, dtype=torch.float64), factor * shape[full:]]).float()
    return torch.ones(n_features)
