"""Sources of training rows: the interface, and rows in memory."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_lib.checks import bad_row
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator


@runtime_checkable
class BatchSource(Protocol):
    """Anything that provides training batches.

    Batch number ``i`` depends on ``(batch_size, seed, i)`` alone. So the position in the data is a single
    integer, and training resumes bit for bit.
    """

    @property
    def d_in(self) -> int:
        """Dimension d of a row."""

    @property
    def normalisation(self) -> Normalisation:
        """Scaling that has been applied to the rows."""

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield normalised float32 batches (batch_size, d_in) without end, starting at number ``start``.

        It may also take ``part``, a slice: processes that share a batch then ask only for their rows of it.
        """

    def describe(self) -> dict[str, Any]:
        """Describe the origin of the rows as plain JSON values, which are stored with every autoencoder."""


class Rows:
    """Rows in memory, reshuffled every pass.

    >>> rows = sae_lib.Rows(torch.randn(100, 8), sae_lib.Normalisation("unit"))
    >>> batch = next(rows.batches(10, seed=0))
    >>> batch.shape, bool(torch.allclose(batch.norm(dim=1), torch.ones(10)))
    (torch.Size([10, 8]), True)

    Args:
        rows: (N, d_in), finite; kept as float32.
        normalisation: Applied once, to these rows.

    Raises:
        ValueError: The rows have another shape, or hold NaN or infinity.
    """

    def __init__(self, rows: Tensor, normalisation: Normalisation | None = None) -> None:
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"rows have shape {tuple(rows.shape)}; expected (N, d_in), both at least 1")
        if (bad := bad_row(rows)) is not None:
            raise ValueError(f"row {bad} holds NaN or infinity; remove such rows before training")
        self.normalisation = normalisation or Normalisation()
        self.rows = self.normalisation.apply(rows.float())
        self.d_in = rows.shape[1]

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield batches (batch_size, d_in) without end; see :class:`BatchSource`.

        Each pass draws a new order and drops the rows that do not fill a batch.
        """
        per_epoch = len(self.rows) // batch_size
        if per_epoch == 0:
            raise ValueError(f"batch size {batch_size} exceeds the {len(self.rows)} rows; lower it")
        epoch, position = divmod(start, per_epoch)
        while True:
            order = torch.randperm(len(self.rows), generator=generator(seed, "order", epoch))
            for i in range(position, per_epoch):
                yield self.rows[order[i * batch_size : (i + 1) * batch_size]]
            epoch, position = epoch + 1, 0

    def describe(self) -> dict[str, Any]:
        """Describe the shape of the rows."""
        return {"source": "rows in memory", "n_rows": len(self.rows), "d_in": self.d_in}
