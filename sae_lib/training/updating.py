"""What follows a forward pass: gradients, the step of the optimiser, rows brought back to unit norm."""

from __future__ import annotations

from collections.abc import Set
from typing import cast

import torch
from torch import Tensor, nn

from sae_lib import kernels
from sae_lib.distributed import ALONE, World
from sae_lib.methods.trainer import Trainer
from sae_lib.sae import SparseAutoencoder
from sae_lib.training.sharding import reduce_gradients


class Update:
    """The updates of one run.

    In a screened step of a process by itself, encoder and decoder rows are stepped by ``kernels.adam`` from
    sums over entries; everything else by the optimiser.

    Args:
        sae: Autoencoder in training.
        trainer: Its trainer.
        optimiser: Optimiser of the parameters of both.
        world: Processes that train together.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        trainer: Trainer,
        optimiser: torch.optim.Optimizer,
        world: World = ALONE,
    ) -> None:
        self.sae, self.trainer, self.optimiser, self.world = sae, trainer, optimiser, world
        self.parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self.parts = cast("list[Trainer]", list(trainer.modules()))
        self.sums: list[tuple[Tensor, kernels.RowSum]] = []
        if world.size == 1 and _is_adamw(optimiser):
            for part in self.parts:
                part.sums = self.sums

    def __call__(self, loss: Tensor) -> None:
        """Update all parameters by the gradient of a loss."""
        self.optimiser.zero_grad()
        self.world.share(loss).backward()
        reduce_gradients(self.world, self.parameters)
        stepped = self._step_sums() if self.sums else frozenset()
        # parameters stepped already have no gradient any more, and are left alone
        self.optimiser.step()
        self.sae.unit_rows_([rows for rows in self.sae.unit_rows if id(rows) not in stepped])

    def _step_sums(self) -> Set[int]:
        """Step the parameters that have sums for a gradient; return their identities."""
        from sae_lib.kernels import adam

        by_parameter: dict[int, tuple[Tensor, list[kernels.RowSum]]] = {}
        for parameter, part in self.sums:
            by_parameter.setdefault(id(parameter), (parameter, []))[1].append(part)
        self.sums.clear()
        unit = {id(rows) for rows in self.sae.unit_rows}
        for key, (parameter, sums) in by_parameter.items():
            screens = [part.screen for part in self.parts if part.screen is not None]
            rounded = next((copy for screen in screens if (copy := screen.kept(parameter))), None)
            adam.step(self.optimiser, cast(nn.Parameter, parameter), sums, unit=key in unit, rounded=rounded)
        return by_parameter.keys()


def _is_adamw(optimiser: torch.optim.Optimizer) -> bool:
    """Return whether ``kernels.adam`` makes the same steps."""
    return type(optimiser) is torch.optim.AdamW and not any(
        group["amsgrad"] or group["maximize"] for group in optimiser.param_groups
    )
