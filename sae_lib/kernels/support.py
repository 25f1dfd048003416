"""Which entries of the codes are in play: the one index that every sparse operation shares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Support:
    """E entries of a matrix (B, M), rows of the batch by latents, in two orders.

    The entries are numbered latent by latent, within a latent by row; values that belong to them, one number
    each, are vectors (E,) in that order. So a latent's entries are a slice, and the sum over them that a
    weight gradient needs is written once, by one thread, without atomics.

    rows, latents: (E,) int64, where each entry stands.
    latent_ends: (M + 1,) int64; the entries of latent m are ``latent_ends[m] … latent_ends[m + 1] − 1``.
    row_order: (E,) int64, the entries sorted by row, within a row by latent.
    row_ends: (B + 1,) int64; the entries of row i are ``row_order[row_ends[i]:row_ends[i + 1]]``.
    """

    rows: Tensor
    latents: Tensor
    latent_ends: Tensor
    row_order: Tensor
    row_ends: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(B, M)."""
        return len(self.row_ends) - 1, len(self.latent_ends) - 1

    def __len__(self) -> int:
        return len(self.rows)


class SparseCodes:
    """Codes (B, M) of which only the entries of a support are held; what methods need of a tensor of codes.

    values: (E,); some may be 0.
    """

    def __init__(self, values: Tensor, support: Support) -> None:
        self.values, self.support = values, support

    def __len__(self) -> int:
        return self.support.shape[0]

    def sum(self, dim: int) -> Tensor:
        """Sum over rows (``dim=0``, giving (M,)) or over latents (``dim=1``, giving (B,))."""
        index = self.support.latents if dim == 0 else self.support.rows
        return self.values.new_zeros(self.support.shape[1 - dim]).index_add(0, index, self.values)

    def count_nonzero(self, dim: int | None = None) -> Tensor:
        """How many codes are not 0, of all, by latent (``dim=0``) or by row (``dim=1``)."""
        fires = self.values != 0
        return fires.sum() if dim is None else SparseCodes(fires.long(), self.support).sum(dim)

    def detach(self) -> SparseCodes:
        """The same codes without gradient."""
        return SparseCodes(self.values.detach(), self.support)

    def to_dense(self) -> Tensor:
        """All of them, (B, M)."""
        dense = self.values.new_zeros(self.support.shape)
        return dense.index_put((self.support.rows, self.support.latents), self.values)
