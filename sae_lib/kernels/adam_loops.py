"""The loop of :mod:`sae_lib.kernels.adam`, compiled by Numba for the CPU it runs on."""
# mypy: disallow-untyped-defs=False

import numpy as np
from numba import njit, prange

from sae_lib.kernels.loops import FAST, HANDS
from sae_lib.kernels.screen_loops import round_row


@njit(inline="always")
def add_entries(gradient, first, end, values, rows, vectors):
    """Add Σ value (E,) × vector (B, d) over the entries first … end − 1 of a latent to its gradient (d,)."""
    for e in range(first, end):
        value, vector = values[e], vectors[rows[e]]
        for j in range(len(gradient)):
            gradient[j] += value * vector[j]


@njit(inline="always")
def to_unit_norm(row):
    """Divide a row (d,) by its norm, or by 1e-12 if that is larger."""
    square = np.float32(0)
    for j in range(len(row)):
        square += row[j] * row[j]
    factor = np.float32(1) / max(np.sqrt(square), np.float32(1e-12))
    for j in range(len(row)):
        row[j] *= factor


@njit(parallel=True, cache=True, fastmath=FAST)
def step_rows(weight, averages, squares, dense, one, other, numbers, unit, low, norm, gap):
    """Make one step of AdamW on rows (M, d), each read and written once.

    The gradient of a row is that in ``dense`` (M or 0, d) plus two sums over its entries, ``one`` and
    ``other``: tuples (latent_ends (M + 1,), values, rows, vectors). ``unit`` brings the rows to unit norm.
    If ``low`` is (M, d), not (0, d), the new rows are rounded as by ``round_rows``.
    """
    beta1, beta2, rate, root, epsilon, decay = numbers
    new1, new2 = np.float32(1) - beta1, np.float32(1) - beta2
    for hand in prange(HANDS):
        gradient = np.empty(weight.shape[1], weight.dtype)
        for m in range(hand, len(weight), HANDS):
            gradient[:] = 0
            if len(dense):
                gradient += dense[m]
            ends, values, rows, vectors = one
            add_entries(gradient, ends[m], ends[m + 1], values, rows, vectors)
            ends, values, rows, vectors = other
            add_entries(gradient, ends[m], ends[m + 1], values, rows, vectors)
            row, average, square = weight[m], averages[m], squares[m]
            for j in range(len(row)):
                average[j] += new1 * (gradient[j] - average[j])
                square[j] = beta2 * square[j] + new2 * gradient[j] * gradient[j]
                row[j] = row[j] * decay - rate * average[j] / (np.sqrt(square[j]) * root + epsilon)
            if unit:
                to_unit_norm(weight[m])
            if len(low):
                norm[m], gap[m] = round_row(weight[m], low[m])
