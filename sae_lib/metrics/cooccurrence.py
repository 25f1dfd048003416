"""Which latents fire together, in sparse form: M = 65,536 latents without an M × M table (paper, H3).

Memory holds one table of firings, about 16 bytes each (1 GB for a million rows at L0 = 64); pairs are counted
from it in blocks of latents. Pair counts accumulated over a stream could grow up to M²/2.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import sparse
from scipy.sparse import csr_array
from torch import Tensor

from sae_lib.checks import at_least, one_of
from sae_lib.kernels import SparseCodes

Codes: TypeAlias = Tensor | SparseCodes | csr_array

MEASURES = ("count", "conditional", "lift", "phi")

# pairs counted at a time, 8 bytes each, and dense codes read at a time
_BLOCK_PAIRS = 2**23
_BLOCK_CODES = 2**24


@dataclass(frozen=True)
class Rho2:
    """ρ₂ of H3 on latents, as :class:`sae_lib.identifiability.Conditions` has it for features.

    Attributes:
        rho2: max over i ≠ j of P(j fires | i fires).
        pair: The first (i, j) of this maximum, None where no two fire together.
        mean: Mean of P(j | i) over all pairs i ≠ j.
        n_latents: Number of latents with enough firings; the others count neither as i nor as j.
        largest: (M,), max over j of P(j | i) for each i, NaN for a latent that does not count. A single
            latent that fires on most rows raises ρ₂ and all of these.
    """

    rho2: float
    pair: tuple[int, int] | None
    mean: float
    n_latents: int
    largest: np.ndarray

    @property
    def rho2_sqrt_n(self) -> float:
        """ρ₂√n, which should be well below 1 for H3."""
        return self.rho2 * math.sqrt(self.n_latents)


class Cooccurrence:
    """Firings of M latents on N rows, and the pairs among them; made by :func:`cooccurrence`.

    Measures of a pair i → j that fires together on c of the N rows, with firings c_i and c_j:
    ``"count"`` c; ``"conditional"`` P(j | i) = c/c_i; ``"lift"`` Nc/(c_i c_j), 1 where they are independent;
    ``"phi"`` their correlation (Nc − c_i c_j)/√(c_i c_j (N − c_i)(N − c_j)), 0 if one fires on every row.
    All are estimates: two latents that fire once each, on the same row, have P = φ = 1 and lift N.

    Args:
        fires: (N, M) int32, 1 where a latent fires.

    Attributes:
        firings: (M,) int64, number of rows on which each latent fires.
    """

    def __init__(self, fires: csr_array) -> None:
        self._by_row, self._by_latent = fires, fires.T.tocsr()
        self.firings = np.diff(self._by_latent.indptr).astype(np.int64)

    @property
    def n_rows(self) -> int:
        """Number of rows N."""
        return self._by_row.shape[0]

    @property
    def width(self) -> int:
        """Number of latents M."""
        return self._by_row.shape[1]

    def pairs(self, measure: str = "count", *, min_count: int = 1, max_pairs: int = 10**8) -> csr_array:
        """Return the ``measure`` of pairs i → j that share at least ``min_count`` rows: (M, M), i by row.

        Pairs that share fewer rows are not stored; their measure need not be 0. For (rows, columns,
        values) use ``.tocoo()``. Raises ValueError for more than ``max_pairs``, which take 12 bytes each, and
        twice that while they are collected.
        """
        _check(measure, min_count)
        columns, values = [], []
        sizes = np.zeros(self.width + 1, dtype=np.int64)
        n_pairs = 0
        for i, j, count in self._blocks():
            keep = count >= min_count
            i, j, count = i[keep], j[keep], count[keep]
            n_pairs += len(i)
            if n_pairs > max_pairs:
                raise ValueError(
                    f"more than {max_pairs} pairs fire together on at least {min_count} rows; "
                    "raise min_count, or max_pairs if memory allows"
                )
            sizes[1:] += np.bincount(i, minlength=self.width)
            columns.append(j)
            values.append(self._measure(measure, i, j, count))
        if not values:
            return csr_array((self.width, self.width))
        table = (np.concatenate(values), np.concatenate(columns), sizes.cumsum())
        return csr_array(table, shape=(self.width, self.width))

    def neighbours(
        self, latent: int, k: int = 10, *, by: str = "phi", min_count: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the up to ``k`` latents j with the largest measure ``by`` of latent → j, and that measure.

        They come largest first, equal values in order of index, and fire with the latent on at least
        ``min_count`` rows.
        """
        _check(by, min_count)
        if not 0 <= latent < self.width or k < 1:
            raise ValueError(f"latent is {latent}, k is {k}; expected a latent in 0..{self.width - 1}, k ≥ 1")
        i, j, count = self._count(latent, latent + 1)
        keep = count >= min_count
        values = self._measure(by, i[keep], j[keep], count[keep])
        order = np.argsort(-values, kind="stable")[:k]
        return j[keep][order], values[order]

    def rho2(self, *, min_firings: int = 1) -> Rho2:
        """Measure ρ₂ over the latents that fire on at least ``min_firings`` rows.

        A latent that fires once has P(j | i) = 1 with all others on its row: ρ₂ of rare latents is chance.
        """
        at_least(1, min_firings=min_firings)
        used = self.firings >= min_firings
        n = int(used.sum())
        if n == 0:
            raise ValueError(f"no latent fires on {min_firings} rows; the most is {self.firings.max()}")
        largest = np.where(used, 0.0, np.nan)
        best, pair, total = 0.0, None, 0.0
        for i, j, count in self._blocks():
            keep = used[i] & used[j]
            i, j = i[keep], j[keep]
            values = count[keep] / self.firings[i]
            total += values.sum()
            np.maximum.at(largest, i, values)
            if values.max(initial=0.0) > best:
                k = values.argmax()
                best, pair = values[k].item(), (int(i[k]), int(j[k]))
        return Rho2(best, pair, float(total / (n * (n - 1))) if n > 1 else 0.0, n, largest)

    def _measure(self, name: str, i: np.ndarray, j: np.ndarray, count: np.ndarray) -> np.ndarray:
        if name == "count":
            return count.astype(np.int64)
        # products of counts do not fit into int32
        n, count, c_i, c_j = (
            self.n_rows,
            *(x.astype(float) for x in (count, self.firings[i], self.firings[j])),
        )
        if name == "conditional":
            return count / c_i
        if name == "lift":
            return n * count / (c_i * c_j)
        spread = np.sqrt(c_i * c_j * (n - c_i) * (n - c_j))
        return np.divide(n * count - c_i * c_j, spread, out=0 * c_i, where=spread > 0)

    def _count(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs i ≠ j with i in start..stop − 1 and the rows they share, in the order of i, then j."""
        table = self._by_latent[start:stop] @ self._by_row
        table.sort_indices()
        i = np.repeat(np.arange(start, stop, dtype=table.indices.dtype), np.diff(table.indptr))
        apart = i != table.indices
        return i[apart], table.indices[apart], table.data[apart]

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        # a latent has at most as many partners as firings on the rows where it fires
        partners = self._by_latent @ np.diff(self._by_row.indptr).astype(np.int64)
        filled = np.minimum(partners, self.width).cumsum() // _BLOCK_PAIRS
        cuts = [0, *(np.flatnonzero(np.diff(filled)) + 1).tolist(), self.width]
        for start, stop in itertools.pairwise(cuts):
            yield self._count(start, stop)


def cooccurrence(codes: Codes | Iterable[Codes], *, max_firings: int = 2 * 10**8) -> Cooccurrence:
    """Count firings in codes (N, M), one matrix or batches of rows; a latent fires where its code is not 0.

    >>> from sae_lib.metrics.cooccurrence import cooccurrence
    >>> codes = torch.tensor([[1.0, 2, 0], [3, 1, 0], [0, 1, 0], [0, 0, 1]])
    >>> together = cooccurrence(codes)
    >>> together.firings, together.pairs("conditional").toarray()[0], together.rho2().pair
    (array([2, 3, 1]), array([0., 1., 0.]), (0, 1))

    Args:
        codes: One matrix or an iterable of them with equal M: a tensor, dense or sparse, the SparseCodes of a
            training step, or a scipy sparse array. Batches are read one at a time.
        max_firings: Most firings to hold; below 2³¹.

    Raises:
        ValueError: Unequal widths, NaN, no rows, or too many firings.
    """
    if not 1 <= max_firings < 2**31:
        raise ValueError(f"max_firings is {max_firings}; expected 1 ≤ max_firings < 2^31")
    batches = [codes] if isinstance(codes, (Tensor, SparseCodes)) or sparse.issparse(codes) else codes
    tables: list[csr_array] = []
    n_firings = n_rows = 0
    for table in (table for batch in batches for table in _tables(batch)):
        if tables and table.shape[1] != tables[0].shape[1]:
            raise ValueError(f"a batch has {table.shape[1]} latents after ones of {tables[0].shape[1]}")
        if np.isnan(table.data).any():
            raise ValueError(f"codes hold NaN in or after row {n_rows}")
        n_firings, n_rows = n_firings + table.nnz, n_rows + table.shape[0]
        if n_firings > max_firings:
            raise ValueError(f"more than {max_firings} firings in the first {n_rows} rows; give fewer rows")
        table.data = np.ones(table.nnz, dtype=np.int32)
        tables.append(table)
    if n_rows == 0 or tables[0].shape[1] == 0:
        raise ValueError("codes have no rows or no latents; expected (N, M), both at least 1")
    return Cooccurrence(sparse.vstack(tables, format="csr"))


def _tables(codes: Codes) -> Iterator[csr_array]:
    """Yield the nonzero codes, (rows, M), in canonical form and not sharing memory with ``codes``."""
    if isinstance(codes, SparseCodes):
        yield _table(codes.values, codes.support.rows, codes.support.latents, codes.support.shape)
    elif not isinstance(codes, Tensor):
        yield _canonical(csr_array(codes, copy=True))
    elif codes.ndim != 2:
        raise ValueError(f"codes have shape {tuple(codes.shape)}; expected (N, M)")
    else:
        is_sparse = codes.is_sparse or codes.is_sparse_csr
        for block in [codes] if is_sparse else codes.split(max(1, _BLOCK_CODES // max(1, codes.shape[1]))):
            entries = block.detach().to_sparse_coo().coalesce()
            rows, latents = entries.indices()
            yield _table(entries.values(), rows, latents, tuple(block.shape))


def _table(values: Tensor, rows: Tensor, latents: Tensor, shape: tuple[int, ...]) -> csr_array:
    numbers = values.detach().double().cpu().numpy()
    return _canonical(csr_array((numbers, (rows.cpu().numpy(), latents.cpu().numpy())), shape=shape))


def _canonical(table: csr_array) -> csr_array:
    table.sum_duplicates()
    table.eliminate_zeros()
    return table


def _check(measure: str, min_count: int) -> None:
    one_of("measure", measure, MEASURES)
    at_least(1, min_count=min_count)
