"""The rows of a store through an autoencoder: two passes with bounded memory.

The first keeps running counts, the strongest firings and a random sample of the firings of each latent, 2 kB
each; the second reads the activations around the chosen contexts, and fills the histograms. There is never a
table of rows × latents, and firings are kept of a limited number of rows only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

from sae_lib.activations.store import ActivationStore
from sae_lib.dashboards.data import Context
from sae_lib.dashboards.running_top import RunningTop, priorities
from sae_lib.metrics.cooccurrence import Cooccurrence, cooccurrence
from sae_lib.sae import SparseAutoencoder

# firings of each latent in the random sample that lower contexts and purity come from
SAMPLE = 64
BINS = 20
# codes computed at a time
_CODES = 2**24


@dataclass
class Seen:
    """Results of the first pass; firings, total and peak of all M latents, the rest of the tracked ones."""

    firings: np.ndarray
    total: np.ndarray
    peak: np.ndarray
    top: RunningTop
    sample: RunningTop
    together: Cooccurrence


def _batches(
    sae: SparseAutoencoder, store: ActivationStore
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches in order: first row, number of rows, and rows, latents, activations of the firings."""
    size = max(1, min(4096, _CODES // sae.width))
    magnitude = sae.scale.detach().abs()
    for start in range(0, store.n_rows, size):
        rows = store.rows(torch.arange(start, min(start + size, store.n_rows)))
        codes = sae.encode(rows.to(sae.weight))
        if not torch.isfinite(codes).all() or codes.min() < 0:
            bad = int((~torch.isfinite(codes) | (codes < 0)).any(dim=1).nonzero()[0]) + start
            raise ValueError(
                f"row {bad} has codes that are NaN, infinite or below 0; dashboards need codes ≥ 0 "
                "(a jumprelu autoencoder needs biases ≤ 0)"
            )
        codes = codes * magnitude
        row, latent = codes.nonzero(as_tuple=True)
        values = codes[row, latent].double()
        yield start, len(rows), row.cpu().numpy() + start, latent.cpu().numpy(), values.cpu().numpy()


@torch.no_grad()
def first_pass(
    sae: SparseAutoencoder,
    store: ActivationStore,
    chosen: np.ndarray | None,
    n_top: int,
    cooccurrence_rows: int,
    seed: int,
) -> Seen:
    """Count firings of all latents; of the chosen ones (None for all) keep strongest rows and a sample.

    About ``cooccurrence_rows`` rows, in complete batches, show which latents fire together.
    """
    firings, total, peak = np.zeros(sae.width, dtype=np.int64), np.zeros(sae.width), np.zeros(sae.width)
    slot_of = _slots(chosen, sae.width)
    n = sae.width if chosen is None else len(chosen)
    top, sample = RunningTop(n, n_top), RunningTop(n, SAMPLE)
    every = max(1, -(-store.n_rows // max(1, cooccurrence_rows)))
    tables = []
    for number, (start, n_rows, rows, latents, values) in enumerate(_batches(sae, store)):
        firings += np.bincount(latents, minlength=sae.width)
        total += np.bincount(latents, weights=values, minlength=sae.width)
        np.maximum.at(peak, latents, values)
        if number % every == 0:
            table = (np.ones(len(rows)), (rows - start, latents))
            tables.append(csr_array(table, shape=(n_rows, sae.width)))
        slots = slot_of[latents]
        tracked = slots >= 0
        slots, rows, latents, values = slots[tracked], rows[tracked], latents[tracked], values[tracked]
        blocks = store.places(torch.from_numpy(rows))[0].numpy()
        top.offer(slots, rows, values, values, blocks)
        # every firing a group of its own
        sample.offer(slots, rows, priorities(latents, rows, seed), values, rows)
    return Seen(firings, total, peak, top, sample, cooccurrence(tables))


def _slots(numbers: np.ndarray | None, width: int) -> np.ndarray:
    """Return for each latent its place among ``numbers``, −1 where it has none: (M,)."""
    slots = np.full(width, -1, dtype=np.int64)
    numbers = np.arange(width) if numbers is None else numbers
    slots[numbers] = np.arange(len(numbers))
    return slots


@torch.no_grad()
def second_pass(
    sae: SparseAutoencoder,
    store: ActivationStore,
    numbers: np.ndarray,
    peak: np.ndarray,
    picked: list[list[tuple[int, float | None]]],
    before: int,
    after: int,
) -> tuple[list[list[Context]], np.ndarray]:
    """Return contexts of each latent with its activation on every token, and histograms (n, BINS).

    The latents come with their largest activations (n,), and with rows and quantiles of their contexts.
    """
    flat = [row for chosen in picked for row, _ in chosen]
    slot = np.repeat(np.arange(len(numbers)), [len(chosen) for chosen in picked])
    tokens, rows = (t.numpy() for t in store.windows(flat, before, after))
    # every (row, latent) of a window as one number, read in the order of rows
    keys = np.where(rows >= 0, rows * sae.width + numbers[slot][:, None], -1)
    order = np.argsort(keys, axis=None)
    wanted, sorted_activations = keys.flatten()[order], np.zeros(keys.size)
    histograms = np.zeros((len(numbers), BINS), dtype=np.int64)
    slot_of = _slots(numbers, sae.width)
    for start, n_rows, row, latent, values in _batches(sae, store):
        fired = row * sae.width + latent
        begin, end = np.searchsorted(wanted, [start * sae.width, (start + n_rows) * sae.width])
        if len(fired):
            at = np.searchsorted(fired, wanted[begin:end]).clip(max=len(fired) - 1)
            sorted_activations[begin:end] = np.where(fired[at] == wanted[begin:end], values[at], 0.0)
        slots = slot_of[latent]
        slots, values = slots[slots >= 0], values[slots >= 0]
        bins = np.minimum(values / peak[slots] * BINS, BINS - 1).astype(np.int64)
        histograms += np.bincount(slots * BINS + bins, minlength=histograms.size).reshape(histograms.shape)
    activations = np.empty(keys.size)
    activations[order] = sorted_activations
    read = zip(tokens, rows, activations.reshape(keys.shape), strict=True)
    contexts = [
        [_context(row, quantile, before, *next(read)) for row, quantile in chosen] for chosen in picked
    ]
    return contexts, histograms


def _context(
    row: int,
    quantile: float | None,
    before: int,
    tokens: np.ndarray,
    rows: np.ndarray,
    activations: np.ndarray,
) -> Context:
    """Return the part of a window inside its block."""
    inside = np.flatnonzero(tokens >= 0)
    stored = (rows[inside] >= 0).tolist()
    pairs = zip(activations[inside].tolist(), stored, strict=True)
    values = tuple(value if is_stored else None for value, is_stored in pairs)
    return Context(row, before - int(inside[0]), tuple(tokens[inside].tolist()), values, quantile)
