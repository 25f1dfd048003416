"""Checks that several parts of the package share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at_least_one(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")


def as_frequencies(frequencies: Tensor | Sequence[float]) -> Tensor:
    """Float32 frequencies (n,); ValueError unless there are some and all lie in (0, 1]."""
    f = torch.as_tensor(frequencies, dtype=torch.float32)
    if f.ndim != 1 or len(f) == 0:
        raise ValueError(f"frequencies have shape {tuple(f.shape)}; expected (n,) with n at least 1")
    # written so that NaN counts as outside
    outside = ~((f > 0) & (f <= 1))
    if outside.any():
        i = int(outside.nonzero()[0])
        raise ValueError(f"frequency {i} is {f[i]:g}; expected above 0 and at most 1")
    return f
