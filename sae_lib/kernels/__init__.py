"""The sparse training step: encoder product, gate and counts in one pass, then work only where codes are.

A backend is a module with five functions: ``scan``, ``index``, ``decode``, ``dots`` and ``accumulate``. Plain
ones are in ``reference``, fast ones in ``cpu``. A :class:`Pass` makes them differentiable.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sae_lib.kernels import reference
from sae_lib.kernels.autograd import Pass
from sae_lib.kernels.support import SparseCodes, Support

__all__ = ["Pass", "SparseCodes", "Support", "backend", "pays", "supported"]

# multiplications in the encoder product (batch × d × width) from which on the sparse pass is considered: below,
# there is little to win, and small experiments stay free of compiled code
SMALLEST = 2**26
# share of nonzero codes up to which the sparse step is faster; they meet at about 0.1 (chapter 14)
DENSEST = 0.08


def backend(device: torch.device) -> ModuleType:
    """The fastest backend for a device."""
    if device.type == "cpu":
        from sae_lib.kernels import cpu  # compiles: only where it is used

        return cpu
    return reference


def supported(x: Tensor, width: int) -> bool:
    """Whether a step on rows x (B, d) may ever be worth the sparse path."""
    fast = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return fast and x.numel() * width >= SMALLEST


def pays(density: float) -> bool:
    """Whether the sparse step is faster than the dense one when this share of the codes is nonzero."""
    return density <= DENSEST
