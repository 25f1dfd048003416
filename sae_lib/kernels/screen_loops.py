"""Loops of the screened product, compiled by Numba for the CPU it runs on.

Arrays are C-contiguous; floats are float32, bfloat16 numbers are given as the int16 of their bits. R rows of
x (R, d), C latents of weights (C, d), and ``product`` (R, C), their rounded product. ``row_slack`` and
``row_norm`` (R,), ``norm`` and ``gap`` (C,) are the factors of the bound in :mod:`sae_lib.kernels.screen`,
which ensures all this; nothing is checked.
"""
# mypy: disallow-untyped-defs=False

import numpy as np
from numba import njit, prange

from sae_lib.kernels.loops import FAST, HANDS, LANES

# NaN must compare as it does, so that an entry whose bound cannot be computed is verified
BOUND = FAST - {"nnan"}
# share of a bfloat16 number that covers its own rounding (2⁻⁹) and that of the bound
STORED = np.float32(2.0**-8)
# factor on computed norms, above their rounding for d up to 16,000
RAISE = np.float32(1 + 2.0**-10)
# a square below this is flushed to zero
FLUSHED = np.float32(2.0**-63)


@njit(inline="always")
def widen(bits):
    """Return the float32 of a bfloat16 number."""
    return np.int32(np.int32(bits) << 16).view(np.float32)


@njit(cache=True, fastmath=BOUND)
def round_row(row, low):
    """Write a row (d,) rounded to bfloat16, ties to even, to ``low``; bound its norm and the change's."""
    square, change = np.float32(0), np.float32(0)
    bits = row.view(np.int32)
    for j in range(len(row)):
        low[j] = np.int16((bits[j] + np.int32(0x7FFF) + ((bits[j] >> 16) & np.int32(1))) >> 16)
    for j in range(len(row)):
        error = row[j] - widen(low[j])
        square += row[j] * row[j]
        change += error * error
    floor = len(row) * FLUSHED
    return np.sqrt(square) * RAISE + floor, np.sqrt(change) * RAISE + floor


@njit(parallel=True, cache=True, fastmath=BOUND)
def round_rows(rows, low, norm, gap):
    """Apply ``round_row`` to rows (M, d); write ``low`` (M, d), ``norm`` and ``gap`` (M,)."""
    for m in prange(len(rows)):
        norm[m], gap[m] = round_row(rows[m], low[m])


@njit(parallel=True, cache=True, fastmath=BOUND)
def count(product, bar, row_slack, row_norm, norm, gap, counts):
    """Write int32 ``counts`` (R, C / LANES), by group of lanes, of entries that may exceed the bar (C,)."""
    for s in prange(counts.shape[1]):
        span = slice(s * LANES, (s + 1) * LANES)
        limits, norms, gaps = bar[span].copy(), norm[span].copy(), gap[span].copy()
        for i in range(len(product)):
            row, a, b = product[i, span], row_slack[i], row_norm[i]
            n = np.int32(0)
            for j in range(LANES):
                u = widen(row[j])
                n += np.int32(not (u + STORED * abs(u) + a * norms[j] + b * gaps[j] <= limits[j]))
            counts[i, s] = n


@njit(parallel=True, cache=True, fastmath=BOUND)
def verify(
    product, bar, row_slack, row_norm, norm, gap, counts, starts, first, x, weight, rows, latents, values
):
    """Compute u of the candidates that ``count`` counted, and write them as :func:`loops.collect` does.

    ``rows`` is −1 where u is not above the bar after all.
    """
    for s in prange(counts.shape[1]):
        k, span = starts[s], slice(s * LANES, (s + 1) * LANES)
        limits, norms, gaps = bar[span].copy(), norm[span].copy(), gap[span].copy()
        candidate = np.empty(LANES, np.uint8)
        eights = candidate.view(np.uint64)
        for i in range(len(product)):
            if counts[i, s]:
                row, a, b = product[i, span], row_slack[i], row_norm[i]
                for j in range(LANES):
                    u = widen(row[j])
                    candidate[j] = not (u + STORED * abs(u) + a * norms[j] + b * gaps[j] <= limits[j])
                for eight in range(LANES // 8):
                    if eights[eight]:
                        for j in range(8 * eight, 8 * eight + 8):
                            if candidate[j]:
                                m = s * LANES + j
                                # in a row with NaN, lanes beyond the last latent are candidates too
                                u = dot(x[i], weight[min(m, len(weight) - 1)])
                                rows[k] = i if u > limits[j] else -1
                                latents[k], values[k] = first + m, u
                                k += 1


@njit(cache=True, fastmath=FAST)
def dot(a, b):
    """Return the scalar product of two vectors."""
    total = np.float32(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(cache=True, fastmath=BOUND)
def least_of_top(row, slack, size, norm, gap, bias, k, highest):
    """Bound the k-th largest u + bias (C,) of a row of the product from below.

    It is at least the k-th largest of the maxima ``highest`` (≥ k,) of groups. In any order of addition the
    bound stays below: half of STORED is left for its rounding.
    """
    lanes = len(highest)
    highest[:] = -np.inf
    for lo in range(0, len(row), lanes):
        span = slice(lo, min(lo + lanes, len(row)))
        part, norms, gaps, offsets = row[span], norm[span], gap[span], bias[span]
        for j in range(len(part)):
            u = widen(part[j])
            least = u - STORED * abs(u) - slack * norms[j] - size * gaps[j] + offsets[j]
            highest[j] = least if least > highest[j] else highest[j]
    return np.partition(highest, lanes - k)[lanes - k]


@njit(cache=True, fastmath=BOUND)
def mark(row, slack, size, norm, gap, bias, floor, candidate):
    """Mark in ``candidate`` (C,) where u + bias (C,) of a row of the product may reach the floor; count."""
    for m in range(len(row)):
        u = widen(row[m])
        candidate[m] = not (u + STORED * abs(u) + slack * norm[m] + size * gap[m] + bias[m] < floor)
    n = np.int32(0)
    for m in range(len(row)):
        n += np.int32(candidate[m])
    return n


@njit(cache=True, fastmath=BOUND)
def take_top(ys, k, taken):
    """Write the places of the k largest ys (≥ k,) to ``taken`` (k,), in any order."""
    least = np.partition(ys, len(ys) - k)[len(ys) - k]
    n = 0
    for e in range(len(ys)):
        # NaN, which no number exceeds, counts as larger than all
        if not ys[e] <= least and n < k:
            taken[n] = e
            n += 1
    for e in range(len(ys)):
        if n == k:
            break
        if ys[e] == least:
            taken[n] = e
            n += 1


@njit(parallel=True, cache=True, fastmath=BOUND)
def top(product, bias, row_slack, row_norm, norm, gap, k, lanes, x, weight, latents, values, verified):
    """Write the k largest of u + bias (C,) of each row: ``latents`` and ``values`` u (R, k), in any order.

    ``lanes`` ≥ k is the number of groups by whose maxima the k-th largest is bounded. ``verified`` (R,)
    receives the number of entries whose u was computed.
    """
    width = product.shape[1]
    for hand in prange(HANDS):
        highest, taken = np.empty(lanes, np.float32), np.empty(k, np.int64)
        candidate = np.zeros(-(-width // 8) * 8, np.uint8)
        eights = candidate.view(np.uint64)
        for i in range(hand, len(product), HANDS):
            bound = product[i], row_slack[i], row_norm[i], norm, gap, bias
            n = verified[i] = mark(*bound, least_of_top(*bound, k, highest), candidate)
            places, us, ys = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32)
            n = 0
            for eight in range(len(eights)):
                if eights[eight]:
                    for m in range(8 * eight, 8 * eight + 8):
                        if candidate[m]:
                            places[n], us[n] = m, dot(x[i], weight[m])
                            ys[n] = us[n] + bias[m]
                            n += 1
            take_top(ys, k, taken)
            for j in range(k):
                latents[i, j], values[i, j] = places[taken[j]], us[taken[j]]


@njit(cache=True)
def histogram(product, bias, counts):
    """Count the positive u + bias (C,) of all entries by the 16 leading bits of their float32 (32,768,)."""
    y = np.empty(product.shape[1], np.float32)
    bits = y.view(np.int32)
    for i in range(len(product)):
        for m in range(len(y)):
            y[m] = widen(product[i, m]) + bias[m]
        for m in range(len(y)):
            if y[m] > 0:
                counts[bits[m] >> 16] += 1
