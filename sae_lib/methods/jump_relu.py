"""JumpReLU with a trained threshold: Rajamanoharan et al. (2024), "Jumping Ahead", arXiv 2407.14435.

The loss jumps where a threshold crosses a pre-activation, so its gradient is zero almost everywhere. The
*mean* loss over the data has a useful slope, which depends on how many pre-activations lie at the threshold.
A straight-through estimator counts those within half a bandwidth of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sae_lib.checks import at_least
from sae_lib.kernels import Operations, SparseCodes, Support
from sae_lib.methods.base import COEFFICIENT, MomentumFree
from sae_lib.methods.trainer import Step, Trainer
from sae_lib.sae import SparseAutoencoder


class _Jump(torch.autograd.Function):
    """(y (B, M), θ (M,), ε) → codes y · 1(y > θ) and firings 1(y > θ), both (B, M)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        fires = y > threshold
        ctx.save_for_backward(y, threshold, fires)
        ctx.bandwidth = bandwidth
        return torch.where(fires, y, 0.0), fires.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        y, threshold, fires = ctx.saved_tensors
        of_codes, of_firings = gradients
        near = (y - threshold).abs() < ctx.bandwidth / 2
        slope = near * (threshold * of_codes + of_firings)
        return fires * of_codes, -slope.sum_to_size(threshold.shape) / ctx.bandwidth, None


def jump(y: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return codes z = y · 1(y > θ) and firings 1(y > θ), shaped like y, with straight-through gradients.

    With K the indicator of |t| < ½ and ε the bandwidth (equations 11 and 12 of the source)::

        ∂z/∂θ := −(θ/ε) K((y − θ)/ε)     ∂1/∂θ := −(1/ε) K((y − θ)/ε)     ∂z/∂y = 1(y > θ)

    and firings pass no gradient to y.

    Args:
        y: Pre-activations (B, M), or (E,) on a support.
        threshold: θ (M,), at least 0; on a support θ of each entry, (E,).
        bandwidth: ε.
    """
    return cast(tuple[Tensor, Tensor], _Jump.apply(y, threshold, bandwidth))


@dataclass(frozen=True)
class JumpReLU(MomentumFree):
    """½‖f(x) − x‖² + coefficient · L0, averaged over the batch; thresholds trained straight through the jump.

    Trained are log θ (so that θ > 0), the biases and untied weights, by Adam without momentum (β₁ = 0). The
    source has no ½, so its λ is twice ours. It takes bandwidth and threshold 0.001 for inputs of mean squared
    norm 1 and batches of 4,096 rows, and a warm-up of 10,000 steps in runs much longer than ours.

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> method = sae_lib.JumpReLU(coefficient=0.01)
        >>> sae, log = sae_lib.train(data, method, width=128, steps=60, batch_size=128)
        >>> sae.activation, bool((sae.threshold > 0).all())
        ('threshold', True)
    """

    coefficient: float = field(default=0.01, metadata=COEFFICIENT)
    bandwidth: float = field(
        default=0.001,
        metadata={
            "help": "ε of the estimator, in units of the pre-activations, above 0; wider is less noisy and "
            "more biased."
        },
    )
    threshold: float = field(default=0.001, metadata={"help": "θ of every latent at the start, above 0."})
    warmup: int = field(
        default=200, metadata={"help": "Steps over which the coefficient grows from 0 to its value."}
    )
    name: ClassVar[str] = "jumprelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in {"bandwidth": self.bandwidth, "threshold": self.threshold}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; expected a finite number above 0")
        at_least(0, " steps", warmup=self.warmup)

    @property
    def data_parallel(self) -> bool:
        """True: the rows of a batch can be divided."""
        return True

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Trainer:
        """Turn on the gradients of the biases, set the thresholds; centre on the sample if asked to."""
        self.prepare(sae, sample)
        trainer = JumpReLUTrainer(self, sae.width).to(sae.weight.device)
        trainer.publish(sae)
        return trainer


class JumpReLUTrainer(Trainer):
    """Trainer of log θ; the autoencoder receives θ = exp(log θ) after every step.

    Attributes:
        log_threshold: log θ (M,), trained.
        steps: Optimiser steps made, for the warm-up.
    """

    steps: Tensor

    def __init__(self, method: JumpReLU, width: int) -> None:
        super().__init__()
        self.method = method
        self.log_threshold = nn.Parameter(torch.full((width,), math.log(method.threshold)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def dense(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Compute reconstruction loss plus penalty on a batch x (B, d)."""
        projection = sae.project_normalised(x)
        codes, fires = jump(projection + sae.bias, self.log_threshold.exp(), self.method.bandwidth)
        errors = self.errors(sae, codes, x)
        loss = self.loss(codes, errors) + self.coefficient() * fires.sum(dim=1).mean()
        return Step(loss, projection.detach(), codes.detach(), errors[-1].detach())

    def has_sparse_pass(self, sae: SparseAutoencoder) -> bool:
        """Return True: beside the codes the estimator needs only pre-activations next to the threshold."""
        return True

    @torch.no_grad()
    def select(
        self, sae: SparseAutoencoder, backend: Operations, centred: Tensor
    ) -> tuple[Tensor, Support, Tensor]:
        """Select the entries that fire, and those less than half a bandwidth below their threshold."""
        return backend.scan(centred, sae.weight, self.bar(sae))

    def bar(self, sae: SparseAutoencoder) -> Tensor:
        """Return the values (M,) that u must exceed to matter: half a bandwidth below the threshold."""
        return self.log_threshold.exp() - self.method.bandwidth / 2 - sae.bias

    @torch.no_grad()
    def entries(self, sae: SparseAutoencoder, step: Step) -> Tensor:
        """Count all that are selected, which in a wide band are many more than fire."""
        if step.projection is None:
            assert isinstance(step.codes, SparseCodes)
            return self.density.new_tensor(len(step.codes.support))
        return (step.projection > self.bar(sae)).sum()

    def sparse(self, sae: SparseAutoencoder, x: Tensor, backend: Operations | None = None) -> Step:
        """Make the same pass from the selected entries."""
        sparse_pass, u, peak = self.begin_pass(sae, x, backend)
        threshold = sparse_pass.support.at_latents(self.log_threshold.exp())
        values, fires = jump(self.values(sae, u, sparse_pass.support), threshold, self.method.bandwidth)
        codes = SparseCodes(values, sparse_pass.support)
        errors = self.sparse_errors(sae, sparse_pass, codes, x)
        loss = self.loss(codes, errors) + self.coefficient() * fires.sum() / len(x)
        return Step(loss, None, codes.detach(), errors[-1].detach(), peak)

    def coefficient(self) -> float | Tensor:
        """Return λ of the next step."""
        if not self.method.warmup:
            return self.method.coefficient
        # stays a tensor: reading the counter would wait for the device at every step
        return self.method.coefficient * ((self.steps + 1) / self.method.warmup).clamp(max=1.0)

    @torch.no_grad()
    def publish(self, sae: SparseAutoencoder) -> None:
        """Give the autoencoder the present thresholds."""
        assert sae.threshold is not None
        sae.threshold.copy_(self.log_threshold.exp())

    @torch.no_grad()
    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Publish the thresholds and count the step."""
        self.publish(sae)
        self.steps += 1

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Return the mean threshold."""
        return {"threshold": self.log_threshold.detach().exp().mean().item()}
