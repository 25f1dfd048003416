"""The statistical model X = HV: dictionaries, supports, coefficients and named presets.

Rows are sparse non-negative mixtures of unit feature vectors (paper, section 3 and Def. 5.2). The three
parts are drawn separately, so that each condition of the theory can be varied alone:

>>> dictionary = gaussian_dictionary(256, 128, seed=0)
>>> support = uniform_support(10_000, 256, sparsity=3, seed=0)
>>> data = compose(dictionary, support, coefficients="half-normal", seed=0)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.batches import Rows
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator

COEFFICIENTS = ("constant", "lognormal", "half-normal")


@dataclass(frozen=True)
class SyntheticData:
    """Rows with known features.

    rows: (N, d), equal to ``coefficients @ dictionary``.
    coefficients: (N, n), non-negative, sparse by row (H in the paper).
    dictionary: (n, d), unit rows (V in the paper).
    feature_frequency: (n,), share of rows in which each feature occurs (f_i).
    """

    rows: Tensor
    coefficients: Tensor
    dictionary: Tensor
    feature_frequency: Tensor
    name: str = "synthetic"

    @property
    def d_in(self) -> int:
        """Dimension d of a row."""
        return self.rows.shape[1]

    @property
    def normalisation(self) -> Normalisation:
        """None: rows are used as they are."""
        return Normalisation()

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Training batches (batch_size, d); see :class:`sae_lib.BatchSource`."""
        return Rows(self.rows).batches(batch_size, seed=seed, start=start)

    def describe(self) -> dict[str, Any]:
        """Name and sizes."""
        n_rows, n_features = self.coefficients.shape
        return {"source": self.name, "n_rows": n_rows, "n_features": n_features, "d_in": self.d_in}


def _at_least_one(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")


# --- dictionaries -----------------------------------------------------------------------------------


def gaussian_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Independent uniformly random directions (n, d): Gaussian rows scaled to unit norm."""
    _at_least_one(n_features=n_features, d_in=d_in)
    return normalize(torch.randn(n_features, d_in, generator=generator(seed, "dictionary")), dim=1)


def orthogonal_dictionary(n_features: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Orthonormal rows (n, d), a random rotation. Needs n ≤ d: no superposition."""
    _at_least_one(n_features=n_features, d_in=d_in)
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
    _at_least_one(n_features=n_features, d_in=d_in)
    if not 0 <= coherence < 1:
        raise ValueError(f"coherence is {coherence}; expected 0 ≤ coherence < 1")
    stream = generator(seed, "dictionary")
    common = normalize(torch.randn(d_in, generator=stream), dim=0)
    own = torch.randn(n_features, d_in, generator=stream)
    own = normalize(own - (own @ common)[:, None] * common, dim=1)
    return math.sqrt(coherence) * common + math.sqrt(1 - coherence) * own


# --- supports ---------------------------------------------------------------------------------------


def uniform_support(n_rows: int, n_features: int, *, sparsity: int, seed: int = 0) -> Tensor:
    """Boolean (N, n): in each row exactly ``sparsity`` features, every set equally likely; f = s/n."""
    _at_least_one(n_rows=n_rows, n_features=n_features)
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
    _at_least_one(n_rows=n_rows)
    return torch.rand(n_rows, len(f), generator=generator(seed, "support")) < f


def zipf_frequencies(n_features: int, *, mean_active: float, exponent: float = 1.0) -> Tensor:
    """Frequencies (n,) proportional to rank^−exponent, with ``mean_active`` features a row on average.

    A frequency never exceeds 1; what is cut off there is given to the rarer features.
    """
    _at_least_one(n_features=n_features)
    if not 0 < mean_active <= n_features:
        raise ValueError(f"mean_active is {mean_active}; expected above 0 and at most {n_features}")
    shape = torch.arange(1, n_features + 1, dtype=torch.float64) ** -exponent
    for full in range(n_features):
        factor = (mean_active - full) / shape[full:].sum()
        if factor * shape[full] <= 1:
            return torch.cat([torch.ones(full, dtype=torch.float64), factor * shape[full:]]).float()
    return torch.ones(n_features)


# --- coefficients and rows --------------------------------------------------------------------------


def compose(
    dictionary: Tensor,
    support: Tensor,
    *,
    coefficients: str = "constant",
    sigma: float = 0.25,
    unit_norm: bool = False,
    seed: int = 0,
    name: str = "synthetic",
) -> SyntheticData:
    """Build X = HV from unit feature vectors (n, d) and a boolean support (N, n).

    coefficients: size of the nonzero entries of H: ``"constant"`` (1), ``"lognormal"``
        (exp(sigma·normal), median 1) or ``"half-normal"`` (|normal|, not bounded away from 0, which
        breaks condition H2).
    unit_norm: scale each row of H so that the row of X has norm 1 (empty rows stay 0). X = HV still holds.
    """
    if coefficients not in COEFFICIENTS:
        raise ValueError(f"coefficients is {coefficients!r}; expected one of {', '.join(COEFFICIENTS)}")
    if dictionary.ndim != 2 or support.ndim != 2 or support.shape[1] != dictionary.shape[0]:
        raise ValueError(
            f"support {tuple(support.shape)} and dictionary {tuple(dictionary.shape)} do not fit; "
            "expected (N, n) and (n, d)"
        )
    h = support.float()
    if coefficients != "constant":
        normal = torch.randn(h.shape, generator=generator(seed, "coefficients"))
        h = h * ((sigma * normal).exp() if coefficients == "lognormal" else normal.abs())
    if unit_norm:
        h = h / (h @ dictionary).norm(dim=1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)
    return SyntheticData(
        rows=h @ dictionary,
        coefficients=h,
        dictionary=dictionary,
        feature_frequency=support.float().mean(dim=0),
        name=name,
    )


# --- presets ----------------------------------------------------------------------------------------


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
