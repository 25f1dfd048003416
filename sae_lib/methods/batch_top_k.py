"""BatchTopK: Bussmann, Leask & Nanda (2024), arXiv 2412.06410.

TopK gives every row the same number of codes. Here a batch shares its codes, so that a rich row may take
more of them than a poor one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_lib.kernels import Operations, SparseCodes, Support
from sae_lib.methods.top_k import AuxiliaryTrainer, LargestCodes
from sae_lib.methods.trainer import Step
from sae_lib.sae import SparseAutoencoder

# share of a new batch in the running mean of the threshold: about the last hundred batches count
THRESHOLD_RATE = 0.01


def number_of_codes(k: float, n_rows: int) -> int:
    """Return ⌊k·B⌋ for a batch of B rows.

    Raises:
        ValueError: It is 0.
    """
    count = int(k * n_rows)
    if count < 1:
        raise ValueError(
            f"k={k} of a batch of {n_rows} rows is no code at all; expected k of at least 1/{n_rows}"
        )
    return count


def largest_of_batch(y: Tensor, k: float) -> Tensor:
    """Return y (B, M), non-negative, with all but its ⌊k·B⌋ largest entries set to 0.

    Raises:
        ValueError: ⌊k·B⌋ is 0.
    """
    top = y.flatten().topk(number_of_codes(k, len(y)), sorted=False)
    return torch.zeros_like(y).flatten().scatter(0, top.indices, top.values).view_as(y)


@dataclass(frozen=True)
class BatchTopK(LargestCodes):
    """The k·B largest codes of a batch of B rows fire, k a row on average.

    A row alone has no batch, so after training one threshold θ for all latents decides: z = y · 1(y > θ).
    θ is the mean over batches of the smallest code that fired; here a running mean, in which about the last
    hundred batches count and the zero it starts from does not. The source ties no rows.

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> sae, log = sae_lib.train(data, sae_lib.BatchTopK(k=3), width=128, steps=50, batch_size=128)
        >>> log[-1]["l0"], sae.activation
        (3.0, 'threshold')
    """

    k: float = field(
        default=32,
        metadata={"help": "Mean number of latents that fire on a row; need not be a whole number."},
    )
    name: ClassVar[str] = "batch_topk"

    def kind(self) -> dict[str, Any]:
        """Choose a gate with bias and threshold."""
        return super().kind() | {"activation": "threshold"}

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> BatchTopKTrainer:
        """Turn on the gradients of the biases; centre on the sample if asked to."""
        self.prepare(sae, sample)
        return BatchTopKTrainer(self, sae.width).to(sae.weight.device)


class BatchTopKTrainer(AuxiliaryTrainer):
    """Training with codes shared by a batch; tracks the threshold that replaces the sharing afterwards.

    Attributes:
        lowest: Running mean of the smallest positive code of a batch, from 0.
        weight: Sum of the weights in that mean.
    """

    lowest: Tensor
    weight: Tensor

    def __init__(self, method: BatchTopK, width: int) -> None:
        super().__init__(method, width)
        self.register_buffer("lowest", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def codes(self, sae: SparseAutoencoder, projection: Tensor) -> Tensor:
        """Return the largest codes (B, M) of the batch."""
        return largest_of_batch(torch.relu(projection + sae.bias), self.method.k)

    @torch.no_grad()
    def select(
        self, sae: SparseAutoencoder, backend: Operations, centred: Tensor
    ) -> tuple[None, Support, Tensor]:
        """Select the largest pre-activations of the batch."""
        count = number_of_codes(self.method.k, len(centred))
        rows, latents, u = backend.top_of_batch(centred, sae.weight, sae.bias, count)
        support, order = backend.index(rows, latents, (len(centred), sae.width))
        return None, support, u[order]

    @torch.no_grad()
    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Update the dead latents and the threshold."""
        super().after_step(sae, step, number)
        codes = step.codes.values if isinstance(step.codes, SparseCodes) else step.codes
        smallest = codes.where(codes > 0, torch.inf).min().double()
        # a batch without firings is left out; only tensors, so as not to wait for the device
        fired = smallest.isfinite()
        rate = THRESHOLD_RATE * fired
        self.lowest += rate * (smallest.where(fired, 0.0) - self.lowest)
        self.weight += rate * (1 - self.weight)
        assert sae.threshold is not None
        sae.threshold.copy_(self.lowest / self.weight.clamp(min=THRESHOLD_RATE))

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Return the threshold."""
        assert sae.threshold is not None
        return {"threshold": sae.threshold[0].item()}
