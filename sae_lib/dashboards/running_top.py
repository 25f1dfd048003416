"""The best few of a long stream of entries, for each latent."""

import numpy as np


class RunningTop:
    """For each of ``n`` latents the ``k`` entries with the largest scores, of all entries offered so far.

    Of a group of entries only the best can stay; of equal scores the smaller row wins. The result does not
    depend on how entries were divided into offers, as long as rows ascend from one to the next.

    Attributes:
        scores: (n, k), float64, best first.
        values: (n, k), float64, of the same entries.
        rows: (n, k), int64; −1 where fewer than k came.
    """

    def __init__(self, n: int, k: int) -> None:
        self.k = k
        self.scores = np.full((n, k), -np.inf)
        self.values = np.zeros((n, k))
        self.rows = np.full((n, k), -1, dtype=np.int64)
        self._groups = np.full((n, k), -1, dtype=np.int64)

    def offer(
        self,
        latents: np.ndarray,
        rows: np.ndarray,
        scores: np.ndarray,
        values: np.ndarray,
        groups: np.ndarray,
    ) -> None:
        """Consider new entries, given by an array (e,) for each of their parts."""
        if self.k == 0:
            return
        # an equal score has a larger row, and loses
        better = scores > self.scores[latents, -1]
        touched = np.unique(latents[better])
        if len(touched) == 0:
            return
        filled = self.rows[touched] >= 0
        tables = (self.rows, self.scores, self.values, self._groups)
        numbers = np.broadcast_to(np.arange(len(self.rows))[:, None], self.rows.shape)
        latent, row, score, value, group = (
            np.concatenate([kept[touched][filled], new[better]])
            for kept, new in zip((numbers, *tables), (latents, rows, scores, values, groups), strict=True)
        )
        # stable sorts, from the least important key to the most
        order = np.lexsort((row, -score, group, latent))
        order = order[_firsts(latent[order], group[order])]
        order = order[np.lexsort((row[order], -score[order], latent[order]))]
        sorted_latents = latent[order]
        starts = np.flatnonzero(_firsts(sorted_latents))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
        order, rank = order[rank < self.k], rank[rank < self.k]
        for kept, new in zip(tables, (row, score, value, group), strict=True):
            kept[latent[order], rank] = new[order]


def _firsts(*keys: np.ndarray) -> np.ndarray:
    """Return where a new combination of sorted keys begins: bool (e,)."""
    new = np.zeros(len(keys[0]), dtype=bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return new


def priorities(latents: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return a pseudo-random number in [0, 1) for each pair of latent and row (SplitMix64).

    It depends only on the pair and the seed; the largest few of a latent are a random sample of its rows.
    """
    with np.errstate(over="ignore"):
        x = (rows.astype(np.uint64) << np.uint64(24)) ^ latents.astype(np.uint64)
        x += np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        for _ in range(2):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53
