"""AdamW on rows of weights whose gradients are sums over sparse entries: added up, used and forgotten.

A dense gradient of (M, d) numbers would be cleared, written, read and then cleared again at every step. Here
each row's gradient is summed in cache, and row, averages and rounded copy are written in the same pass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from sae_lib.kernels import adam_loops
from sae_lib.kernels.cpu import arrays
from sae_lib.kernels.row_sums import RowSum
from sae_lib.kernels.screen import Rounded


@torch.no_grad()
def step(
    optimiser: torch.optim.Optimizer,
    parameter: nn.Parameter,
    sums: list[RowSum],
    *,
    unit: bool,
    rounded: Rounded | None,
) -> None:
    """Make the optimiser's step on rows (M, d) of float32, and bring them to unit norm if asked to.

    The state of the optimiser advances as if it had made the step; ``optimiser.step()`` then leaves the
    parameter alone, as it has no dense gradient any more.

    Args:
        optimiser: AdamW, without ``amsgrad`` and ``maximize``.
        parameter: The rows.
        sums: One or two parts of their gradient, to which a dense gradient is added.
        unit: Whether the rows must have unit norm afterwards.
        rounded: Their rounded copy, which is kept up to date.
    """
    group = next(g for g in optimiser.param_groups if any(p is parameter for p in g["params"]))
    state = optimiser.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    state["step"] += 1
    number = int(state["step"])
    empty = parameter.new_empty(0, parameter.shape[1])
    dense = empty if parameter.grad is None else parameter.grad
    one, other = [*sums, sums[0].without_entries()][:2]
    if rounded:
        low, norm, gap = rounded.arrays()
    else:
        low, norm, gap = arrays(empty.to(torch.int16), empty[:, 0], empty[:, 0])
    weight, average, square, gradient = arrays(parameter, state["exp_avg"], state["exp_avg_sq"], dense)
    adam_loops.step_rows(
        weight, average, square, gradient, _sum_arrays(one), _sum_arrays(other), _numbers(group, number),
        unit, low, norm, gap,
    )  # fmt: skip
    parameter.grad = None
    # written behind PyTorch's back: tell it, so that nothing computed from the old rows passes for new
    torch.autograd.graph.increment_version(parameter)
    if rounded:
        rounded.stamp()


def _sum_arrays(total: RowSum) -> tuple[np.ndarray, ...]:
    return tuple(arrays(total.latent_ends, total.values, total.rows, total.vectors))


def _numbers(group: dict[str, Any], number: int) -> tuple[np.float32, ...]:
    """Return β₁, β₂, the rate, the root of the second correction, ε and the decay of a step."""
    beta1, beta2 = group["betas"]
    rate = group["lr"] / (1 - beta1**number)
    root = 1 / math.sqrt(1 - beta2**number)
    decay = 1 - group["lr"] * group["weight_decay"]
    return tuple(np.float32(x) for x in (beta1, beta2, rate, root, group["eps"], decay))
