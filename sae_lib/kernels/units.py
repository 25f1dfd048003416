"""Whether this processor multiplies bfloat16 fast, and as exactly as a screen assumes, by measurement."""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch
from torch import Tensor

from sae_lib.kernels.screen import bounds

# latents of the products that are timed, and how often after a first time that does not count
WIDTH, ROUNDS = 1024, 7
# A screen pays below a product of about 0.85 of float32's time. Processors with units for bfloat16 take 0.25
# to 0.45, others more than 1: far enough from this line for every process on a machine to decide alike.
FAST = 0.7


@cache
def bfloat16_is_fast(n_rows: int, d: int, threads: int) -> bool:
    """Return whether products of rows (n_rows, d) gain from a screen, with so many threads of PyTorch's.

    Once a process and shape, both products are timed in turn, and the rounding is compared with its bound.
    """
    stream = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, d, generator=stream) for n in (n_rows, WIDTH))
    # scales far apart, and numbers that cancel
    x[::3] *= 1e-3
    weight[1::2] = weight[::2] * (1 + 2.0**-9)
    low = x.bfloat16(), weight.bfloat16()
    exact, rounded = torch.empty(n_rows, WIDTH), torch.empty(n_rows, WIDTH, dtype=torch.bfloat16)
    times = [(seconds(*low, rounded), seconds(x, weight, exact)) for _ in range(ROUNDS + 1)]
    in_bfloat16, in_float32 = (min(column[1:]) for column in zip(*times, strict=True))
    if in_bfloat16 > FAST * in_float32:
        return False
    excess = _excess(x, weight, rounded)
    if excess > 1:
        warnings.warn(
            "bfloat16 products are not used on this processor: "
            f"their rounding is {excess:.3g} times its bound",
            stacklevel=3,
        )
    return excess <= 1


def seconds(x: Tensor, weight: Tensor, out: Tensor) -> float:
    """Return how long ``x @ weight.T`` takes."""
    began = time.perf_counter()
    torch.mm(x, weight.T, out=out)
    return time.perf_counter() - began


def _excess(x: Tensor, weight: Tensor, product: Tensor) -> float:
    """Return the largest error of a product in bfloat16 as a multiple of its bound."""
    error = (product.double() - x.double() @ weight.double().T).abs()
    return (error / bounds(x, weight, product)).max().item()
