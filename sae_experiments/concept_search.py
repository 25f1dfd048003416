"""Which latent stands for a concept: a search, and its score on other text.

A search scored on the rows it searched finds something everywhere. So the latent is chosen on one half of the
documents and scored on the other, and the search has to be repeated where there is nothing to find
(:mod:`sae_lib.metrics.nulls`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lib.metrics.nulls import label_permutation_null


def phi(labels: Tensor, fired: Tensor) -> Tensor:
    """Return the correlations φ (F, M), float64, of concepts (N, F) and latents (N, M), both bool.

    φ is Pearson's correlation of two binaries: 1 if they agree on every row, 0 if they have nothing to do
    with each other, *whatever their frequencies*; F1 would be high for a frequent concept and a busy latent.
    0 where one of them never changes.

    Raises:
        ValueError: Shapes do not match, or there are no rows.
    """
    if labels.ndim != 2 or fired.ndim != 2 or len(labels) != len(fired) or len(labels) == 0:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, firings {tuple(fired.shape)}; "
            "expected (N, F) and (N, M) of the same N rows, at least 1"
        )
    n = len(labels)
    # counts below 2^24 are exact in float32
    both = (labels.float().T @ fired.float()).double()
    yes, active = labels.double().sum(dim=0)[:, None], fired.double().sum(dim=0)[None]
    spread = (yes * (n - yes) * active * (n - active)).sqrt()
    return torch.where(spread > 0, (n * both - yes * active) / spread.clamp(min=1), 0.0)


@dataclass(frozen=True)
class BestLatents:
    """The best latent of each of F concepts (F,), φ where it was chosen (F,), φ on other text (F,)."""

    latent: Tensor
    chosen: Tensor
    score: Tensor


def search(labels: Tensor, fired: Tensor, other_labels: Tensor, other_fired: Tensor) -> BestLatents:
    """Find for each concept the latent with the largest φ on one half of the text, and its φ on the other.

    Of equal latents the first is chosen.

    Args:
        labels: (N, F) bool, of the half to choose on.
        fired: (N, M) bool, of the half to choose on.
        other_labels: (N', F) bool, of the half to score on.
        other_fired: (N', M) bool, of the half to score on.
    """
    best = phi(labels, fired).max(dim=1)
    everywhere = phi(other_labels, other_fired[:, best.indices])
    return BestLatents(best.indices, best.values, everywhere.diagonal().clone())


def permuted_scores(
    labels: Tensor, fired: Tensor, other_labels: Tensor, other_fired: Tensor, draws: int, *, seed: int = 0
) -> Tensor:
    """Return φ (draws, F) of the same search with labels of all rows in random order; see :func:`search`."""
    half = len(labels)

    def statistic(values: Tensor, order: Tensor) -> Tensor:
        return search(order[:half], values[:half], order[half:], values[half:]).score

    values, together = torch.cat([fired, other_fired]).float(), torch.cat([labels, other_labels])
    return label_permutation_null(statistic, values, together, draws, seed=seed)
