"""Classes of tokens that their text alone decides: a ground truth for what a latent stands for."""

from __future__ import annotations

import keyword
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_KEYWORDS = frozenset(keyword.kwlist)
# most tokens begin with white space, which is stripped before a class is decided
CLASSES: dict[str, Callable[[str], bool]] = {
    "white space": lambda word: not word,
    "digits": str.isdigit,
    "keyword": _KEYWORDS.__contains__,
    "Capitalised": lambda word: word[:1].isupper() and word[1:].islower(),
    "CAPITALS": lambda word: len(word) > 1 and word.isalpha() and word.isupper(),
    "underscore": lambda word: "_" in word,
    "bracket": lambda word: bool(word) and all(c in "()[]{}" for c in word),
    "operator": lambda word: bool(word) and all(c in "=+-*/<>!%&|^~@" for c in word),
    "quote": lambda word: bool(word) and all(c in "'\"" for c in word),
} | {
    f"first letter {letter}": lambda word, letter=letter: word[:1].lower() == letter
    for letter in string.ascii_lowercase
}


def token_classes(tokenizer: Any, tokens: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Tell which tokens belong to each of ``CLASSES``: by name, bool (N,).

    >>> from sae_experiments.token_classes import token_classes
    >>> tokens = model.tokenizer.encode("x_1 (")
    >>> token_classes(model.tokenizer, tokens)["bracket"]
    array([False, False, False, False,  True])

    White space around a token does not count; a token of nothing else is "white space". Classes overlap.
    "keyword" means one of Python's. A token is one piece of the tokenizer, not a word.
    """
    different, place = np.unique(np.asarray(tokens), return_inverse=True)
    words = [tokenizer.decode([int(token)]).strip() for token in different]
    return {name: np.array([rule(word) for word in words])[place] for name, rule in CLASSES.items()}
