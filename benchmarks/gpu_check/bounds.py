"""Screening with a product of rounded factors: how far it can be from the exact one.

With x = x̂ + e and w = ŵ + f, where x̂ and ŵ are the rounded factors, Cauchy-Schwarz gives

    |⟨x, w⟩ − ⟨x̂, ŵ⟩| ≤ ‖e‖ ‖w‖ + ‖x̂‖ ‖f‖,

and a computed product differs from ⟨x̂, ŵ⟩ by at most ``sums`` · ‖x̂‖ ‖ŵ‖, ``sums`` being what an addition
loses times their number. An entry whose computed product lies further below its bar than that is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# largest number of float8 with 4 bits of exponent and 3 of mantissa
LARGEST = 448.0
# added to norms: numbers below 10⁻²² have squares that vanish in float32, and so have their errors
FLOOR = 1e-14


@dataclass(frozen=True)
class Rounded:
    """Rows (N, d) in a low precision.

    Attributes:
        numbers: (N, d), in the low precision; times ``scale`` they approximate the rows.
        scale: (N, 1), float32.
        norm: Upper bound of the norm of each row, (N,).
        norm_rounded: Likewise of each rounded row.
        error: Likewise of the difference.
    """

    numbers: Tensor
    scale: Tensor
    norm: Tensor
    norm_rounded: Tensor
    error: Tensor


def rounded(rows: Tensor, kind: torch.dtype) -> Rounded:
    """Round float32 rows (N, d), those for float8 after scaling each to the range of its numbers."""
    scale = torch.ones(len(rows), 1, device=rows.device)
    if kind == torch.float8_e4m3fn:
        # a row of zeros, or one too small for a quotient, keeps its scale; its error is the row itself
        peak = rows.abs().amax(dim=1, keepdim=True)
        scale = torch.where(peak > 1e-30, peak / LARGEST, scale)
    # the quotient of the largest number may round to more than fits, which some casts make NaN
    numbers = (rows / scale).clamp(-LARGEST, LARGEST).to(kind) if kind.itemsize == 1 else rows.to(kind)
    back = numbers.float() * scale
    # d additions of float32 lose less than this share; and the difference itself was rounded
    slack = 1 + rows.shape[1] * 2.0**-23
    norm, norm_rounded, error = (part.norm(dim=1) * slack for part in (rows, back, rows - back))
    norm = norm + FLOOR
    return Rounded(numbers, scale, norm, norm_rounded, error + 2.0**-22 * norm)


def margins(x: Rounded, weight: Rounded, *, sums: float, truth: float) -> tuple[Tensor, Tensor]:
    """Return α (B,) and β (M,): the computed product of row i and latent m is off by at most α_i β_m.

    One factor for rows and one for latents, so that no matrix of margins is needed; the price is that all
    rows get the largest relative error among them.

    Args:
        x: Rows of the batch.
        weight: Rows of the encoder.
        sums: Error of the sums of the product, in units of ‖x̂‖ ‖ŵ‖.
        truth: Error of the sums that decide which entries are active, in units of ‖x‖ ‖w‖.
    """
    relative = (x.error / x.norm).max()
    of_latent = (
        relative * weight.norm
        + (1 + relative) * (weight.error + sums * weight.norm_rounded)
        + truth * weight.norm
    )
    # a few more roundings of float32: in these lines, and where margins and products are compared with bars
    return x.norm, of_latent * (1 + 2.0**-18)


def candidates(product: Tensor, x_margin: Tensor, margin: Tensor, bar: Tensor, stored: float) -> Tensor:
    """Return which entries may be active, bool (M, B).

    Args:
        product: Computed products (M, B), latents first.
        x_margin: α (B,) of :func:`margins`.
        margin: β (M,).
        bar: (M,); active are products above it.
        stored: What a product may have lost when it was stored, relative to it.
    """
    highest = product.float()
    highest = highest + stored * highest.abs()
    return torch.addcmul(highest, margin[:, None], x_margin[None, :]) > bar[:, None]
