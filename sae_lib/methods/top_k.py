"""The TopK baseline with the auxiliary loss for dead latents: Gao et al. (2024), arXiv 2406.04093."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_lib.checks import above_zero, at_least
from sae_lib.kernels import Operations, Support
from sae_lib.methods.base import TIED, Baseline
from sae_lib.methods.trainer import Step, Trainer
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder


@dataclass(frozen=True)
class LargestCodes(Baseline):
    """Common part of TopK, BatchTopK and Matryoshka: k codes a row, auxiliary loss for dead latents."""

    k: float
    dead_after: int = field(
        default=200, kw_only=True,
        metadata={"help": "Steps without firing after which a latent counts as dead."},
    )  # fmt: skip
    aux_coefficient: float = field(
        default=1 / 32, kw_only=True,
        metadata={
            "help": "Weight of the auxiliary loss, in which dead latents model the remaining error; 1/32 in "
            "the source of TopK, 0 turns it off."
        },
    )  # fmt: skip
    tied: bool = field(default=False, kw_only=True, metadata=TIED)

    def __post_init__(self) -> None:
        above_zero(k=self.k)
        at_least(1, " step", dead_after=self.dead_after)
        at_least(0, aux_coefficient=self.aux_coefficient)

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Return an autoencoder of ``kind``; untied encoder rows start equal to the decoder's, free."""
        if self.k > width > 0:
            raise ValueError(f"k is {self.k}; expected at most {width} (the width)")
        return super().build(d_in, width, normalisation=normalisation, seed=seed)

    def kind(self) -> dict[str, Any]:
        """Choose tied or untied; a subclass adds its gate."""
        return {"tied": self.tied, "free_encoder": not self.tied}


@dataclass(frozen=True)
class TopK(LargestCodes):
    """Only the k largest latents of each row fire.

    The auxiliary loss uses the min(d/2, number of dead) strongest dead latents of each row, and their
    loss is divided by the size of the error, as in the source. ``tied`` is for comparison with the paper's
    autoencoder; the source shares no rows.

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> sae, _ = sae_lib.train(data, sae_lib.TopK(k=3), width=128, steps=50, batch_size=128)
        >>> int((sae.encode(data.rows) > 0).sum(dim=1).max())
        3
    """

    k: int = field(default=32, metadata={"help": "Number of latents that fire on a row."})
    name: ClassVar[str] = "topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != int(self.k):
            raise ValueError(f"k is {self.k}; expected a whole number, since every row has its own k codes")

    def kind(self) -> dict[str, Any]:
        """Choose a TopK gate."""
        return super().kind() | {"activation": "topk", "k": self.k}

    @property
    def data_parallel(self) -> bool:
        """True: the rows of a batch can be divided."""
        return True

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> AuxiliaryTrainer:
        """Turn on the gradients of the biases; centre on the sample if asked to."""
        self.prepare(sae, sample)
        return AuxiliaryTrainer(self, sae.width).to(sae.weight.device)


class AuxiliaryTrainer(Trainer):
    """Trainer that tracks when each latent last fired, and adds the auxiliary loss."""

    silent_steps: Tensor
    dead: Tensor

    # steps between two updates of the dead latents; each waits for the device
    REVIEW = 50

    def __init__(self, method: LargestCodes, width: int) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("silent_steps", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("dead", torch.zeros(width, dtype=torch.bool))
        self._any_dead: bool | None = None

    def forward(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Compute reconstruction loss plus auxiliary loss on a batch x (B, d)."""
        step = super().forward(sae, x)
        if self._any_dead is None:
            self._any_dead = bool(self.dead.any())
        if not (self._any_dead and self.method.aux_coefficient):
            return step
        auxiliary = self._auxiliary(sae, x, step.error)
        return step._replace(loss=step.loss + self.method.aux_coefficient * auxiliary)

    def _auxiliary(self, sae: SparseAutoencoder, x: Tensor, error: Tensor) -> Tensor:
        if self.screen is None:
            y = torch.relu(sae.project_normalised(x) + sae.bias) * self.dead
            scale: Tensor = sae.scale
            directions = sae.decoder_rows
        else:
            # the same from the dead latents alone; without a screen all are kept, and with them the old bits
            dead = self.dead.nonzero()[:, 0]
            weight, bias = sae.weight[dead], sae.bias[dead]
            y = torch.relu((x - sae.pre_bias) @ weight.T + bias)
            scale = sae.scale[dead]
            directions = weight if sae.tied else sae.decoder_rows[dead]
        top = y.topk(min(max(sae.d_in // 2, 1), y.shape[1]), dim=1, sorted=False)
        codes = torch.zeros_like(y).scatter(1, top.indices, top.values)
        remaining = (codes * scale) @ directions + error
        # over the full batch: a quotient of two means is no mean over rows
        size = self.world.mean(error.square().sum(dim=1).mean())
        return remaining.square().sum(dim=1).mean() / size.clamp(min=1e-12)

    def has_sparse_pass(self, sae: SparseAutoencoder) -> bool:
        """Return True: the selection needs all pre-activations, the rest of the pass does not."""
        return True

    @torch.no_grad()
    def select(
        self, sae: SparseAutoencoder, backend: Operations, centred: Tensor
    ) -> tuple[None, Support, Tensor]:
        """Select the k largest pre-activations of each row."""
        rows, latents, u = backend.top(centred, sae.weight, sae.bias, int(self.method.k))
        support, order = backend.index(rows, latents, (len(centred), sae.width))
        return None, support, u[order]

    def values(self, sae: SparseAutoencoder, u: Tensor, support: Support) -> Tensor:
        """Return the codes (E,): a row with fewer than k positive pre-activations has fewer codes."""
        return torch.relu(super().values(sae, u, support))

    @torch.no_grad()
    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Reset the clocks of the latents that fired, advance the others, and at times update the dead."""
        fired = step.fired() > 0
        self.silent_steps += 1
        self.silent_steps.masked_fill_(fired, 0)
        if number % self.REVIEW == 0:
            torch.ge(self.silent_steps, self.method.dead_after, out=self.dead)
            self._any_dead = None
