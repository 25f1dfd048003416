"""Measuring dashboards: the rows of a store through an autoencoder, twice, with bounded memory.

The first pass keeps running counts, the strongest contexts and a random sample of the firings of each latent,
some kB a latent; the second reads the activations around the contexts chosen, and fills the histograms. No
table of rows × latents is held, and of what fires where only ``cooccurrence_rows`` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from sae_lib.cooccurrence import Cooccurrence, cooccurrence
from sae_lib.dashboards.data import Context, Dashboards, Latent
from sae_lib.dashboards.running import RunningTop, priorities
from sae_lib.dashboards.tokens import texts
from sae_lib.interventions import logit_weights
from sae_lib.language_models import LanguageModel
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder
from sae_lib.store import ActivationStore
from sae_lib.stream import vocabulary_sha256

# firings of each latent in the random sample that lower contexts and purity come from
SAMPLE = 64
BINS = 20
# pairs of latents that share fewer rows say nothing about each other
MIN_TOGETHER = 3
# codes, cosines and logit weights held at a time
_NUMBERS = 2**24


def measure(
    sae: SparseAutoencoder,
    model: LanguageModel,
    store: ActivationStore,
    latents: Sequence[int] | Tensor | int | None = None,
    *,
    name: str = "autoencoder",
    n_top: int = 5,
    quantiles: Sequence[float] = (0.75, 0.5, 0.25),
    before: int = 15,
    after: int = 8,
    n_tokens: int = 10,
    n_neighbours: int = 5,
    cooccurrence_rows: int = 100_000,
    seed: int = 0,
) -> Dashboards:
    """Measure the dashboards of some latents on all rows of a store.

    model: the one the store was harvested from; its tokenizer gives the text, its unembedding the logit weights.
    latents: their numbers, repeated ones count once; a whole number n for n drawn at random, by ``seed``, from those that fire on the
        store (all of them if they are fewer); None for all.
    name: what to call the autoencoder, "GBA" for instance.
    n_top: strongest contexts a latent, each from another block.
    quantiles: of the latent's activations, where further contexts are taken, from a random sample of its firings.
    before, after: tokens of a context on either side of the row's own, as far as its block goes.
    n_tokens: tokens promoted, and as many demoted.
    n_neighbours: nearest latents, and as many that fire together; both among all latents.
    cooccurrence_rows: at most this many rows, evenly spaced batches, are held to see which fire together.

    Raises ValueError if store, model and autoencoder do not belong together, or for latents out of range.
    """
    check_belonging(sae, model, store)
    quantiles = tuple(quantiles)
    if n_top < 1 or not all(0 <= q <= 1 for q in quantiles) or list(quantiles) != sorted(quantiles)[::-1]:
        raise ValueError(
            f"n_top is {n_top}, quantiles are {quantiles}; expected at least 1, and descending shares of 1"
        )
    chosen = None if latents is None or isinstance(latents, int) else _numbers(latents, sae.width)
    seen = _first_pass(sae, store, chosen, n_top, cooccurrence_rows, seed)
    if isinstance(latents, int):
        numbers, words = _drawn(seen.firings, latents, seed)
    elif chosen is None:
        numbers, words = np.arange(sae.width), f"all {sae.width}"
    else:
        numbers, words = chosen, "chosen by number"
    # rows of the tables of the first pass
    slots = np.arange(len(numbers)) if chosen is not None else numbers
    picked = [_picked(seen, slot, quantiles) for slot in slots]
    contexts, histograms = _second_pass(sae, store, numbers, seen.peak[numbers], picked, before, after)
    sampled = _purities(seen, store, slots)
    written = _logits(model, sae, numbers, min(n_tokens, model.vocabulary))
    nearest = _nearest(sae, numbers, min(n_neighbours, sae.width - 1))
    built = []
    for i, number in enumerate(numbers.tolist()):
        firings = int(seen.firings[number])
        built.append(
            Latent(
                number, firings, firings / store.n_rows, float(seen.peak[number]),
                float(seen.total[number] / firings) if firings else 0.0,
                tuple(histograms[i].tolist()), *sampled[i],
                tuple(c for c in contexts[i] if c.quantile is None),
                tuple(c for c in contexts[i] if c.quantile is not None),
                *written[i], nearest[i], _together(seen.together, number, n_neighbours),
            )
        )  # fmt: skip
    return Dashboards(
        name, sae.width, store.n_rows, int((seen.firings > 0).sum()), words, tuple(built),
        texts(model.tokenizer, _token_ids(built)), store.describe(),
    )  # fmt: skip


def check_belonging(sae: SparseAutoencoder, model: LanguageModel, store: ActivationStore) -> None:
    """Raise ValueError, saying what to do, if the three do not belong together."""
    origin = store.describe()
    if sae.d_in != store.d_in:
        raise ValueError(
            f"the autoencoder has d_in {sae.d_in}, the rows of {store.folder} {store.d_in}; they must be equal"
        )
    site = sae.metadata.get("training", {}).get("data", {}).get("site", origin["site"])
    if site != origin["site"]:
        raise ValueError(
            f"the autoencoder was trained at {site}, the rows of {store.folder} are from {origin['site']}; "
            "harvest its own site"
        )
    if vocabulary_sha256(model.tokenizer) != origin["tokenizer"]["vocabulary_sha256"]:
        raise ValueError(
            f"the tokens of {store.folder} were made by the tokenizer of {origin['model']['name']}, which has "
            f"another vocabulary than that of {model.name}; load the store's own model"
        )
    if model.fingerprint != origin["model"]["fingerprint"]:
        raise ValueError(
            f"{store.folder} was harvested from {origin['model']['name']}, fingerprint "
            f"{origin['model']['fingerprint'][:12]}…; this is {model.name}, fingerprint "
            f"{model.fingerprint[:12]}…: other weights, or the same in another dtype. Load the store's own model"
        )


def _numbers(latents: Sequence[int] | Tensor, width: int) -> np.ndarray:
    numbers = np.asarray(latents)
    if numbers.ndim != 1 or len(numbers) == 0 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"latents have shape {numbers.shape} and type {numbers.dtype}; expected whole numbers (n,), n ≥ 1"
        )
    for number in numbers.tolist():
        if not 0 <= number < width:
            raise ValueError(f"latent {number} of {width}: allowed 0..{width - 1}")
    # each once, in the order given
    return numbers[np.sort(np.unique(numbers, return_index=True)[1])].astype(np.int64)


def _drawn(firings: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, str]:
    alive = np.flatnonzero(firings)
    if n < 1 or len(alive) == 0:
        raise ValueError(f"{n} latents asked for, {len(alive)} fire; expected at least 1 of each")
    order = torch.randperm(len(alive), generator=generator(seed, "dashboards"))[:n].numpy()
    return np.sort(alive[order]), f"{len(order)} drawn at random (seed {seed}) from the {len(alive)} that fire"


@dataclass
class _Seen:
    """What the first pass keeps; firings, total and peak of all M latents, the rest of the tracked ones."""

    firings: np.ndarray
    total: np.ndarray
    peak: np.ndarray
    top: RunningTop
    sample: RunningTop
    together: Cooccurrence


def _batches(
    sae: SparseAutoencoder, store: ActivationStore
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches in order: first row, rows, and the firings in it: rows, latents, activations (float64)."""
    size = max(1, min(4096, _NUMBERS // sae.width))
    magnitude = sae.scale.detach().abs()
    for start in range(0, store.n_rows, size):
        rows = store.rows(torch.arange(start, min(start + size, store.n_rows)))
        codes = sae.encode(sae.normalisation.apply(rows.to(sae.weight.device)).to(sae.weight.dtype))
        if not torch.isfinite(codes).all() or codes.min() < 0:
            bad = int((~torch.isfinite(codes) | (codes < 0)).any(dim=1).nonzero()[0]) + start
            raise ValueError(
                f"row {bad} has codes that are NaN, infinite or below 0; dashboards need codes ≥ 0 "
                "(a jumprelu autoencoder needs biases ≤ 0)"
            )
        row, latent = codes.nonzero(as_tuple=True)
        values = (codes[row, latent] * magnitude[latent]).double()
        yield start, len(rows), row.cpu().numpy() + start, latent.cpu().numpy(), values.cpu().numpy()


@torch.no_grad()
def _first_pass(
    sae: SparseAutoencoder,
    store: ActivationStore,
    chosen: np.ndarray | None,
    n_top: int,
    cooccurrence_rows: int,
    seed: int,
) -> _Seen:
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
    return _Seen(firings, total, peak, top, sample, cooccurrence(tables))


def _slots(numbers: np.ndarray | None, width: int) -> np.ndarray:
    """Latent → its place among ``numbers``, −1 where it has none: (M,)."""
    slots = np.full(width, -1, dtype=np.int64)
    numbers = np.arange(width) if numbers is None else numbers
    slots[numbers] = np.arange(len(numbers))
    return slots


def _picked(seen: _Seen, slot: int, quantiles: Sequence[float]) -> list[tuple[int, float | None]]:
    """Rows to show of a latent, with their quantiles: the strongest, then lower ones, no row twice."""
    top = seen.top.rows[slot]
    picked: list[tuple[int, float | None]] = [(row, None) for row in top[top >= 0].tolist()]
    held = seen.sample.rows[slot] >= 0
    rows, values = seen.sample.rows[slot][held], seen.sample.values[slot][held]
    rows = rows[np.lexsort((-rows, values))].tolist()
    taken = {row for row, _ in picked}
    for q in quantiles:
        # the quantile's own firing (the smallest with at least a share q at or below it), or none if shown
        row = rows[max(0, int(np.ceil(q * len(rows))) - 1)] if rows else None
        if row is not None and row not in taken:
            taken.add(row)
            picked.append((row, q))
    return picked


@torch.no_grad()
def _second_pass(
    sae: SparseAutoencoder,
    store: ActivationStore,
    numbers: np.ndarray,
    peak: np.ndarray,
    picked: list[list[tuple[int, float | None]]],
    before: int,
    after: int,
) -> tuple[list[list[Context]], np.ndarray]:
    """Contexts of each latent with its activations all through them, and histograms (n, BINS)."""
    slot = np.repeat(np.arange(len(numbers)), [len(p) for p in picked])
    tokens, rows = (
        t.numpy() for t in store.windows([row for p in picked for row, _ in p], before, after)
    )
    # wanted: every (row, latent) of a window as one number, in the order of rows
    keys = np.where(rows >= 0, rows * sae.width + numbers[slot][:, None], -1)
    order = np.argsort(keys, axis=None, kind="stable")
    wanted = keys.flatten()[order]
    found = np.zeros(len(wanted))
    histograms = np.zeros((len(numbers), BINS), dtype=np.int64)
    slot_of = _slots(numbers, sae.width)
    for start, n_rows, row, latent, values in _batches(sae, store):
        fired = row * sae.width + latent
        begin, end = np.searchsorted(wanted, [start * sae.width, (start + n_rows) * sae.width])
        if len(fired):
            at = np.searchsorted(fired, wanted[begin:end]).clip(max=len(fired) - 1)
            found[begin:end] = np.where(fired[at] == wanted[begin:end], values[at], 0.0)
        here = slot_of[latent]
        here, values = here[here >= 0], values[here >= 0]
        cell = np.minimum(np.floor(values / peak[here] * BINS), BINS - 1).astype(np.int64)
        histograms += np.bincount(here * BINS + cell, minlength=histograms.size).reshape(histograms.shape)
    activations = np.empty(keys.size)
    activations[order] = found
    activations = activations.reshape(keys.shape)
    contexts: list[list[Context]] = []
    number = 0
    for chosen in picked:
        contexts.append([])
        for row, quantile in chosen:
            inside = np.flatnonzero(tokens[number] >= 0)
            held = (rows[number, inside] >= 0).tolist()
            read = activations[number, inside].tolist()
            contexts[-1].append(
                Context(
                    row, int(before - inside[0]), tuple(tokens[number, inside].tolist()),
                    tuple(a if there else None for a, there in zip(read, held, strict=True)), quantile,
                )
            )  # fmt: skip
            number += 1
    return contexts, histograms


def _purities(
    seen: _Seen, store: ActivationStore, slots: np.ndarray
) -> list[tuple[float | None, int | None]]:
    """Share of each latent's sampled firings on the commonest token there, and that token."""
    rows = seen.sample.rows[slots]
    own = np.full(rows.shape, -1, dtype=np.int64)
    own[rows >= 0] = store.windows(torch.from_numpy(rows[rows >= 0]))[0][:, 0].numpy()
    found: list[tuple[float | None, int | None]] = []
    for tokens in own:
        kinds, counts = np.unique(tokens[tokens >= 0], return_counts=True)
        if len(kinds) == 0:
            found.append((None, None))
        else:
            found.append((float(counts.max() / counts.sum()), int(kinds[counts.argmax()])))
    return found


Pairs = tuple[tuple[int, float], ...]


def _pairs(numbers: Tensor, values: Tensor) -> list[Pairs]:
    return [
        tuple(zip(row, value, strict=True))
        for row, value in zip(numbers.tolist(), values.tolist(), strict=True)
    ]


def _signs(sae: SparseAutoencoder) -> Tensor:
    """Which way along its decoder direction a firing latent pushes: ±1, (M,)."""
    return torch.where(sae.scale.detach() < 0, -1.0, 1.0)


@torch.no_grad()
def _logits(
    model: LanguageModel, sae: SparseAutoencoder, numbers: np.ndarray, n: int
) -> list[tuple[Pairs, Pairs]]:
    """The n tokens that each latent promotes most when it fires, and the n that it demotes most."""
    written: list[tuple[Pairs, Pairs]] = []
    if n == 0:
        return [((), ())] * len(numbers)
    for chunk in torch.from_numpy(numbers).split(max(1, _NUMBERS // model.vocabulary)):
        index = chunk.to(sae.weight.device)
        weights = logit_weights(model, sae, index) * _signs(sae)[index][:, None].to(model.device)
        highest, lowest = weights.topk(n), weights.topk(n, largest=False)
        written += zip(
            _pairs(highest.indices, highest.values), _pairs(lowest.indices, lowest.values), strict=True
        )
    return written


@torch.no_grad()
def _nearest(sae: SparseAutoencoder, numbers: np.ndarray, k: int) -> list[Pairs]:
    """The k latents whose decoder directions, signed by the output scale, have the largest cosine with each."""
    directions = sae.decoder_rows.detach().float() * _signs(sae)[:, None]
    directions = torch.nn.functional.normalize(directions, dim=1)
    found: list[Pairs] = []
    for chunk in torch.from_numpy(numbers).to(directions.device).split(max(1, _NUMBERS // sae.width)):
        cosines = directions[chunk] @ directions.T
        cosines[torch.arange(len(chunk)), chunk] = -torch.inf
        best = cosines.topk(k)
        found += _pairs(best.indices, best.values)
    return found


def _together(table: Cooccurrence, number: int, k: int) -> Pairs:
    if k == 0:
        return ()
    others, phi = table.neighbours(number, k, by="phi", min_count=MIN_TOGETHER)
    return tuple(zip(others.tolist(), phi.tolist(), strict=True))


def _token_ids(latents: Sequence[Latent]) -> set[int]:
    ids = {latent.token for latent in latents if latent.token is not None}
    for latent in latents:
        for context in (*latent.top, *latent.lower):
            ids.update(context.tokens)
        ids.update(token for token, _ in (*latent.promoted, *latent.demoted))
    return ids


def describe_origin(origin: dict[str, Any]) -> str:
    """Model, site, corpus and its licence in one sentence."""
    corpus = origin["corpus"]
    return (
        f"{origin['model']['name']}, {origin['site']}; text: {corpus['name']}, licence: {corpus['licence']}"
    )
