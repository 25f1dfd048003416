"""Rows X = HV: coefficients on a support, times a dictionary."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_lib.batches import Rows
from sae_lib.checks import one_of
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator

COEFFICIENTS = ("constant", "lognormal", "half-normal")


@dataclass(frozen=True)
class SyntheticData:
    """Rows with known features.

    Attributes:
        rows: (N, d), equal to ``coefficients @ dictionary``.
        coefficients: (N, n), non-negative, few nonzeros a row (H in the paper).
        dictionary: (n, d), unit rows (V in the paper).
        feature_frequency: (n,), share of rows in which each feature occurs (f_i).
        name: Name of the data set, for records.
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
        """The identity: rows are used as they are."""
        return Normalisation()

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield training batches (batch_size, d); see :class:`sae_lib.BatchSource`."""
        return Rows(self.rows).batches(batch_size, seed=seed, start=start)

    def describe(self) -> dict[str, Any]:
        """Return name and sizes."""
        n_rows, n_features = self.coefficients.shape
        return {"source": self.name, "n_rows": n_rows, "n_features": n_features, "d_in": self.d_in}


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
    """Build rows X = HV from feature vectors and a support.

    Args:
        dictionary: Unit feature vectors V, (n, d).
        support: Boolean, (N, n): which features occur in which rows.
        coefficients: Nonzero entries of H: ``"constant"`` (1), ``"lognormal"`` (exp(sigma·normal), median 1)
            or ``"half-normal"`` (|normal|; not bounded away from 0, which breaks condition H2).
        sigma: Spread of lognormal coefficients.
        unit_norm: Scale the rows of H so that rows of X have norm 1 (empty rows stay 0); X = HV still holds.
        seed: Seed of the coefficients.
        name: Name of the data set.

    Raises:
        ValueError: Unknown ``coefficients``, or shapes that do not fit.
    """
    one_of("coefficients", coefficients, COEFFICIENTS)
    if dictionary.ndim != 2 or 0 in dictionary.shape:
        raise ValueError(f"dictionary has shape {tuple(dictionary.shape)}; expected (n, d), both at least 1")
    if support.ndim != 2 or len(support) == 0 or support.shape[1] != len(dictionary):
        raise ValueError(
            f"support {tuple(support.shape)} and dictionary {tuple(dictionary.shape)} do not fit; "
            f"expected (N, {len(dictionary)}) for the support, N at least 1"
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
