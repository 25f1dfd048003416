"""Measuring dashboards from two passes over a store and from the weights of the autoencoder."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sae_lib.activations.positions import vocabulary_sha256
from sae_lib.activations.store import ActivationStore
from sae_lib.checks import at_least, indices
from sae_lib.dashboards.data import Dashboards, Latent
from sae_lib.dashboards.passes import Seen, first_pass, second_pass
from sae_lib.dashboards.tokens import texts
from sae_lib.dashboards.weights import Pairs, nearest, token_scores
from sae_lib.language_models import LanguageModel
from sae_lib.metrics.cooccurrence import Cooccurrence
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder

# pairs of latents that share fewer rows say nothing about each other
MIN_TOGETHER = 3


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

    >>> settings = {"n_tokens": 500, "block_size": 32}
    >>> store = sae_lib.activations.harvest(model, corpus, "resid_post.1", "acts", **settings)
    >>> sae, log = sae_lib.train(store, sae_lib.TopK(k=4), width=64, steps=10, batch_size=64)
    >>> board = sae_lib.dashboards.measure(sae, model, store, latents=5)
    >>> sae_lib.dashboards.html(board, "features.html")
    >>> len(board.latents), board.latents[0].firings > 0
    (5, True)

    The store is read twice, whatever the number of latents.

    Args:
        sae: The autoencoder.
        model: The model of the store; its tokenizer supplies the text, its unembedding logit weights.
        store: The rows.
        latents: Their indices, repeated ones count once; None for all. An integer n draws n at random from
            those that fire on the store (all of them if they are fewer).
        name: Name of the autoencoder for headings, "GBA" for instance.
        n_top: Strongest contexts of a latent, each from another block.
        quantiles: Quantiles of the latent's activations for further contexts; estimated, as purity is, from a
            random sample of at most 64 of its firings.
        before: Tokens of a context before the row's own, as far as its block extends.
        after: Tokens of a context after it.
        n_tokens: Promoted tokens, and as many demoted.
        n_neighbours: Nearest latents, and as many that fire together on at least 3 rows, among all latents.
        cooccurrence_rows: About how many rows, in evenly spaced batches, show which latents fire together.
        seed: Seed of the drawn latents and the samples of firings.

    Raises:
        ValueError: Store, model and autoencoder do not belong together, a latent is out of range, or codes
            are NaN or below 0.
    """
    check_belonging(sae, model, store)
    quantiles = tuple(quantiles)
    if not all(0 <= q <= 1 for q in quantiles) or list(quantiles) != sorted(quantiles, reverse=True):
        raise ValueError(f"quantiles are {quantiles}; expected numbers between 0 and 1, the largest first")
    at_least(1, n_top=n_top, cooccurrence_rows=cooccurrence_rows)
    chosen = None if latents is None or isinstance(latents, int) else _numbers(latents, sae.width)
    seen = first_pass(sae, store, chosen, n_top, cooccurrence_rows, seed)
    if isinstance(latents, int):
        numbers, words = _drawn(seen.firings, latents, seed)
    elif chosen is None:
        numbers, words = np.arange(sae.width), "all"
    else:
        numbers, words = chosen, "chosen by number"
    # rows of the tables of the first pass
    slots = np.arange(len(numbers)) if chosen is not None else numbers
    picked = [_picked(seen, slot, quantiles) for slot in slots.tolist()]
    contexts, histograms = second_pass(sae, store, numbers, seen.peak[numbers], picked, before, after)
    sampled = _purities(seen, store, slots)
    logit_effects = token_scores(model, sae, numbers, min(n_tokens, model.vocabulary))
    neighbours = nearest(sae, numbers, min(n_neighbours, sae.width - 1))
    measured = []
    for i, number in enumerate(numbers.tolist()):
        firings = int(seen.firings[number])
        measured.append(
            Latent(
                number, firings, firings / store.n_rows, float(seen.peak[number]),
                float(seen.total[number] / firings) if firings else 0.0,
                tuple(histograms[i].tolist()), *sampled[i],
                tuple(c for c in contexts[i] if c.quantile is None),
                tuple(c for c in contexts[i] if c.quantile is not None),
                *logit_effects[i], neighbours[i], _together(seen.together, number, n_neighbours),
            )
        )  # fmt: skip
    return Dashboards(
        name, sae.width, store.n_rows, int((seen.firings > 0).sum()), words, tuple(measured),
        texts(model.tokenizer, (token for latent in measured for token in latent.token_ids)),
        store.describe(),
    )  # fmt: skip


def check_belonging(sae: SparseAutoencoder, model: LanguageModel, store: ActivationStore) -> None:
    """Raise a ValueError that says what to do if the three do not belong together."""
    origin = store.describe()
    if sae.d_in != store.d_in:
        raise ValueError(
            f"the autoencoder has d_in {sae.d_in}, the rows of {store.folder} {store.d_in}; "
            "they must be equal"
        )
    site = sae.metadata.get("training", {}).get("data", {}).get("site", origin["site"])
    if site != origin["site"]:
        raise ValueError(
            f"the autoencoder was trained at {site}, the rows of {store.folder} are from {origin['site']}; "
            "harvest its own site"
        )
    if vocabulary_sha256(model.tokenizer) != origin["tokenizer"]["vocabulary_sha256"]:
        raise ValueError(
            f"the tokens of {store.folder} were made by the tokenizer of {origin['model']['name']}, "
            f"which has another vocabulary than that of {model.name}; load the store's own model"
        )
    if model.fingerprint != origin["model"]["fingerprint"]:
        raise ValueError(
            f"{store.folder} was harvested from {origin['model']['name']}, fingerprint "
            f"{origin['model']['fingerprint'][:12]}…; this is {model.name}, fingerprint "
            f"{model.fingerprint[:12]}…: other weights, or the same in another dtype. "
            "Load the store's own model"
        )


def _numbers(latents: Sequence[int] | Tensor, width: int) -> np.ndarray:
    # each once, in the order given
    return np.array(list(dict.fromkeys(indices(latents, width, least=1).tolist())))


def _drawn(firings: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, str]:
    alive = np.flatnonzero(firings)
    if n < 1 or len(alive) == 0:
        raise ValueError(f"{n} latents asked for, {len(alive)} fire; expected at least 1 of each")
    order = torch.randperm(len(alive), generator=generator(seed, "dashboards"))[:n].numpy()
    words = f"{len(order):,} drawn at random (seed {seed}) from the {len(alive):,} that fire"
    return np.sort(alive[order]), words


def _picked(seen: Seen, slot: int, quantiles: Sequence[float]) -> list[tuple[int, float | None]]:
    """Return rows to show of a latent, with their quantiles: the strongest, then lower ones, no row twice."""
    top = seen.top.rows[slot]
    picked: list[tuple[int, float | None]] = [(row, None) for row in top[top >= 0].tolist()]
    sampled = seen.sample.rows[slot] >= 0
    rows, values = seen.sample.rows[slot][sampled], seen.sample.values[slot][sampled]
    rows = rows[np.lexsort((-rows, values))].tolist()
    shown = {row for row, _ in picked}
    for q in quantiles:
        # the smallest firing with at least a share q of them at or below it, unless it is shown already
        row = rows[max(0, math.ceil(q * len(rows) - 1e-9) - 1)] if rows else None
        if row is not None and row not in shown:
            shown.add(row)
            picked.append((row, q))
    return picked


def _purities(seen: Seen, store: ActivationStore, slots: np.ndarray) -> list[tuple[float | None, int | None]]:
    """Return the share of each latent's sampled firings on the most common token there, and that token."""
    rows = seen.sample.rows[slots]
    tokens = np.full(rows.shape, -1, dtype=np.int64)
    tokens[rows >= 0] = store.windows(torch.from_numpy(rows[rows >= 0]))[0][:, 0].numpy()
    purities: list[tuple[float | None, int | None]] = []
    for sample in tokens:
        kinds, counts = np.unique(sample[sample >= 0], return_counts=True)
        if len(kinds) == 0:
            purities.append((None, None))
        else:
            purities.append((float(counts.max() / counts.sum()), int(kinds[counts.argmax()])))
    return purities


def _together(table: Cooccurrence, number: int, k: int) -> Pairs:
    if k == 0:
        return ()
    others, phi = table.neighbours(number, k, by="phi", min_count=MIN_TOGETHER)
    return tuple(zip(others.tolist(), phi.tolist(), strict=True))
