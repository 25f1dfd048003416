"""Named data sets.

Presets share ``n_features`` (n), ``d_in`` (d), ``n_rows`` (N), ``seed`` and the keywords ``coefficients``,
``sigma`` and ``unit_norm`` of :func:`compose`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from sae_lib.checks import at_least, one_of
from sae_lib.randomness import generator
from sae_lib.synthetic.data import SyntheticData, compose
from sae_lib.synthetic.dictionaries import gaussian_dictionary
from sae_lib.synthetic.frequencies import geometric_frequencies, power_law_frequencies, zipf_frequencies
from sae_lib.synthetic.supports import bernoulli_support, uniform_support

SPECTRA = ("constant", "log-uniform")


class RowSettings(TypedDict, total=False):
    """Settings that every preset passes on to :func:`compose`."""

    coefficients: str
    sigma: float
    unit_norm: bool


def uniform(
    *,
    n_features: int = 256,
    d_in: int = 128,
    sparsity: int = 3,
    n_rows: int = 100_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw the theorem's data: a Gaussian dictionary, exactly ``sparsity`` features in every row."""
    support = uniform_support(n_rows, n_features, sparsity=sparsity, seed=seed)
    return _gaussian("uniform", support, d_in, seed, rows)


def imbalanced(
    *,
    n_features: int = 128,
    d_in: int = 42,
    sparsities: Sequence[int] = (3, 20),
    n_rows: int = 100_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw the paper's imbalanced toy: equally many rows of each of ``sparsities``, in random order.

    Rows have unit norm by default: unscaled, the dense rows are the long ones and drown the sparse.
    """
    if not sparsities:
        raise ValueError("sparsities is empty; give at least one number of features a row")
    parts = [len(part) for part in torch.arange(n_rows).tensor_split(len(sparsities))]
    support = torch.cat(
        [
            uniform_support(part, n_features, sparsity=sparsity, seed=seed * len(parts) + i)
            for i, (part, sparsity) in enumerate(zip(parts, sparsities, strict=True))
        ]
    )
    support = support[torch.randperm(n_rows, generator=generator(seed, "row order"))]
    return _gaussian("imbalanced", support, d_in, seed, {"unit_norm": True, **rows})


def zipf(
    *,
    n_features: int = 256,
    d_in: int = 128,
    mean_active: float = 3.0,
    exponent: float = 1.0,
    n_rows: int = 100_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw independent features with Zipf frequencies: a few common ones, a long tail of rare ones."""
    f = zipf_frequencies(n_features, mean_active=mean_active, exponent=exponent)
    return independent(f, d_in=d_in, n_rows=n_rows, seed=seed, name="zipf", **rows)


def geometric(
    *,
    n_features: int = 256,
    d_in: int = 128,
    mean_active: float = 3.0,
    span: float = 100.0,
    n_rows: int = 100_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw independent features whose frequencies fall by a constant factor, ``span`` from first to last."""
    f = geometric_frequencies(n_features, mean_active=mean_active, span=span)
    return independent(f, d_in=d_in, n_rows=n_rows, seed=seed, name="geometric", **rows)


def continuous(
    *,
    n_features: int = 256,
    d_in: int = 128,
    mean_active: float = 3.0,
    span: float = 100.0,
    exponent: float = 1.0,
    n_rows: int = 100_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw independent features whose frequencies follow a power law over a factor ``span``.

    At density exponent 1, the default, each decade of frequencies holds equally many features.
    """
    at_least(1, span=span)
    f = power_law_frequencies(
        n_features, low=1 / span, high=1.0, exponent=exponent, mean_active=mean_active, seed=seed
    )
    return independent(f, d_in=d_in, n_rows=n_rows, seed=seed, name="continuous", **rows)


def sanity_check(
    *,
    n_features: int = 3200,
    d_in: int = 100,
    mean_active: float = 20.0,
    spectrum: str = "constant",
    n_rows: int = 50_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw the toy of "Sanity Checks for Sparse Autoencoders" (arXiv 2602.14111): 32 features a dimension.

    The ``spectrum`` is ``"constant"`` (at the published size f = 0.00625) or ``"log-uniform"`` (10^−5.5 to
    10^−1.2), scaled so that ``mean_active`` features are active a row. Coefficients are log-normal, sigma
    0.25, by default. At the published size H takes 0.64 GB, and about three times that while it is drawn.
    """
    one_of("spectrum", spectrum, SPECTRA)
    low, high = (1.0, 1.0) if spectrum == "constant" else (10**-5.5, 10**-1.2)
    f = power_law_frequencies(n_features, low=low, high=high, mean_active=mean_active, seed=seed)
    settings: RowSettings = {"coefficients": "lognormal", **rows}
    return independent(f, d_in=d_in, n_rows=n_rows, seed=seed, name="sanity_check", **settings)


def consistency(
    *,
    n_features: int = 32,
    d_in: int = 16,
    sparsity: int = 3,
    n_rows: int = 50_000,
    seed: int = 0,
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw the toy of the feature-consistency paper (arXiv 2505.20254), small enough to train full-batch.

    Coefficients are half-normal by default.
    """
    support = uniform_support(n_rows, n_features, sparsity=sparsity, seed=seed)
    return _gaussian("consistency", support, d_in, seed, {"coefficients": "half-normal", **rows})


def independent(
    frequencies: Tensor | Sequence[float],
    *,
    d_in: int,
    n_rows: int,
    seed: int = 0,
    name: str = "independent",
    **rows: Unpack[RowSettings],
) -> SyntheticData:
    """Draw features that occur independently with ``frequencies`` (n,), in a Gaussian dictionary (n, d_in).

    >>> data = sae_lib.synthetic.independent([0.5, 0.1], d_in=8, n_rows=10_000)
    >>> [round(f, 1) for f in data.feature_frequency.tolist()]
    [0.5, 0.1]
    """
    return _gaussian(name, bernoulli_support(n_rows, frequencies, seed=seed), d_in, seed, rows)


def _gaussian(name: str, support: Tensor, d_in: int, seed: int, rows: RowSettings) -> SyntheticData:
    dictionary = gaussian_dictionary(support.shape[1], d_in, seed=seed)
    return compose(dictionary, support, seed=seed, name=name, **rows)


PRESETS: dict[str, Callable[..., SyntheticData]] = {
    draw.__name__: draw
    for draw in (uniform, imbalanced, zipf, geometric, continuous, sanity_check, consistency)
}


def preset(name: str, **overrides: Any) -> SyntheticData:
    """Draw a named data set, with any of its settings overridden by keyword.

    >>> sae_lib.synthetic.preset("imbalanced", n_features=160, d_in=48, sparsities=(4, 24), n_rows=1000).d_in
    48

    Raises:
        ValueError: Unknown name or setting.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
    allowed = [key for key in inspect.signature(PRESETS[name]).parameters if key != "rows"]
    allowed += RowSettings.__annotations__
    if unknown := sorted(set(overrides) - set(allowed)):
        raise ValueError(f"preset {name!r} has no {', '.join(unknown)}; it takes {', '.join(allowed)}")
    return PRESETS[name](**overrides)
