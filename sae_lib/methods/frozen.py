"""Frozen baselines: an autoencoder with a part that stays at its random start.

From "Sanity checks for sparse autoencoders" (2026), arXiv 2602.14111: if a method with random directions
scores as well as one that trains them, the score says nothing about the directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae_lib.checks import fraction, one_of
from sae_lib.methods.base import Method
from sae_lib.methods.trainer import Step, Trainer
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder

PARTS = ("decoder", "encoder", "soft decoder")


def project_to_cap(rows: Tensor, centres: Tensor, cosine: float) -> Tensor:
    """Return, for each row, the nearest unit row whose cosine with its centre is at least ``cosine``.

    A row inside its cap is unchanged. Another moves along the great circle through its centre::

        c · centre + √(1 − c²) · t,   t the unit direction of row − ⟨row, centre⟩ centre

    A row opposite its centre is equally near to all of the rim; it moves towards the coordinate axis that is
    least aligned with the centre.

    Args:
        rows: Unit rows (M, d).
        centres: Unit rows (M, d).
        cosine: c, −1 ≤ c ≤ 1.
    """
    along = (rows * centres).sum(dim=1, keepdim=True)
    tangent = rows - along * centres
    axis = torch.zeros_like(centres).scatter(1, centres.abs().argmin(dim=1, keepdim=True), 1.0)
    fallback = axis - (axis * centres).sum(dim=1, keepdim=True) * centres
    # next to the opposite pole the tangent consists of rounding errors
    defined = tangent.norm(dim=1, keepdim=True) > 16 * torch.finfo(rows.dtype).eps
    direction = normalize(torch.where(defined, tangent, fallback), dim=1)
    rim = normalize(cosine * centres + math.sqrt(1 - cosine**2) * direction, dim=1)
    return torch.where(along >= cosine, rows, rim)


@dataclass(frozen=True)
class Frozen(Method):
    """Another method with a part of the autoencoder held at its random start; everything else is trained.

    A tied autoencoder has one set of rows: freezing its decoder freezes its encoder, and all that is left
    to train are biases and output scales. A frozen encoder has unit rows, so the output scales are trained in
    their place.

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> method = sae_lib.Frozen(sae_lib.TopK(k=3))
        >>> sae, _ = sae_lib.train(data, method, width=128, steps=20, batch_size=128)
        >>> start = method.build(data.d_in, 128, normalisation=data.normalisation, seed=0)
        >>> bool((sae.decoder_rows == start.decoder_rows).all()), bool((sae.weight == start.weight).all())
        (True, False)
    """

    base: Method = field(metadata={"help": "The other method."})
    part: str = field(
        default="decoder",
        metadata={
            "help": '"decoder" keeps the decoder rows, bit for bit; "encoder" the encoder rows; "soft '
            'decoder" lets a decoder row move no further from its start than the cosine.'
        },
    )
    cosine: float = field(
        default=0.8,
        metadata={"help": "Bound of the soft decoder, 0.8 in the source; the other parts ignore it."},
    )
    name: ClassVar[str] = "frozen"

    def __post_init__(self) -> None:
        if not isinstance(self.base, Method):
            raise ValueError(f"base is {self.base!r}; expected a method, such as TopK(k=8)")
        one_of("part", self.part, PARTS)
        fraction(cosine=self.cosine)

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Return the autoencoder of the base method."""
        sae = self.base.build(d_in, width, normalisation=normalisation, seed=seed)
        if self.part == "encoder" and sae.tied:
            raise ValueError(
                f"a frozen encoder needs a decoder of its own; method {self.base.name} is tied here, "
                "expected tied=False"
            )
        return sae

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> FrozenTrainer:
        """Start the base method, then exclude the frozen rows from the gradient."""
        trainer = self.base.start(sae, sample)
        rows = self.rows(sae)
        if not rows.requires_grad:
            raise ValueError(
                f"method {self.base.name} does not train its {self.part} rows by gradient, "
                "so they cannot be frozen here; freeze another part"
            )
        if self.part != "soft decoder":
            rows.requires_grad_(False)
            if self.part == "encoder":
                sae.scale.requires_grad_(True)
            if not any(p.requires_grad for p in (*sae.parameters(), *trainer.parameters())):
                raise ValueError(
                    f"method {self.base.name} trains nothing but its {self.part}; nothing is left"
                )
        return FrozenTrainer(self, trainer, rows).to(rows.device)

    def rows(self, sae: SparseAutoencoder) -> nn.Parameter:
        """Return the rows (M, d) that are held."""
        return sae.weight if self.part == "encoder" or sae.decoder is None else sae.decoder

    def learning_rate(self, d_in: int) -> float:
        """Return the rate of the base method."""
        return self.base.learning_rate(d_in)

    def batch_size(self, chosen: int | None, n_rows: int | None) -> int:
        """Return the rows of a batch of the base method."""
        return self.base.batch_size(chosen, n_rows)

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return the optimiser of the base method."""
        return self.base.optimiser(parameters, lr, weight_decay)

    @property
    def data_parallel(self) -> bool:
        """As for the base method."""
        return self.base.data_parallel

    def describe(self) -> dict[str, Any]:
        """Return name, part, and the base method's name and settings."""
        soft = {"cosine": self.cosine} if self.part == "soft decoder" else {}
        return {"name": self.name, "part": self.part, **soft, "base": self.base.describe()}


class FrozenTrainer(Trainer):
    """Trainer of the base method that puts the rows back after every step."""

    rows: Tensor

    def __init__(self, method: Frozen, base: Trainer, rows: Tensor) -> None:
        super().__init__()
        self.method, self.base = method, base
        # not in checkpoints: the seed gives them again
        self.register_buffer("rows", rows.detach().clone(), persistent=False)

    def forward(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Make the pass of the base method."""
        step: Step = self.base(sae, x)
        return step

    @torch.no_grad()
    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Do what the base method does, then put the rows back."""
        self.base.after_step(sae, step, number)
        held = self.method.rows(sae)
        # also when frozen: bringing rows to unit norm may change their last bit
        soft = self.method.part == "soft decoder"
        held.copy_(project_to_cap(held, self.rows, self.method.cosine) if soft else self.rows)

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Return those of the base method and the mean cosine of the held rows with their start."""
        cosine = (self.method.rows(sae).detach() * self.rows).sum(dim=1).mean()
        return self.base.metrics(sae) | {"cosine_to_start": cosine.item()}
