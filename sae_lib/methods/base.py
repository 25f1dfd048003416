"""Interface of a way of enforcing sparsity: its settings."""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import Field, asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae_lib.methods.trainer import Trainer
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder

# metadata of the fields that several methods have
CENTRE = {"help": "Start b_pre at the mean of the data and train it; otherwise b_pre stays 0."}
COEFFICIENT = {"help": "λ, the weight of the penalty, at least 0."}
TIED = {"help": "Share encoder and decoder rows."}


def adamw(
    parameters: list[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """Return AdamW whose decay acts on rows of weights (M, d), not on biases, scales and thresholds (M,)."""
    # neighbours of a kind together, so that parameters keep their numbers in a checkpoint
    groups = [
        {"params": list(part), "weight_decay": weight_decay if rows else 0.0}
        for rows, part in itertools.groupby(parameters, key=lambda parameter: parameter.ndim > 1)
    ]
    # fused: one pass over the weights instead of five
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


@dataclass(frozen=True)
class Method(ABC):
    """Settings of one method. Instances are immutable and compare by value.

    Each setting is a field whose metadata hold its description, ``field(default=…, metadata={"help": "…"})``:
    the source of ``sae train --help``, of the reference and of the class's docstring.
    """

    name: ClassVar[str]
    # description of each setting, inherited ones first
    helps: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Append the settings to the docstring."""
        super().__init_subclass__(**options)
        fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        cls.helps = cls.helps | {
            name: f.metadata["help"] for name, f in fields.items() if "help" in f.metadata
        }
        if cls.__doc__ and cls.helps:
            entries = [f"    {name}: {text}" for name, text in cls.helps.items()]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *entries])

    @abstractmethod
    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Return a new autoencoder of the kind that this method trains."""

    @abstractmethod
    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Trainer:
        """Prepare ``sae`` for training on data like the normalised rows ``sample`` (N, d)."""

    def learning_rate(self, d_in: int) -> float:
        """Return the default peak learning rate."""
        return 3e-3

    def batch_size(self, chosen: int | None, n_rows: int | None) -> int:
        """Return the rows of a batch: as chosen, or 512.

        Args:
            chosen: By the caller; None for the default.
            n_rows: Rows of the data; None where they have no end.

        Raises:
            ValueError: The method cannot work with the choice.
        """
        return 512 if chosen is None else chosen

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return the optimiser, :func:`adamw`. The training loop sets ``lr`` before every step."""
        return adamw(parameters, lr, weight_decay)

    @property
    def data_parallel(self) -> bool:
        """Whether several processes may divide the rows of a batch; by default not.

        They may if loss and gradient are means over rows, and ``after_step`` sees the rows only through the
        :class:`Step`.
        """
        return False

    def describe(self) -> dict[str, Any]:
        """Return name and settings as plain values."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Baseline(Method):
    """Common part of the other methods: biases trained by the gradient, free encoder rows."""

    centre: bool = field(default=False, kw_only=True, metadata=CENTRE)

    @abstractmethod
    def kind(self) -> dict[str, Any]:
        """Return arguments of :class:`SparseAutoencoder` that set what is trained, ``activation`` first."""

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Build it untied, unless ``kind`` differs; free encoder rows start equal to the decoder's."""
        kind = {"tied": False, "free_encoder": True} | self.kind()
        return SparseAutoencoder(d_in, width, normalisation=normalisation, seed=seed, **kind)

    def prepare(self, sae: SparseAutoencoder, sample: Tensor) -> None:
        """Turn on the gradients of the biases; centre on the sample (N, d) if asked to."""
        sae.bias.requires_grad_(True)
        if self.centre:
            sae.centre_(sample)


@dataclass(frozen=True)
class Penalised(Baseline):
    """Common part of the baselines with a penalty: its coefficient."""

    coefficient: float = field(default=0.03, metadata=COEFFICIENT)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient >= 0):
            raise ValueError(f"coefficient is {self.coefficient}; expected a finite number, at least 0")


class MomentumFree(Penalised):
    """Common part of JumpReLU and the gated autoencoder: bias and threshold apart, Adam without momentum."""

    def kind(self) -> dict[str, Any]:
        """Choose a gate with bias and threshold."""
        return {"activation": "threshold"}

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return AdamW with β₁ = 0, β₂ = 0.999, as both were published."""
        return adamw(parameters, lr, weight_decay, betas=(0.0, 0.999))
