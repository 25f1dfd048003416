"""The operations of the sparse step in plain PyTorch, with which the fast ones are compared.

B rows, M latents, d dimensions, E entries of a support; all tensors of a call are on one device. Shapes are
not checked, as :class:`sae_lib.kernels.Pass` makes them fit. ``values`` are in the support's order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lib.kernels.sparse_codes import Support, in_any_order


def _ends(places: Tensor, size: int) -> Tensor:
    """Return where the runs of sorted places end, after a leading 0: (size + 1,) int64."""
    counts = torch.bincount(places, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def index(rows: Tensor, latents: Tensor, shape: tuple[int, int]) -> tuple[Support, Tensor]:
    """Return the support of entries, and the permutation (E,) that puts their values in its order.

    Args:
        rows: (E,) int64.
        latents: (E,) int64; entries in any order, all different.
        shape: (B, M).
    """
    n_rows, width = shape
    order = (latents * n_rows + rows).argsort()
    rows, latents = rows[order], latents[order]
    row_order = rows.argsort(stable=True)
    return Support(rows, latents, _ends(latents, width), row_order, _ends(rows, n_rows)), order


def scan(x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Support, Tensor]:
    """Multiply and gate: find the entries of u = x Wᵀ above a bar.

    Args:
        x: (B, d).
        weight: (M, d).
        bar: (M,); entries are where u > bar.

    Returns:
        The largest u of each latent (M,), the support, and u there (E,).
    """
    u = x @ weight.T
    rows, latents = (u > bar).nonzero(as_tuple=True)
    support, _ = index(rows, latents, (len(x), len(weight)))
    return u.amax(dim=0), support, u[support.rows, support.latents]


def top(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply and select: find the k largest y = x Wᵀ + b of each row.

    Args:
        x: (B, d).
        weight: (M, d).
        bias: (M,).
        k: Entries of a row, at most M.

    Returns:
        Row, latent and u = y − b of the entries (B · k,), in any order.
    """
    y = torch.addmm(bias, x, weight.T).topk(k, dim=1, sorted=False)
    rows = torch.arange(len(x), device=x.device).repeat_interleave(k)
    latents = y.indices.flatten()
    return rows, latents, y.values.flatten() - bias[latents]


def top_of_batch(x: Tensor, weight: Tensor, bias: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the ``count`` largest y of all rows together, otherwise as :func:`top`: (count,) each."""
    y = torch.addmm(bias, x, weight.T).flatten().topk(count, sorted=False)
    rows, latents = y.indices // len(weight), y.indices % len(weight)
    return rows, latents, y.values - bias[latents]


def decode(values: Tensor, support: Support, directions: Tensor) -> Tensor:
    """Return Σ value (E,) × direction (M, d) over the entries of each row, (B, d); 0 for rows without any."""
    if in_any_order(values):
        written = (values[:, None] * directions[support.latents])[support.row_order]
        return torch.segment_reduce(written, "sum", offsets=support.row_ends, axis=0)
    out = directions.new_zeros(support.shape[0], directions.shape[1])
    return out.index_add(0, support.rows, values[:, None] * directions[support.latents])


def dots(errors: Tensor, support: Support, directions: Tensor) -> Tensor:
    """Return each entry's scalar product (E,) of its row of errors (B, d) and latent's direction (M, d)."""
    return (errors[support.rows] * directions[support.latents]).sum(dim=1)


def accumulate(values: Tensor, support: Support, vectors: Tensor, out: Tensor) -> None:
    """Add to ``out`` (M, d) each latent's Σ value (E,) × vector (B, d) over its entries."""
    written = values[:, None] * vectors[support.rows]
    if in_any_order(values):
        out += torch.segment_reduce(written, "sum", offsets=support.latent_ends, axis=0)
    else:
        out.index_add_(0, support.latents, written)
