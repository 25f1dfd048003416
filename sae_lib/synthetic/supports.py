"""Supports: which features occur in which rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_lib.checks import at_least, between
from sae_lib.randomness import generator


def uniform_support(n_rows: int, n_features: int, *, sparsity: int, seed: int = 0) -> Tensor:
    """Draw a boolean support (N, n): in each row ``sparsity`` features, every set equally likely; f = s/n.

    >>> support = sae_lib.synthetic.uniform_support(5, 100, sparsity=3)
    >>> support.shape, support.sum(dim=1)
    (torch.Size([5, 100]), tensor([3, 3, 3, 3, 3]))
    """
    at_least(1, n_rows=n_rows, n_features=n_features)
    between(0, n_features, "the number of features", sparsity=sparsity)
    scores = torch.rand(n_rows, n_features, generator=generator(seed, "support"))
    chosen = scores.topk(sparsity, dim=1).indices
    return torch.zeros(n_rows, n_features, dtype=torch.bool).scatter_(1, chosen, True)


def bernoulli_support(n_rows: int, frequencies: Tensor | Sequence[float], *, seed: int = 0) -> Tensor:
    """Draw a boolean support (N, n): feature i occurs independently with probability ``frequencies[i]``."""
    f = _as_frequencies(frequencies)
    at_least(1, n_rows=n_rows)
    return torch.rand(n_rows, len(f), generator=generator(seed, "support")) < f


def block_support(
    n_rows: int,
    frequencies: Tensor | Sequence[float],
    *,
    co_occurrence: float,
    block: int = 2,
    seed: int = 0,
) -> Tensor:
    """Draw a boolean support (N, n) in which the features of a block tend to occur together.

    Each of n / block consecutive blocks is switched on in a row with probability f/ρ, independently of the
    others; in a block that is on, each feature occurs independently with probability ρ. So every feature
    keeps its frequency f, and P(j | i) = ρ for two features of a block, f_j for two of different blocks.
    Where frequencies differ inside a block, f is the largest of them, and P(j | i) = ρ f_j / f.

    Args:
        n_rows: Number of rows N.
        frequencies: Feature frequencies f, (n,), each above 0 and at most 1.
        co_occurrence: ρ, from the largest frequency (independent features) to 1 (a block is all or nothing).
        block: Features in a block; divides n.
        seed: Seed of the draw.

    Raises:
        ValueError: An argument out of range, or n no multiple of ``block``.
    """
    f = _as_frequencies(frequencies)
    at_least(1, n_rows=n_rows, block=block)
    if len(f) % block:
        raise ValueError(f"block is {block}; expected a divisor of the number of features, {len(f)}")
    highest = f.max().item()
    # the float32 nearest to a frequency may be just above it
    if not highest * (1 - 1e-6) <= co_occurrence <= 1:
        raise ValueError(f"co_occurrence is {co_occurrence}; expected from {highest:g} (the largest f) to 1")
    leading = f.view(-1, block).amax(dim=1)
    draws = generator(seed, "support")
    on = torch.rand(n_rows, len(leading), generator=draws) < leading / co_occurrence
    chance = co_occurrence * f / leading.repeat_interleave(block)
    return on.repeat_interleave(block, dim=1) & (torch.rand(n_rows, len(f), generator=draws) < chance)


def _as_frequencies(frequencies: Tensor | Sequence[float]) -> Tensor:
    """Return float32 frequencies (n,); ValueError unless n ≥ 1 and all are in (0, 1]."""
    f = torch.as_tensor(frequencies, dtype=torch.float32)
    if f.ndim != 1 or len(f) == 0:
        raise ValueError(f"frequencies have shape {tuple(f.shape)}; expected (n,) with n at least 1")
    # written so that NaN counts as outside
    outside = ~((f > 0) & (f <= 1))
    if outside.any():
        i = int(outside.nonzero()[0])
        raise ValueError(f"frequency {i} is {f[i]:g}; expected above 0 and at most 1")
    return f
