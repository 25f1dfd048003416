"""Reading latents by tokens: how pure a latent is, and how well its reading predicts where it fires.

A *reading* is the simplest statement about a latent: "it fires on these tokens". Codes are a sparse table
(N, M) from :func:`code_table`, tokens are integers (N,), one for each row of the table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from sae_lib.sae import SparseAutoencoder


@torch.no_grad()
def code_table(sae: SparseAutoencoder, rows: Tensor | Iterable[Tensor]) -> csr_array:
    """Return the codes (N, M) of rows (N, d) times |a_m|, so that their size does not depend on the scale.

    The rows, as the model has them, are a tensor, read 4,096 rows at a time, or batches of rows.
    """
    batches = rows.split(4096) if isinstance(rows, Tensor) else rows
    tables = []
    for batch in batches:
        codes = sae.magnitudes(batch.to(sae.weight.device)).float().cpu()
        tables.append(csr_array(codes.numpy()))
    if not tables:
        raise ValueError("no rows; expected at least one batch of rows (n, d)")
    return vstack(tables, format="csr")


def scattered(codes: csr_array, *, seed: int = 0) -> csr_array:
    """Draw the null of independent firing: the codes of each latent moved to random rows of its own.

    Every latent keeps its firing rate and its codes; which latents fire together is left to chance.
    """
    rng = np.random.default_rng(seed)
    columns = csc_array(codes, copy=True)
    for latent in range(columns.shape[1]):
        part = slice(columns.indptr[latent], columns.indptr[latent + 1])
        columns.indices[part] = rng.choice(columns.shape[0], part.stop - part.start, replace=False)
    columns.has_sorted_indices = False
    return columns.tocsr()


def strongest_rows(codes: csr_array, latents: Sequence[int] | np.ndarray, top: int = 20) -> np.ndarray:
    """Return the ``top`` rows with the largest codes of each latent, largest first: (n, top).

    Equal codes keep the order of their rows. Raises ValueError for a latent that fires on fewer rows.
    """
    columns = csc_array(codes)
    strongest = np.empty((len(latents), top), dtype=np.int64)
    for i, latent in enumerate(latents):
        part = slice(columns.indptr[latent], columns.indptr[latent + 1])
        if part.stop - part.start < top:
            raise ValueError(
                f"latent {latent} fires on {part.stop - part.start} rows; expected at least {top}, "
                "choose latents by their number of firings"
            )
        order = np.lexsort((columns.indices[part], -columns.data[part]))[:top]
        strongest[i] = columns.indices[part][order]
    return strongest


def purity(tokens: np.ndarray) -> np.ndarray:
    """Return the share of the most common token in each row of a table of tokens (n, top): (n,).

    >>> from sae_lib.metrics.reading import purity
    >>> purity([[5, 5, 5, 2], [1, 2, 3, 4]])
    array([0.75, 0.25])
    """
    tokens = np.sort(np.atleast_2d(tokens), axis=1)
    n, top = tokens.shape
    # the longest run of equal tokens in a sorted row
    length, longest = np.ones(n, dtype=int), np.ones(n, dtype=int)
    for place in range(1, top):
        length = np.where(tokens[:, place] == tokens[:, place - 1], length + 1, 1)
        longest = np.maximum(longest, length)
    return longest / top


def evenly_spaced(scores: np.ndarray, n: int) -> np.ndarray:
    """Return indices of ``n`` of the scores (m,), evenly spaced by rank from the largest to the smallest.

    The book picks latents to show by this rule: ranks ⌊k (m − 1) / (n − 1)⌋, equal scores in order of index.
    """
    if not 2 <= n <= len(scores):
        raise ValueError(f"n is {n}; expected 2..{len(scores)}, the number of scores")
    order = np.argsort(-np.asarray(scores), kind="stable")
    return order[np.arange(n) * (len(scores) - 1) // (n - 1)]


@dataclass(frozen=True)
class ReadingScores:
    """A reading as a detector of the firings: precision, recall and F1, (n,), 0 where undefined."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class TokenTable:
    """How often each latent fires on each token.

    >>> from scipy.sparse import csr_array
    >>> from sae_lib.metrics.reading import TokenTable
    >>> table = TokenTable(csr_array([[1.0], [1.0], [0.0], [0.0]]), [7, 7, 3, 7], vocabulary=10)
    >>> table.best_reading(0), table.score([0], [[7]]).recall
    (array([7]), array([1.]))

    Args:
        codes: Codes (N, M), from :func:`code_table`.
        tokens: (N,), integers in 0..vocabulary − 1.
        vocabulary: Number of token ids V.

    Attributes:
        counts: (V, M) sparse, number of rows with that token on which the latent fires.
        occurrences: (V,), number of rows with that token.
        firings: (M,), number of rows on which the latent fires.
    """

    def __init__(self, codes: csr_array, tokens: np.ndarray, vocabulary: int) -> None:
        tokens = np.asarray(tokens)
        if tokens.shape != (codes.shape[0],):
            raise ValueError(f"{tokens.shape} tokens for {codes.shape[0]} rows of codes; need equal")
        if len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= vocabulary:
            raise ValueError(f"tokens must be in 0..{vocabulary - 1}, at least one of them")
        fires = csr_array((np.ones(codes.nnz, dtype=np.int64), codes.indices, codes.indptr), codes.shape)
        ones = np.ones(len(tokens), dtype=np.int64)
        of_token = csr_array((ones, (tokens, np.arange(len(tokens)))), (vocabulary, len(tokens)))
        self.counts = csc_array(of_token @ fires)
        self.occurrences = np.bincount(tokens, minlength=vocabulary)
        self.firings = np.asarray(fires.sum(axis=0)).ravel()

    def best_reading(self, latent: int) -> np.ndarray:
        """Return the set of tokens whose occurrence predicts the firings of a latent with the highest F1.

        No other set does better on these rows: the best one contains all tokens on which the latent fires
        often enough, so it is a prefix of the tokens in descending order of P(fires | token). It is empty if
        the latent never fires.
        """
        part = slice(self.counts.indptr[latent], self.counts.indptr[latent + 1])
        tokens, hits = self.counts.indices[part], self.counts.data[part]
        order = np.lexsort((tokens, -hits / self.occurrences[tokens]))
        tokens, hits = tokens[order], hits[order].cumsum()
        f1 = 2 * hits / (self.occurrences[tokens].cumsum() + self.firings[latent])
        return tokens[: f1.argmax() + 1] if len(f1) else tokens

    def typical(self, latent: int, n: int = 10) -> np.ndarray:
        """Return the up to ``n`` tokens with the largest surplus above 0, c − firings · occurrences / N.

        Here c counts the rows with that token on which the latent fires; independence has surplus 0.
        """
        part = slice(self.counts.indptr[latent], self.counts.indptr[latent + 1])
        tokens, hits = self.counts.indices[part], self.counts.data[part]
        surplus = hits - self.firings[latent] * (self.occurrences[tokens] / self.occurrences.sum())
        order = np.lexsort((tokens, -surplus))[:n]
        return tokens[order][surplus[order] > 0]

    def score(self, latents: Sequence[int] | np.ndarray, readings: Sequence[np.ndarray]) -> ReadingScores:
        """Measure how well "it fires exactly on these tokens" holds on the rows of this table.

        The readings are distinct tokens for each of the latents.
        """
        if len(latents) != len(readings):
            raise ValueError(f"{len(latents)} latents and {len(readings)} readings; need equal numbers")
        hits, predicted = np.zeros((2, len(latents)))
        for i, (latent, tokens) in enumerate(zip(latents, readings, strict=True)):
            part = slice(self.counts.indptr[latent], self.counts.indptr[latent + 1])
            hits[i] = self.counts.data[part][np.isin(self.counts.indices[part], tokens)].sum()
            predicted[i] = self.occurrences[np.asarray(tokens, dtype=np.int64)].sum()
        fired = self.firings[np.asarray(latents)]
        return ReadingScores(
            precision=hits / np.maximum(predicted, 1),
            recall=hits / np.maximum(fired, 1),
            f1=2 * hits / np.maximum(predicted + fired, 1),
        )
