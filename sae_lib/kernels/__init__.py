"""The sparse training step: encoder product, gate and counts in one pass, then work on nonzero codes only.

A backend has the functions of :class:`Operations`. Plain ones are in ``reference``, fast ones in ``cpu`` and,
for CUDA devices where Triton is installed, in ``gpu``, which is tested on each device before its first use.
On processors that multiply bfloat16 fast, a ``Screen`` has those of ``cpu`` with a faster product, and
``adam`` joins the step of the optimiser to them. A :class:`Pass` makes the operations differentiable.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_lib.kernels import check, reference
from sae_lib.kernels.autograd import Pass
from sae_lib.kernels.operations import Operations
from sae_lib.kernels.row_sums import RowSum
from sae_lib.kernels.sparse_codes import SparseCodes, Support

if TYPE_CHECKING:
    from sae_lib.kernels.screen import Screen

__all__ = [
    "Operations", "Pass", "RowSum", "SparseCodes", "Support", "backend", "pays", "screen_for", "supported",
]  # fmt: skip

# Both by type of device: "cpu" measured (chapter 14), "cuda" ESTIMATED, without a GPU.
# Least multiplications in the encoder product (batch × d × width) for which the sparse pass is considered.
# Smaller experiments stay free of compiled code; on a GPU the product must take longer than the launch of
# some twenty small kernels and one wait for the number of entries.
SMALLEST = {"cpu": 2**26, "cuda": 2**36}
# Largest share of nonzero codes for which the sparse step is faster; on a CPU the two tie at about 0.1.
DENSEST = {"cpu": 0.08, "cuda": 0.005}
# the same least size for a screened step on a CPU
SMALLEST_SCREENED = 2**30
# types of device whose backend depends on a compiler and a driver that the tests have not covered
UNTRIED = ("cuda",)


@cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def backend(device: torch.device) -> Operations:
    """Return the fastest backend for a device."""
    # modules that compile code are imported only where they are used
    if device.type == "cpu":
        from sae_lib.kernels import cpu

        return cpu
    if device.type == "cuda" and _has_triton():
        from sae_lib.kernels import gpu

        return gpu
    return reference


def supported(x: Tensor, codes: float) -> bool:
    """Return whether a step on rows x (…, d) with so many codes (B · M) can ever gain from the sparse path.

    On CUDA that takes float32 and Triton; the least size there is an estimate, not measured.
    """
    kind = x.device.type
    if kind == "cuda":
        fast = x.dtype == torch.float32 and _has_triton()
    else:
        fast = kind == "cpu" and x.dtype in (torch.float32, torch.float64)
    return fast and x.shape[1] * codes >= SMALLEST[kind]


def pays(x: Tensor, density: float) -> bool:
    """Return whether a supported step on rows x should be sparse when this share of the codes is nonzero.

    It should where that is faster (on CUDA an estimate, not measured) and the backend gives right results.
    A GPU's backend is tested once a process: if it fails, a warning says so and steps stay dense.
    """
    kind = x.device.type
    if density > DENSEST[kind]:
        return False
    if kind not in UNTRIED:
        return True
    return _passes(x.device, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)


def screen_for(x: Tensor, width: int) -> Screen | None:
    """Return a screen for steps on rows like x (B, d), or None where the plain product serves better.

    It serves large float32 products on processors that were measured to multiply bfloat16 much faster. Where
    PyTorch's deterministic algorithms are switched on, no measurement decides anything.
    """
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    if plain or torch.are_deterministic_algorithms_enabled() or x.numel() * width < SMALLEST_SCREENED:
        return None
    from sae_lib.kernels import screen, units

    return screen.Screen() if units.bfloat16_is_fast(*x.shape, torch.get_num_threads()) else None


@cache
def _passes(device: torch.device, factors: torch.dtype) -> bool:
    fault = check.fault(lambda: backend(device), device, factors)
    if fault:
        warnings.warn(
            f"the sparse kernels fail their self-check on {device} ({fault}). Training continues with dense "
            "steps, which give the same results but take longer",
            stacklevel=3,
        )
    return fault is None
