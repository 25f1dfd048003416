"""The scaling of activations before an autoencoder, and back."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sae_lib.checks import one_of

KINDS = ("none", "scale", "unit")


@dataclass(frozen=True)
class Normalisation:
    """A scaling of the rows, stored with the data and with every autoencoder trained on it.

    >>> rows = 7 * torch.eye(3)
    >>> unit = sae_lib.Normalisation.fit("scale", rows)
    >>> unit, unit.apply(rows).norm(dim=1), torch.equal(unit.invert(unit.apply(rows), rows), rows)
    (Normalisation(kind='scale', scale=0.125), tensor([0.8750, 0.8750, 0.8750]), True)

    Attributes:
        kind: ``"none"`` leaves rows unchanged, ``"scale"`` multiplies all of them by one constant,
            ``"unit"`` divides each row by its Euclidean norm.
        scale: The constant of ``"scale"``; 1 for the other kinds.
    """

    kind: str = "none"
    scale: float = 1.0

    def __post_init__(self) -> None:
        one_of("normalisation kind", self.kind, KINDS)
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"normalisation scale is {self.scale}; expected a finite number above 0")
        if self.kind != "scale" and self.scale != 1.0:
            raise ValueError(f"normalisation {self.kind!r} takes no scale, got {self.scale}")

    @classmethod
    def fit(cls, kind: str, rows: Tensor) -> Self:
        """Choose the constant from sample rows (N, d), so that ``"scale"`` gives them a mean norm of about 1.

        The constant is rounded to a power of two, so that folding it into weights is exact.
        """
        if kind != "scale":
            return cls(kind)
        mean_norm = rows.double().norm(dim=1).mean().item()
        if not (math.isfinite(mean_norm) and mean_norm > 0):
            raise ValueError(
                f"cannot scale rows whose mean norm is {mean_norm}; check the rows for NaN or all zeros"
            )
        return cls("scale", 2.0 ** round(-math.log2(mean_norm)))

    def apply(self, rows: Tensor) -> Tensor:
        """Normalise rows (…, d). A row of zeros stays a row of zeros."""
        if self.kind == "none":
            return rows
        if self.kind == "scale":
            return rows * self.scale
        return torch.nn.functional.normalize(rows, dim=-1)

    def invert(self, normalised: Tensor, rows: Tensor) -> Tensor:
        """Convert a reconstruction (…, d) back to the units of the original ``rows`` (…, d)."""
        if self.kind == "none":
            return normalised
        if self.kind == "scale":
            return normalised / self.scale
        return normalised * rows.norm(dim=-1, keepdim=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest or a ``cfg.json``; ``Normalisation(**…)`` reads them back."""
        return asdict(self)
