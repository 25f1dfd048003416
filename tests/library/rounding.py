"""What keeps a test from asking for a last bit.

Another processor, another BLAS or another order of summation gives other last bits. Where a test compares two
routes to one number, it compares up to rounding; where it asks which numbers lie above a bar, the bar lies
where none of them is near. Ties are tested by themselves, with numbers that no sum rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sae_lib.batches import Rows
from sae_lib.sae import SparseAutoencoder

# share of the largest number: far above what another order changes in the short float32 sums of the tests
GAP = 1e-5


def bar_between(values: Tensor, share: float) -> float:
    """A bar that about this share of the values exceeds, halfway between two that lie apart."""
    levels = values.detach().double().flatten().sort(descending=True).values
    # beyond the ends everything is far away, so that there is always a place
    levels = torch.cat([levels[:1] + 1, levels, levels[-1:] - 1])
    apart = (levels[:-1] - levels[1:] > GAP * levels.abs().max()).nonzero()[:, 0]
    place = int(apart[(apart - share * values.numel()).abs().argmin()])
    return ((levels[place] + levels[place + 1]) / 2).item()


@torch.no_grad()
def clear_rows(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Which rows of x (N, d) have no pre-activation so near its gate that rounding decides: bool (N,)."""
    y = sae.project(x) + sae.bias
    bar: Tensor | float = 0.0 if sae.threshold is None else sae.threshold
    if sae.k is not None:
        # between the last code that is kept and the first that is not
        bar = y.topk(min(sae.k + 1, sae.width), dim=1).values[:, -2:].mean(dim=1, keepdim=True).clamp(min=0)
    return ((y - bar).abs() > GAP * y.abs().amax(dim=1, keepdim=True)).all(dim=1)


class InDouble:
    """A method that trains in float64, where the order of a sum hardly matters."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def build(self, *arguments: Any, **options: Any) -> Any:
        return self.method.build(*arguments, **options).double()

    def start(self, sae: Any, sample: Any) -> Any:
        self.run = self.method.start(sae, sample.double()).double()
        return self.run


class InDoubleRows(Rows):
    """Rows served in float64."""

    def batches(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        return (batch.double() for batch in super().batches(*arguments, **options))
