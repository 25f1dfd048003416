"""What the sparse step asks of a backend."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sae_lib.kernels.sparse_codes import Support


class Operations(Protocol):
    """Operations of the sparse step, described in :mod:`sae_lib.kernels.reference`.

    A module with these functions has them, as has a :class:`sae_lib.kernels.screen.Screen`.
    """

    def scan(self, x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Support, Tensor]:
        """Multiply and gate."""

    def top(self, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Multiply and select the k largest of each row."""

    def top_of_batch(
        self, x: Tensor, weight: Tensor, bias: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Multiply and select the largest of all rows together."""

    def index(self, rows: Tensor, latents: Tensor, shape: tuple[int, int]) -> tuple[Support, Tensor]:
        """Build the support of entries."""

    def decode(self, values: Tensor, support: Support, directions: Tensor) -> Tensor:
        """Add up the directions of each row's entries."""

    def dots(self, errors: Tensor, support: Support, directions: Tensor) -> Tensor:
        """Multiply each entry's row of errors with its direction."""

    def accumulate(self, values: Tensor, support: Support, vectors: Tensor, out: Tensor) -> None:
        """Add up the vectors of each latent's entries."""
