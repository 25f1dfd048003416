"""The five operations of the sparse step in plain PyTorch: what the fast ones are compared with.

B rows, M latents, d dimensions, E entries of a support; all tensors of a call lie on one device. Shapes are
not checked, :class:`sae_lib.kernels.Pass` makes them fit; a misfit raises whatever error PyTorch raises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lib.kernels.sparse_codes import Support


def _ends(places: Tensor, size: int) -> Tensor:
    """Where the runs of sorted places end, after a leading 0: (size + 1,) int64."""
    counts = torch.bincount(places, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def index(rows: Tensor, latents: Tensor, shape: tuple[int, int]) -> tuple[Support, Tensor]:
    """The support of entries in any order, and the permutation (E,) that puts their values in its order.

    rows, latents: (E,) int64, of different entries. shape: (B, M).
    """
    n_rows, width = shape
    order = (latents * n_rows + rows).argsort()
    rows, latents = rows[order], latents[order]
    row_order = rows.argsort(stable=True)
    return Support(rows, latents, _ends(latents, width), row_order, _ends(rows, n_rows)), order


def scan(x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Support, Tensor]:
    """Encoder product and gate: the entries of u = x Wᵀ above a bar.

    x: (B, d). weight: (M, d). bar: (M,); an entry counts where u > bar.
    Returns the largest u of each latent (M,), the support, and u there (E,).
    """
    u = x @ weight.T
    rows, latents = (u > bar).nonzero(as_tuple=True)
    support, _ = index(rows, latents, (len(x), len(weight)))
    return u.amax(dim=0), support, u[support.rows, support.latents]


def decode(values: Tensor, support: Support, directions: Tensor) -> Tensor:
    """Σ over the entries of each row: value × direction of the latent, (B, d); 0 for a row without entries.

    values: (E,), in the support's order. directions: (M, d).
    """
    out = directions.new_zeros(support.shape[0], directions.shape[1])
    return out.index_add(0, support.rows, values[:, None] * directions[support.latents])


def dots(errors: Tensor, support: Support, directions: Tensor) -> Tensor:
    """For each entry the scalar product of its row of errors and its latent's direction, (E,).

    errors: (B, d). directions: (M, d).
    """
    return (errors[support.rows] * directions[support.latents]).sum(dim=1)


def accumulate(values: Tensor, support: Support, vectors: Tensor, out: Tensor) -> None:
    """Add to ``out``, for each latent, Σ over its entries: value × row of ``vectors``.

    values: (E,), in the support's order. vectors: (B, d). out: (M, d), changed in place; latents without
    entries keep their rows.
    """
    out.index_add_(0, support.latents, values[:, None] * vectors[support.rows])
