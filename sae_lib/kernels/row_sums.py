"""Gradients of rows of weights, as the sums over sparse entries that they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lib.kernels.sparse_codes import Support


@dataclass(frozen=True)
class RowSum:
    """A gradient (M, d) whose row m is Σ value × vector over the entries of latent m.

    Attributes:
        latent_ends: As in :class:`Support`, (M + 1,).
        values: (E,).
        rows: Row of ``vectors`` of each entry, (E,) int64.
        vectors: (N, d).
    """

    latent_ends: Tensor
    values: Tensor
    rows: Tensor
    vectors: Tensor

    @classmethod
    def over(cls, support: Support, values: Tensor, vectors: Tensor) -> RowSum:
        """Return the sum whose entries have a support, and the vectors of their rows (B, d)."""
        return cls(support.latent_ends, values, support.rows, vectors)

    @classmethod
    def of_parts(cls, support: Support, parts: list[tuple[Tensor, Support, Tensor]]) -> RowSum:
        """Return the sum over consecutive blocks of the support's latents, each with vectors of its own."""
        # the vectors of all parts below one another
        rows = [part.rows + number * support.shape[0] for number, (_, part, _) in enumerate(parts)]
        values, vectors = [part[0] for part in parts], [part[2] for part in parts]
        return cls(support.latent_ends, torch.cat(values), torch.cat(rows), torch.cat(vectors))

    def without_entries(self) -> RowSum:
        """Return a sum of nothing, of the same shape."""
        ends = torch.zeros_like(self.latent_ends)
        return RowSum(ends, self.values[:0], self.rows[:0], self.vectors[:0])
