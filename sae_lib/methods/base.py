"""What a way of enforcing sparsity has to provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder


class Step(NamedTuple):
    """One forward pass.

    loss: scalar to differentiate.
    projection: (B, M) u = W (x − b_pre), without gradient.
    codes: (B, M), without gradient.
    error: (B, d) reconstruction minus input, without gradient.
    """

    loss: Tensor
    projection: Tensor
    codes: Tensor
    error: Tensor


class Run(nn.Module):
    """A method at work on one autoencoder.

    Its buffers are its counters, its parameters are trained with those of the autoencoder; checkpoints hold
    both.
    """

    def forward(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """One pass over a batch x (B, d), from the three parts below."""
        projection = sae.project(x)
        codes = self.codes(sae, projection)
        errors = self.errors(sae, codes, x)
        return Step(self.loss(codes, errors), projection.detach(), codes.detach(), errors[-1].detach())

    def codes(self, sae: SparseAutoencoder, projection: Tensor) -> Tensor:
        """Codes z (B, M) while training, from the projection u (B, M); here those of the gate."""
        return sae.gate(projection)

    def errors(self, sae: SparseAutoencoder, codes: Tensor, x: Tensor) -> list[Tensor]:
        """Errors (B, d) that the loss squares. The last is the whole autoencoder's, here the only one."""
        return [sae.decode(codes) - x]

    def loss(self, codes: Tensor, errors: list[Tensor]) -> Tensor:
        """½‖error‖², averaged over the batch and added up over ``errors``: the loss of the paper."""
        first, *others = (0.5 * error.square().sum(dim=1).mean() for error in errors)
        return sum(others, start=first)

    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """What the method does after the optimiser has made its step ``number`` (1, 2, …); here nothing.

        ``step`` is the forward pass of that step, from before the weights moved.
        """

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Extra values for the metrics log, as plain JSON values; none by default."""
        return {}


@dataclass(frozen=True)
class Method(ABC):
    """Settings of one method. Instances are immutable and compare by value."""

    name: ClassVar[str]

    @abstractmethod
    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """A fresh autoencoder of the kind this method trains."""

    @abstractmethod
    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Run:
        """Prepare ``sae`` for training on data like the normalised rows ``sample`` (N, d)."""

    def learning_rate(self, d_in: int) -> float:
        """Peak learning rate used where none is given."""
        return 3e-3

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """What moves ``parameters``; the training loop sets ``lr`` anew before every step."""
        # fused: one pass over the weights instead of five
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def describe(self) -> dict[str, Any]:
        """Name and settings as plain values."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Baseline(Method):
    """What the methods other than bias adaptation share: biases trained by the gradient, free encoder rows.

    centre: start b_pre at the mean of the data and train it; otherwise b_pre stays 0.
    """

    centre: bool = field(default=False, kw_only=True)

    @abstractmethod
    def kind(self) -> dict[str, Any]:
        """Arguments of :class:`SparseAutoencoder` that say what is trained, beginning with ``activation``."""

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Unless ``kind`` differs, untied, with free encoder rows that start equal to the decoder's."""
        kind = {"tied": False, "free_encoder": True} | self.kind()
        return SparseAutoencoder(d_in, width, normalisation=normalisation, seed=seed, **kind)

    def prepare(self, sae: SparseAutoencoder, sample: Tensor) -> None:
        """Turn on the gradients of the biases; centre on the sample (N, d) if asked to."""
        sae.bias.requires_grad_(True)
        if self.centre:
            sae.centre_(sample)
