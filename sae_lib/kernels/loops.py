"""Loops of the sparse step, compiled by Numba for the CPU at hand.

Arrays are C-contiguous, numbers all float32 or all float64, indices int64 and in range: nothing is checked,
``cpu`` sees to it. B rows, C latents of a chunk (M of all), d columns, E entries; ``latents``, ``rows``,
``row_order``, ``row_ends`` and ``latent_ends`` as in :class:`sae_lib.kernels.sparse_codes.Support`. Results
are written to arrays that the caller gives.
"""
# mypy: disallow-untyped-defs=False

import numpy as np
from numba import njit, prange

# latents looked through at a time: 8 vector registers
LANES = 64
# shares of the latents dealt out to threads in turn, as neighbours fire about equally often
HANDS = 64
# sums may be taken in vector lanes. NaN is not expected: it reaches the loss through the rows themselves
FAST = {"contract", "reassoc", "nsz", "nnan"}


@njit(parallel=True, cache=True, fastmath=FAST)
def count(u, bar, highest, counts):
    """Find the largest u of each latent, and the number of entries above the bar by row and group of lanes.

    u: (B, C), C a multiple of ``LANES``. bar: (C,).
    highest: (C,), written. counts: (B, C / LANES) int32, written.
    """
    for s in prange(counts.shape[1]):
        lo = s * LANES
        top = np.full(LANES, -np.inf, u.dtype)
        limit = bar[lo : lo + LANES].copy()
        for i in range(len(u)):
            row = u[i, lo : lo + LANES]
            n = np.int32(0)
            for j in range(LANES):
                top[j] = row[j] if row[j] > top[j] else top[j]
                n += np.int32(row[j] > limit[j])
            counts[i, s] = n
        highest[lo : lo + LANES] = top


@njit(parallel=True, cache=True)
def collect(u, bar, counts, starts, first, rows, latents, values):
    """Write the entries that ``count`` found, group of lanes by group, within a group by row.

    u, bar, counts: as ``count`` took and wrote them. starts: (C / LANES,), where each group's entries begin.
    first: number of the chunk's first latent. rows, latents, values: (E,), written.
    """
    for s in prange(counts.shape[1]):
        k = starts[s]
        for i in range(len(u)):
            if counts[i, s]:
                for j in range(s * LANES, (s + 1) * LANES):
                    if u[i, j] > bar[j]:
                        rows[k], latents[k], values[k] = i, first + j, u[i, j]
                        k += 1


@njit(cache=True)
def order(index, size):
    """Stable order (E,) of an index (E,) of 0 … size − 1, by counting, and its runs' ends (size + 1,)."""
    ends = np.zeros(size + 1, np.int64)
    for i in index:
        ends[i + 1] += 1
    for i in range(size):
        ends[i + 1] += ends[i]
    place = ends.copy()
    order = np.empty(len(index), np.int64)
    for k in range(len(index)):
        order[place[index[k]]] = k
        place[index[k]] += 1
    return order, ends


@njit(parallel=True, cache=True, fastmath=FAST)
def decode(values, latents, row_order, row_ends, directions, out):
    """Σ over the entries of each row: value × direction of the latent. A row has one thread.

    values, latents, row_order: (E,). row_ends: (B + 1,). directions: (M, d). out: (B, d), written.
    """
    for i in prange(len(out)):
        total = np.zeros(out.shape[1], out.dtype)
        for e in row_order[row_ends[i] : row_ends[i + 1]]:
            direction = directions[latents[e]]
            for j in range(len(total)):
                total[j] += values[e] * direction[j]
        out[i] = total


@njit(parallel=True, cache=True, fastmath=FAST)
def dots(errors, latents, row_order, row_ends, directions, out):
    """For each entry the product of its row of ``errors`` and its latent's direction. A row has one thread.

    errors: (B, d), d at least 1. latents, row_order: (E,). row_ends: (B + 1,). directions: (M, d).
    out: (E,), written.
    """
    for i in prange(len(errors)):
        error = errors[i]
        for e in row_order[row_ends[i] : row_ends[i + 1]]:
            direction = directions[latents[e]]
            total = error[0] * 0
            for j in range(len(error)):
                total += error[j] * direction[j]
            out[e] = total


@njit(parallel=True, cache=True, fastmath=FAST)
def accumulate(values, rows, latent_ends, vectors, out):
    """Add to ``out``, for each latent, Σ over its entries in their order: value × row of ``vectors``.

    values, rows: (E,). latent_ends: (M + 1,). vectors: (B, d). out: (M, d), added to, a latent by one thread.
    """
    for hand in prange(HANDS):
        for m in range(hand, len(out), HANDS):
            if latent_ends[m] == latent_ends[m + 1]:
                continue
            total = out[m].copy()
            for e in range(latent_ends[m], latent_ends[m + 1]):
                vector = vectors[rows[e]]
                for j in range(len(total)):
                    total[j] += values[e] * vector[j]
            out[m] = total
