"""Sparse codes, and the index of their entries that all sparse operations share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


def _add_up(values: Tensor, index: Tensor, ends: Tensor, order: Tensor | None = None) -> Tensor:
    """Sum the values (E,) at each place (n,), with the same bits every time.

    ``index`` (E,) is the place of each value, ``order`` sorts it (None if it is sorted), and its runs end at
    ``ends`` (n + 1,).
    """
    if in_any_order(values):
        ordered = values if order is None else values.index_select(0, order)
        return torch.segment_reduce(ordered, "sum", offsets=ends)
    return values.new_zeros(len(ends) - 1).index_add(0, index, values)


def in_any_order(values: Tensor) -> bool:
    """Return whether ``index_add`` adds such values in varying order, and so rounds differently each time."""
    return values.is_cuda and values.is_floating_point()


class _AtLatents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, support: Support) -> Tensor:
        ctx.support = support
        return vector.index_select(0, support.latents)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.support.by_latent(gradient), None


class _ByRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, support: Support) -> Tensor:
        ctx.rows = support.rows
        return _add_up(values, support.rows, support.row_ends, support.row_order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.rows), None


@dataclass(frozen=True)
class Support:
    """E entries of a matrix (B, M), rows of the batch by latents, in two orders.

    Entries are numbered latent by latent, within a latent by row; their values are vectors (E,) in that
    order. So a latent's entries are a slice, and a weight gradient's sum over them is written once, by one
    thread, without atomics. All tensors are int64.

    Attributes:
        rows: Row of each entry, (E,).
        latents: Latent of each entry, (E,).
        latent_ends: (M + 1,); latent m has the entries ``latent_ends[m] … latent_ends[m + 1] − 1``.
        row_order: The entries sorted by row, within a row by latent, (E,).
        row_ends: (B + 1,); row i has the entries ``row_order[row_ends[i]:row_ends[i + 1]]``.
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

    def at_latents(self, vector: Tensor) -> Tensor:
        """Return the vector's (M,) number at the latent of each entry, (E,); differentiable."""
        return cast(Tensor, _AtLatents.apply(vector, self))

    def by_latent(self, values: Tensor) -> Tensor:
        """Sum of values (E,) over the entries of each latent (M,), without gradient."""
        return _add_up(values.detach(), self.latents, self.latent_ends)

    def by_row(self, values: Tensor) -> Tensor:
        """Sum of values (E,) over the entries of each row (B,); differentiable."""
        return cast(Tensor, _ByRow.apply(values, self))

    def parts(self, sizes: Sequence[int]) -> list[tuple[slice, Support]]:
        """Split into consecutive blocks of latents: slices of the entries, and supports of the same shape.

        ``sizes`` are the numbers of latents up to the end of each block, increasing, the last one M.
        """
        if len(sizes) == 1:
            return [(slice(0, len(self)), self)]
        ends = self.latent_ends[torch.tensor([0, *sizes], device=self.latent_ends.device)].tolist()
        parts = []
        for first, end in itertools.pairwise(ends):
            span = slice(first, end)
            inside = (self.row_order >= first) & (self.row_order < end)
            before = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])
            latent_ends, row_order = (
                self.latent_ends.clamp(first, end) - first,
                self.row_order[inside] - first,
            )
            part = Support(self.rows[span], self.latents[span], latent_ends, row_order, before[self.row_ends])
            parts.append((span, part))
        return parts


class SparseCodes:
    """Codes (B, M) stored at the entries of a support only, with the operations that methods need.

    Args:
        values: (E,); some may be 0.
        support: Where the values belong.
    """

    def __init__(self, values: Tensor, support: Support) -> None:
        self.values, self.support = values, support

    def __len__(self) -> int:
        return self.support.shape[0]

    def sum(self, dim: int) -> Tensor:
        """Sum over rows (``dim=0``: (M,), without gradient) or latents (``dim=1``: (B,))."""
        return self.support.by_latent(self.values) if dim == 0 else self.support.by_row(self.values)

    def count_nonzero(self, dim: int | None = None) -> Tensor:
        """Count the codes that are not 0, in all, by latent (``dim=0``) or by row (``dim=1``)."""
        fires = self.values != 0
        return fires.sum() if dim is None else SparseCodes(fires.long(), self.support).sum(dim)

    def detach(self) -> SparseCodes:
        """Return the same codes without gradient."""
        return SparseCodes(self.values.detach(), self.support)

    def to_dense(self) -> Tensor:
        """Return all codes (B, M) as a tensor."""
        dense = self.values.new_zeros(self.support.shape)
        return dense.index_put((self.support.rows, self.support.latents), self.values)
