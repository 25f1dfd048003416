"""Linear probes of known classes: what a linear reading of the rows can tell, to compare with latents.

Two fits of the same form. :func:`ridge_probes` solves one linear system and puts the threshold where F1 is
highest: absorption is measured along its unit direction. :func:`logistic_probes` minimise the
log-loss: the upper bound for a search among latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize


@dataclass(frozen=True)
class Probes:
    """Linear probes of C classes: a row x is in class c where x · direction_c > offset_c.

    Attributes:
        direction: (C, d).
        offset: (C,).
    """

    direction: Tensor
    offset: Tensor

    def say(self, rows: Tensor) -> Tensor:
        """Tell which classes the rows (N, d) belong to: bool (N, C)."""
        return rows @ self.direction.T > self.offset


def ridge_probes(rows: Tensor, labels: Tensor, *, ridge: float = 1e-3) -> Probes:
    """Fit each class by ridge regression, with the threshold of the highest F1 on the same rows.

    >>> from sae_experiments.probes import ridge_probes
    >>> probes = ridge_probes(torch.tensor([[2.0], [1.0], [0.0]]), torch.tensor([[True], [False], [False]]))
    >>> probes.direction, probes.offset
    (tensor([[1.]]), tensor([1.5000]))

    Directions have unit norm.

    Args:
        rows: (N, d), normalised.
        labels: bool (N, C).
        ridge: Penalty in units of the mean variance of a coordinate.

    Raises:
        ValueError: Shapes do not match, or a class holds no row or all.
    """
    _check(rows, labels)
    number = labels.sum(dim=0)
    if (number == 0).any() or (number == len(rows)).any():
        wrong = int(((number == 0) | (number == len(rows))).nonzero()[0])
        raise ValueError(
            f"class {wrong} holds {int(number[wrong])} of {len(rows)} rows; expected some, not all"
        )
    x = rows.double() - rows.double().mean(dim=0)
    y = labels.double() - labels.double().mean(dim=0)
    square = x.T @ x
    square.diagonal().add_(ridge * square.diagonal().mean())
    direction = normalize(torch.linalg.solve(square, x.T @ y).T, dim=1)
    score, order = (rows.double() @ direction.T).sort(dim=0, descending=True)
    hits = labels.gather(0, order).cumsum(dim=0)
    f1 = 2 * hits / (torch.arange(1, len(rows) + 1)[:, None] + number)
    # a threshold lies between two different scores, or below them all
    f1[:-1][score[:-1] == score[1:]] = 0
    best = f1.argmax(dim=0, keepdim=True)
    below = score.gather(0, (best + 1).clamp(max=len(rows) - 1))
    offset = ((score.gather(0, best) + below) / 2)[0]
    offset = torch.where(best[0] == len(rows) - 1, score[-1] - 1, offset)
    return Probes(direction.to(rows.dtype), offset.to(rows.dtype))


def logistic_probes(rows: Tensor, labels: Tensor, *, penalty: float = 1e-3, steps: int = 100) -> Probes:
    """Fit each class by logistic regression; its threshold is at even odds.

    Minimises mean log-loss + ½ · penalty · ‖w‖² for each class by L-BFGS, intercepts unpenalised. Rows are
    centred and scaled for the fit; the weights returned are for rows as they are.

    Args:
        rows: (N, d).
        labels: bool (N, C).
        penalty: Above 0.
        steps: Most steps of L-BFGS.

    Raises:
        ValueError: Shapes do not match, or the penalty is not above 0.
    """
    _check(rows, labels)
    if not penalty > 0:
        raise ValueError(f"penalty is {penalty}; expected above 0, or separable classes have no optimum")
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
        # summed over the classes, which share no parameter
        fit = binary_cross_entropy_with_logits(x @ weight + intercept, y) * y.shape[1]
        total: Tensor = fit + 0.5 * penalty * weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    scaled = weight.detach() / size
    return Probes(scaled.T, centre @ scaled - intercept.detach())


def _check(rows: Tensor, labels: Tensor) -> None:
    matching = rows.ndim == labels.ndim == 2 and len(rows) == len(labels) > 0
    if not matching or labels.dtype != torch.bool:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}, labels {tuple(labels.shape)} of {labels.dtype}; "
            "expected (N, d), and bool (N, classes) of the same rows, at least 1"
        )
