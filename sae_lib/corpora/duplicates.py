"""Near-duplicates among texts, by the lines they share."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# 16 bands of 4 hashes: a pair that shares 80 % of its lines is a candidate with probability 0.9998
_BANDS, _PER_BAND = 16, 4


def _lines(text: str) -> NDArray[np.uint64]:
    """Return the hashes of a text's different lines in ascending order, without outer spaces, none empty."""
    lines = {line.strip() for line in text.split("\n")} - {""}
    hashes = np.fromiter((zlib.crc32(line.encode("utf-8", "replace")) for line in lines), np.uint64)
    return np.unique(hashes)


def _share(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Return the Jaccard similarity of two ascending lists of hashes, both of different ones."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def first_of_each(texts: Sequence[str], similarity: float = 0.8) -> list[int]:
    r"""Return the numbers of the texts that are no copy of an earlier one, in order.

    A text is a copy of a kept one if the two are equal up to white space, or if of all different lines in
    either, leading and trailing spaces aside, they share at least ``similarity`` (Jaccard). Pairs to compare
    are found by MinHash of the lines, with fixed hash functions, so that the same texts always give the same.

    >>> long = [f"line {i}" for i in range(100)]
    >>> changed = [*long[:95], *"abcde"]
    >>> texts = ["x = 1", "x  =  1", *("\n".join(lines) for lines in (long, changed, long[:50]))]
    >>> sae_lib.corpora.duplicates.first_of_each(texts)
    [0, 2, 4]

    Raises:
        ValueError: ``similarity`` is not in (0, 1].
    """
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity is {similarity}; expected above 0, at most 1")
    # odd multipliers: x → ax + b mod 2^64 is then a permutation
    draws = np.random.default_rng(0).integers(2**63, size=(2, _BANDS * _PER_BAND), dtype=np.uint64)
    factors, offsets = draws[0] * np.uint64(2) + np.uint64(1), draws[1]
    exact: set[bytes] = set()
    bands: list[dict[bytes, list[int]]] = [{} for _ in range(_BANDS)]
    sets: dict[int, NDArray[np.uint64]] = {}
    for number, text in enumerate(texts):
        words = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()
        if words in exact:
            continue
        lines = _lines(text)
        # the upper bits, as the lower ones of a product depend on few bits of its factors
        mixed = (lines[:, None] * factors + offsets) >> np.uint64(32)
        smallest = mixed.min(axis=0, initial=np.uint64(2**32)).reshape(_BANDS, _PER_BAND)
        keys = [band.tobytes() for band in smallest]
        candidates = {i for band, key in zip(bands, keys, strict=True) for i in band.get(key, ())}
        if len(lines) and any(_share(lines, sets[i]) >= similarity for i in sorted(candidates)):
            continue
        exact.add(words)
        sets[number] = lines
        for band, key in zip(bands, keys, strict=True):
            band.setdefault(key, []).append(number)
    return list(sets)
