"""Data sets with a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sae_lib.randomness import generator
from sae_lib.synthetic.dictionaries import gaussian_dictionary
from sae_lib.synthetic.frequencies import zipf_frequencies
from sae_lib.synthetic.rows import SyntheticData, compose
from sae_lib.synthetic.supports import bernoulli_support, uniform_support


def uniform(
    *,
    n_features: int = 256,
    d_in: int = 128,
    sparsity: int = 3,
    n_rows: int = 100_000,
    coefficients: str = "constant",
    unit_norm: bool = False,
    seed: int = 0,
) -> SyntheticData:
    """The theorem's data: Gaussian dictionary, every row has exactly ``sparsity`` features."""
    return compose(
        gaussian_dictionary(n_features, d_in, seed=seed),
        uniform_support(n_rows, n_features, sparsity=sparsity, seed=seed),
        coefficients=coefficients,
        unit_norm=unit_norm,
        seed=seed,
        name="uniform",
    )


def imbalanced(
    *,
    n_features: int = 128,
    d_in: int = 42,
    sparsities: Sequence[int] = (3, 20),
    n_rows: int = 100_000,
    coefficients: str = "constant",
    unit_norm: bool = True,
    seed: int = 0,
) -> SyntheticData:
    """The paper's imbalanced toy: equal parts of rows of each sparsity, in random order.

    Rows have unit norm by default: unscaled, the dense rows are the long ones and drown the sparse.
    """
    if not sparsities:
        raise ValueError("sparsities is empty; give at least one number of features a row")
    parts = [len(part) for part in torch.arange(n_rows).tensor_split(len(sparsities))]
    support = torch.cat(
        [
            uniform_support(rows, n_features, sparsity=sparsity, seed=seed * len(parts) + i)
            for i, (rows, sparsity) in enumerate(zip(parts, sparsities, strict=True))
        ]
    )
    return compose(
        gaussian_dictionary(n_features, d_in, seed=seed),
        support[torch.randperm(n_rows, generator=generator(seed, "row order"))],
        coefficients=coefficients,
        unit_norm=unit_norm,
        seed=seed,
        name="imbalanced",
    )


def zipf(
    *,
    n_features: int = 256,
    d_in: int = 128,
    mean_active: float = 3.0,
    exponent: float = 1.0,
    n_rows: int = 100_000,
    coefficients: str = "constant",
    unit_norm: bool = False,
    seed: int = 0,
) -> SyntheticData:
    """Independent features with Zipf frequencies: a few common ones, a long tail of rare ones."""
    frequencies = zipf_frequencies(n_features, mean_active=mean_active, exponent=exponent)
    return compose(
        gaussian_dictionary(n_features, d_in, seed=seed),
        bernoulli_support(n_rows, frequencies, seed=seed),
        coefficients=coefficients,
        unit_norm=unit_norm,
        seed=seed,
        name="zipf",
    )


PRESETS: dict[str, Callable[..., SyntheticData]] = {
    "uniform": uniform,
    "imbalanced": imbalanced,
    "zipf": zipf,
}


def preset(name: str, **overrides: Any) -> SyntheticData:
    """A named data set, any of its settings overridden by keyword.

    >>> preset("imbalanced", n_features=160, d_in=48, sparsities=(4, 24), n_rows=10_000, seed=11).d_in
    48

    Raises ValueError for a name or a setting that does not exist.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    allowed = inspect.signature(PRESETS[name]).parameters
    if unknown := sorted(set(overrides) - set(allowed)):
        raise ValueError(f"preset {name!r} has no {', '.join(unknown)}; it takes {', '.join(allowed)}")
    return PRESETS[name](**overrides)
