"""The L1 baseline: a ReLU autoencoder whose loss charges for the size of the codes.

Recipe of Bricken et al. (2023), "Towards Monosemanticity": untied weights, unit decoder rows, trained
biases, pre-bias on the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sae_lib.methods.base import Method, Run, Step
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder


@dataclass(frozen=True)
class L1(Method):
    """½‖f(x) − x‖² + coefficient · Σ_m |z_m|, averaged over the batch.

    coefficient: λ of the paper, at least 0.
    centre: start b_pre at the mean of the data and train it; otherwise b_pre stays 0.
    """

    coefficient: float = 0.03
    centre: bool = False
    name: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise ValueError(f"coefficient is {self.coefficient}; expected at least 0")

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """An untied ReLU autoencoder with free encoder rows."""
        return SparseAutoencoder(
            d_in,
            width,
            tied=False,
            free_encoder=True,
            activation="relu",
            normalisation=normalisation,
            seed=seed,
        )

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Run:
        """Turn on the gradients of the biases; centre on the sample if asked to."""
        sae.bias.requires_grad_(True)
        if self.centre:
            sae.centre_(sample)
        return L1Run(self.coefficient)


class L1Run(Run):
    """The loss with its penalty."""

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Reconstruction loss plus penalty on a batch x (B, d); codes are non-negative."""
        projection = sae.project(x)
        codes = sae.gate(projection)
        error = sae.decode(codes) - x
        penalty = self.coefficient * codes.sum(dim=1).mean()
        loss = 0.5 * error.square().sum(dim=1).mean() + penalty
        return Step(loss, projection.detach(), codes.detach(), error.detach())

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """The coefficient, so that logs can be compared."""
        return {"l1_coefficient": self.coefficient}
