"""The L1 baseline: a ReLU autoencoder whose loss penalises the size of the codes.

Recipe of Bricken et al. (2023), "Towards Monosemanticity": untied weights, unit decoder rows, trained
biases, pre-bias on the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sae_lib.kernels import SparseCodes
from sae_lib.methods.base import Penalised
from sae_lib.methods.trainer import Trainer
from sae_lib.sae import SparseAutoencoder


@dataclass(frozen=True)
class L1(Penalised):
    """½‖f(x) − x‖² + coefficient · Σ_m |z_m|, averaged over the batch.

    The coefficient is λ of the paper.

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> settings = {"width": 128, "steps": 60, "batch_size": 128}
        >>> runs = [sae_lib.train(data, sae_lib.L1(weight), **settings)[0] for weight in (0.001, 0.1)]
        >>> dense, sparse = (sae_lib.metrics.reconstruction(sae, data.rows).l0 for sae in runs)
        >>> sparse < dense
        True
    """

    name: ClassVar[str] = "l1"

    def kind(self) -> dict[str, Any]:
        """Choose a ReLU gate."""
        return {"activation": "relu"}

    @property
    def data_parallel(self) -> bool:
        """True: the rows of a batch can be divided."""
        return True

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Trainer:
        """Turn on the gradients of the biases; centre on the sample if asked to."""
        self.prepare(sae, sample)
        return L1Trainer(self.coefficient).to(sae.weight.device)


class L1Trainer(Trainer):
    """Trainer whose loss has the penalty."""

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def has_sparse_pass(self, sae: SparseAutoencoder) -> bool:
        """Return True: late in training few codes are nonzero."""
        return True

    def loss(self, codes: Tensor | SparseCodes, errors: list[Tensor]) -> Tensor:
        """Return reconstruction loss plus penalty; codes are non-negative."""
        return super().loss(codes, errors) + self.coefficient * codes.sum(dim=1).mean()

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Return the coefficient, so that logs can be compared."""
        return {"l1_coefficient": self.coefficient}
