"""Which latent stands for a concept: a search, its score on other text, and a probe as the upper bound.

A search that looks at its own answer finds something everywhere. So the latent is chosen on one half of the
documents and scored on the other, and the whole search has to be repeated where nothing can be found
(:mod:`sae_lib.metrics.nulls`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lib.metrics.nulls import label_permutation_null


def phi(labels: Tensor, fired: Tensor) -> Tensor:
    """Correlation φ of concepts and latents, both yes or no: (F, M) float64 from (N, F) and (N, M) bool.

    φ is Pearson's correlation of two binaries: 1 if they agree on every row, 0 if they have nothing to do
    with each other, *whatever their frequencies*; F1 would be high for a frequent concept and a busy latent.
    0 where one of them never changes.
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
class Found:
    """The answer for each concept: its latent (F,), φ where it was chosen (F,), φ on other text (F,)."""

    latent: Tensor
    chosen: Tensor
    score: Tensor


def search(labels: Tensor, fired: Tensor, other_labels: Tensor, other_fired: Tensor) -> Found:
    """For each concept the latent with the largest φ on one half of the text, and its φ on the other.

    labels, fired: (N, F) and (N, M) bool, of the half to choose on. other_*: (N', F) and (N', M), to score
    on. Of equal latents the first is taken.
    """
    best = phi(labels, fired).max(dim=1)
    everywhere = phi(other_labels, other_fired[:, best.indices])
    return Found(best.indices, best.values, everywhere.diagonal().clone())


def permuted_scores(
    labels: Tensor, fired: Tensor, other_labels: Tensor, other_fired: Tensor, draws: int, *, seed: int = 0
) -> Tensor:
    """φ of the same search with the labels of all rows in random order: (draws, F); see :func:`search`."""
    half = len(labels)

    def statistic(values: Tensor, order: Tensor) -> Tensor:
        return search(order[:half], values[:half], order[half:], values[half:]).score

    values, together = torch.cat([fired, other_fired]).float(), torch.cat([labels, other_labels])
    return label_permutation_null(statistic, values, together, draws, seed=seed)


def fit_probes(rows: Tensor, labels: Tensor, *, penalty: float = 1e-3, steps: int = 100) -> Tensor:
    """Logistic regressions of every concept on all of the activations: (d + 1, F), the intercept last.

    Minimises mean log-loss + ½ · penalty · ‖w‖² for each concept by L-BFGS, intercepts unpenalised; rows are
    divided by the root of their mean square beforehand and the weights given back for rows as they are.

    rows: (N, d). labels: (N, F) bool.
    """
    if rows.ndim != 2 or labels.ndim != 2 or len(rows) != len(labels) or len(rows) == 0:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}, labels {tuple(labels.shape)}; expected (N, d) and (N, F)"
        )
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty}; expected above 0, or separable concepts have no optimum")
    centre, size = rows.mean(dim=0), (rows - rows.mean(dim=0)).square().mean().sqrt().clamp(min=1e-12)
    x, y = (rows - centre) / size, labels.to(rows.dtype)
    weight = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, requires_grad=True)
    intercept = torch.zeros(y.shape[1], dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, intercept], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-9, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        # summed over the concepts, which share no parameter
        fit = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + intercept, y) * y.shape[1]
        total: Tensor = fit + 0.5 * penalty * weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    scaled = weight.detach() / size
    return torch.cat([scaled, (intercept.detach() - centre @ scaled)[None]])


def probe_says(probes: Tensor, rows: Tensor) -> Tensor:
    """Which concepts the probes (d + 1, F) see in rows (N, d): (N, F) bool."""
    return rows @ probes[:-1] + probes[-1] > 0
