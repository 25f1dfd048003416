"""The gated autoencoder: Rajamanoharan et al. (2024), arXiv 2404.16014.

One path decides whether a latent fires and is penalised for it; the other sets how strongly, without penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sae_lib import kernels
from sae_lib.kernels import Operations, SparseCodes
from sae_lib.methods.base import MomentumFree
from sae_lib.methods.trainer import Step, Trainer
from sae_lib.sae import SparseAutoencoder


@dataclass(frozen=True)
class Gated(MomentumFree):
    """½‖f(x) − x‖² + coefficient · Σ_m relu(π_m) + ½‖f_gate(x) − x‖², averaged over the batch.

    With u = W_gate (x − b_pre): the gate is π = u + b_gate, the magnitude y = exp(r) u + b_mag, the code
    z = relu(y) · 1(π > 0). The step has no slope, so the gate learns from the two other terms: the penalty,
    and f_gate, which decodes relu(π) with a frozen copy of the decoder.

    The source has no ½, so its λ is twice ours. Encoder and decoder are untied and start equal; Adam without
    momentum (β₁ = 0). The source also resamples dead latents; this does not.

    The result equals an autoencoder with bias and threshold (appendix of the source), and is stored as one:
    W = exp(r) W_gate, b = b_mag, θ = max(0, b_mag − exp(r) b_gate).

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> method = sae_lib.Gated(coefficient=0.03)
        >>> sae, log = sae_lib.train(data, method, width=128, steps=60, batch_size=128)
        >>> sae.activation, log[-1]["nmse"] < log[0]["nmse"]
        ('threshold', True)
    """

    name: ClassVar[str] = "gated"

    @property
    def data_parallel(self) -> bool:
        """True: the rows of a batch can be divided."""
        return True

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Trainer:
        """Hand the encoder over to the two paths; centre on the sample if asked to."""
        sae.weight.requires_grad_(False)
        self.prepare(sae, sample)
        trainer = GatedTrainer(self, sae).to(sae.weight.device)
        trainer.fold(sae)
        return trainer


class GatedTrainer(Trainer):
    """Trainer of the two paths, folded into the autoencoder after every step.

    The magnitude's bias b_mag is the bias of the autoencoder.

    Attributes:
        gate_weight: W_gate (M, d).
        log_ratio: r (M,), the logarithm of magnitude row over gate row.
        gate_bias: b_gate (M,).
    """

    def __init__(self, method: Gated, sae: SparseAutoencoder) -> None:
        super().__init__()
        self.method = method
        self.gate_weight = nn.Parameter(sae.weight.detach().clone())
        self.log_ratio = nn.Parameter(torch.zeros(sae.width))
        self.gate_bias = nn.Parameter(torch.zeros(sae.width))

    def has_sparse_pass(self, sae: SparseAutoencoder) -> bool:
        """Return True: all terms vanish where the gate is closed."""
        return True

    @torch.no_grad()
    def entries(self, sae: SparseAutoencoder, step: Step) -> Tensor:
        """Count the open gates, of which some have no magnitude."""
        if step.projection is None:
            assert isinstance(step.codes, SparseCodes)
            return self.density.new_tensor(len(step.codes.support))
        return (step.projection > -self.log_ratio.exp() * self.gate_bias).sum()

    def sparse(self, sae: SparseAutoencoder, x: Tensor, backend: Operations | None = None) -> Step:
        """Make the same pass from the open gates."""
        backend = backend or kernels.backend(x.device)
        centred = x - sae.pre_bias.detach()
        with torch.no_grad():
            _, support, u = backend.scan(centred, self.gate_weight, -self.gate_bias)
        sums = self.sums if backend is self.screen else None
        sparse_pass = kernels.Pass(backend, support, tied=False, sums=sums)
        u = sparse_pass.encode(u, centred, self.gate_weight, sae.pre_bias)
        open_gate = u + support.at_latents(self.gate_bias)
        values = torch.relu(support.at_latents(self.log_ratio.exp()) * u + support.at_latents(sae.bias))
        codes = SparseCodes(values, support)
        (error,) = self.sparse_errors(sae, sparse_pass, codes, x)
        frozen = sae.decoder_rows.detach()
        via_gate = sparse_pass.decode(open_gate * support.at_latents(sae.scale.detach()), frozen)
        error_of_gate = via_gate + (sae.pre_bias.detach() - x)
        loss = (
            self.loss(codes, [error, error_of_gate])
            + self.method.coefficient * SparseCodes(open_gate, support).sum(dim=1).mean()
        )
        return Step(loss, None, codes.detach(), error.detach())

    def dense(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Compute the three terms of the loss on a batch x (B, d)."""
        u = torch.nn.functional.linear(x, self.gate_weight, -(self.gate_weight @ sae.pre_bias))
        projection = self.log_ratio.exp() * u
        gate = u + self.gate_bias
        codes = torch.relu(projection + sae.bias) * (gate > 0)
        error = sae.decode_normalised(codes) - x
        open_gate = torch.relu(gate)
        # a frozen decoder: the gate has to fit it, not the other way round
        via_gate = open_gate * sae.scale.detach() @ sae.decoder_rows.detach() + sae.pre_bias.detach()
        loss = (
            0.5 * error.square().sum(dim=1).mean()
            + self.method.coefficient * open_gate.sum(dim=1).mean()
            + 0.5 * (via_gate - x).square().sum(dim=1).mean()
        )
        return Step(loss, projection.detach(), codes.detach(), error.detach())

    @torch.no_grad()
    def fold(self, sae: SparseAutoencoder) -> None:
        """Write the two paths as one encoder with bias and threshold."""
        assert sae.threshold is not None
        ratio = self.log_ratio.exp()
        sae.weight.copy_(ratio[:, None] * self.gate_weight)
        sae.threshold.copy_((sae.bias - ratio * self.gate_bias).clamp(min=0.0))

    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Fold the two paths."""
        self.fold(sae)
