"""Modified bias adaptation: the simplified dynamics that the paper's theorem is about (paper, section 4).

Published in summary: one group of latents, unit weights w_m, no centre, output scale a → 0, spherical
gradient descent. As a → 0 the loss ½‖f(x) − x‖² is a constant minus a · Σ_m J(w_m) + O(a²) with

    J(w) = E[φ(y) w·x],   ∇J(w) = E[φ(y) x + φ'(y) (w·x) x],

so latents do not feel each other, and each moves by w ← ∇J / ‖∇J‖.

What we take. The paper gates with a smooth ReLU and a fixed bias, chosen for a firing rate; we use the
library's JumpReLU, φ = u · 1(u > t), and put t at the quantile at which the latent fires on a share p of
the batch. Then J(w) = E[u²; the share p of rows with the largest u > 0] and ∇J = 2 E[z x] with z the code.
This is exact, the moving quantile included: J is a maximum over sets of rows, and at a maximum the set's
own movement does not count. J is also convex, so on a fixed batch no step can lower it (the generalised
power method of Journée, Nesterov, Richtárik and Sepulchre, 2010).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from sae_lib.checks import fraction
from sae_lib.methods.base import Method
from sae_lib.methods.trainer import Step, Trainer
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder

# projections held at a time by gated_gradient, in numbers: 64 MiB of float32
BLOCK = 2**24


# Rows k of a batch on which a latent has to fire. Its new direction is their mean, in which the s − 1 other
# features of each row average out only as 1/√k: the cosine with the feature is about 1/√(1 + (s − 1)/k).
# Share of 200 features recovered at cosine 0.9 (d = 100, s = 4, 1,000 latents, 20 steps, three seeds):
#     k         2.6   5    10         20         30         80
#     p = f/4   .00  .00  .17 to .19  .93 to .94  .95 to .98  .96 to .99
#     p = f/2   .00  .00  .12 to .14  .86 to .93  .92 to .95  .94 to .96
# At n = 400 it also takes 20 (.01 with 10, .64 with 20); at s = 2 fewer do (.81 with 5), but nobody tells s.
LEAST, DEFAULT = 20, 80


def rows_to_fire(target_frequency: float, n_rows: int) -> int:
    """Return on how many of ``n_rows`` rows a latent fires: p · N to the nearest whole number, at least 1.

    Raises:
        ValueError: It rounds to 0.
    """
    count = round(target_frequency * n_rows)
    if count < 1:
        raise ValueError(
            f"target_frequency={target_frequency:g} of {n_rows} rows is less than one row; "
            f"take at least {round(1 / target_frequency)} rows a batch, or a higher target"
        )
    return count


def _fire(projection: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean of z x (M, d) and threshold (M,), from projections (M, N) of the rows (N, d)."""
    n_rows = len(rows)
    # a partial selection, much cheaper than sorting when few rows fire
    top = projection.topk(min(count + 1, n_rows), dim=1)
    last, following = top.values[:, count - 1], top.values[:, -1]
    # halfway to the next row, so that rounding cannot change who fires
    threshold = ((last + following) / 2).clamp(min=0.0) if count < n_rows else torch.zeros_like(last)
    codes = top.values[:, :count].clamp(min=0.0)
    # adds up the few rows that fire instead of multiplying with all of them
    total = embedding_bag(top.indices[:, :count], rows, per_sample_weights=codes, mode="sum")
    return total / n_rows, threshold


@torch.no_grad()
def gated_gradient(weight: Tensor, rows: Tensor, target_frequency: float) -> tuple[Tensor, Tensor]:
    """Return E[z x] for each latent, half of ∇J, and the gate's threshold; at most 2^24 projections are held.

    Args:
        weight: Directions (M, d).
        rows: All rows (N, d) of the batch.
        target_frequency: p; a latent fires on the ``round(p N)`` rows with its largest positive projections.

    Returns:
        The mean of z x (M, d), and thresholds (M,) ≥ 0 with z = u where u > threshold.

    Raises:
        ValueError: p N rounds to 0.
    """
    count = rows_to_fire(target_frequency, len(rows))
    blocks = [_fire(block @ rows.T, rows, count) for block in weight.split(max(1, BLOCK // len(rows)))]
    gradients, thresholds = zip(*blocks, strict=True)
    return torch.cat(gradients), torch.cat(thresholds)


class SphericalStep(torch.optim.Optimizer):
    """w ← −grad / ‖grad‖, row by row. It has no step size (``lr`` is ignored) and no state."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Replace every row (…, d) by minus the direction of its gradient; rows without gradient stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                length = parameter.grad.norm(dim=1, keepdim=True)
                parameter.copy_(torch.where(length > 0, -parameter.grad / length, parameter))


@dataclass(frozen=True)
class ModifiedBiasAdaptation(Method):
    """One group, a gate at a fixed firing quantile, and full spherical gradient steps.

    >>> data = sae_lib.synthetic.uniform(n_features=32, d_in=32, sparsity=2, n_rows=2000)
    >>> method = sae_lib.ModifiedBiasAdaptation(target_frequency=0.03)
    >>> sae, log = sae_lib.train(data, method, width=256, steps=20)
    >>> sae_lib.metrics.feature_recovery_rate(sae, data.dictionary) > 0.9
    True

    Twenty large batches are enough. By default a batch has 80/p rows, or all rows if there are fewer; below
    20/p directions would be noise, and training is refused. The learning rate has no effect, weight decay is
    refused. Output scales stay at 1/M, a stand-in for a → 0: this method finds directions and does not learn
    to rebuild its input, and the NMSE of its log is 1.
    """

    target_frequency: float = field(
        default=0.005,
        metadata={
            "help": "Share p of each batch on which a latent fires, 0 < p ≤ 1; never more than the rows with "
            "a positive projection, about half."
        },
    )
    name: ClassVar[str] = "modified_ba"

    def __post_init__(self) -> None:
        fraction(target_frequency=self.target_frequency)

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Return a tied autoencoder with a JumpReLU gate; only its directions are trained."""
        sae = SparseAutoencoder(d_in, width, normalisation=normalisation, seed=seed)
        sae.scale.requires_grad_(False).fill_(1 / width)
        return sae

    def batch_size(self, chosen: int | None, n_rows: int | None) -> int:
        """Return the rows of a batch: as chosen, or 80/p, but no more than there are.

        Raises:
            ValueError: Fewer than 20/p.
        """
        p = self.target_frequency
        least, rows = math.ceil(LEAST / p), chosen
        if rows is None:
            rows = min(math.ceil(DEFAULT / p), n_rows or sys.maxsize)
        if rows < least:
            has = f"the data have {rows} rows" if chosen is None else f"batch_size is {rows}"
            raise ValueError(
                f"{has}, and with target_frequency={p:g} a latent fires on {p * rows:.3g} rows of a batch, "
                f"too few to find a direction; expected {LEAST}, that is, at least {least} rows a batch, "
                "or a higher target_frequency"
            )
        return rows

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return full spherical steps; ValueError for weight decay."""
        if weight_decay:
            raise ValueError(
                f"weight_decay is {weight_decay}; weights on the sphere cannot decay, expected 0"
            )
        return SphericalStep(parameters, lr)

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> ResonanceTrainer:
        """Return a trainer. There is nothing to prepare, as the gate is set from every batch."""
        return ResonanceTrainer(self.target_frequency).to(sae.weight.device)


class ResonanceTrainer(Trainer):
    """Gate at the quantile of each batch; −Σ_m J(w_m) as the loss."""

    def __init__(self, target_frequency: float) -> None:
        super().__init__()
        self.target_frequency = target_frequency

    def forward(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Return the part of the loss that is linear in a, on x (B, d). ``error`` is −x, as f(x) → 0."""
        with torch.no_grad():
            u = sae.weight @ x.T
            gradient, threshold = _fire(u, x, rows_to_fire(self.target_frequency, len(x)))
            codes = torch.where(u > threshold[:, None], u, 0.0)
            objective = (sae.weight * gradient).sum()
        # value −ΣJ and gradient −∇J, without sending autograd through the selection
        loss = objective - 2 * (sae.weight * gradient).sum()
        return Step(loss, u.T, codes.T, -x)

    @torch.no_grad()
    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Set the biases for the weights as they are now, on the batch of this step."""
        _, threshold = gated_gradient(sae.weight, -step.error, self.target_frequency)
        sae.bias.copy_(-threshold)

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Return the mean bias."""
        return {"mean_bias": sae.bias.mean().item()}
