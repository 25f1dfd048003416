"""Loops of the sparse step, compiled by Numba for the CPU it runs on.

Arrays are C-contiguous, numbers all float32 or all float64, indices int64 and in range: ``cpu`` ensures it,
nothing is checked. B rows, C latents of a chunk (M in all), d ≥ 1 columns, E entries; ``latents``, ``rows``
and ``row_order`` (E,), ``row_ends`` (B + 1,) and ``latent_ends`` (M + 1,) as in
:class:`sae_lib.kernels.sparse_codes.Support`. Results are written to arrays that the caller provides.
"""
# mypy: disallow-untyped-defs=False

import numpy as np
from numba import njit, prange

# latents searched at a time: 8 vector registers
LANES = 64
# shares of the latents dealt to threads like cards, as neighbours fire about equally often
HANDS = 64
# sums may be split into vector lanes; NaN is not handled here, as it reaches the loss through the rows
FAST = {"contract", "reassoc", "nsz", "nnan"}


@njit(parallel=True, cache=True, fastmath=FAST)
def count(u, bar, highest, counts):
    """Write the ``highest`` u of each latent (C,), and int32 ``counts`` (B, C / LANES) of entries.

    Entries are those of u (B, C), C a multiple of ``LANES``, above the bar (C,), by row and group of lanes.
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
    """Write ``rows``, ``latents`` and ``values`` (E,) of the entries that ``count`` counted.

    They are sorted by group of lanes, within a group by row. Each group's entries begin at ``starts``
    (C / LANES,); the chunk's first latent is number ``first``.
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
    """Return the stable order (E,) of an index (E,) of 0 … size − 1, and its runs' ends (size + 1,)."""
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
    """Write Σ value (E,) × direction (M, d) over each row's entries to ``out`` (B, d), a thread a row."""
    for i in prange(len(out)):
        total = np.zeros(out.shape[1], out.dtype)
        for e in row_order[row_ends[i] : row_ends[i + 1]]:
            direction = directions[latents[e]]
            for j in range(len(total)):
                total[j] += values[e] * direction[j]
        out[i] = total


@njit(parallel=True, cache=True, fastmath=FAST)
def dots(errors, latents, row_order, row_ends, directions, out):
    """Write each entry's product of error (B, d) and direction (M, d) to ``out`` (E,), a thread a row."""
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
    """Add each latent's Σ value (E,) × vector (B, d) over its entries to ``out`` (M, d), one thread each."""
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
