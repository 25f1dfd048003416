"""Concepts of source code, computed from its tokens alone: what an explanation of a latent may say.

No model is involved, so a label owes nothing to training. A token is judged by its *place*: its first byte
that is not white space, or its first byte where all are. Tokens may cut characters of several bytes; bytes
above 127 count as neither letter, digit nor bracket.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_lib.corpora import separator_id
from sae_lib.language_models.byte_vocabulary import token_bytes

# decided by the token alone, whatever precedes it
OF_THE_TOKEN = ("newline", "open bracket", "digit", "capital", "keyword", "underscore")
# decided by the text before it
OF_THE_CONTEXT = (
    "in string", "in comment", "in brackets", "in two brackets", "after dot", "after def", "after comma",
    "line start", "late in line", "deeply indented", "seen before", "late in block",
)  # fmt: skip
NAMES = OF_THE_TOKEN + OF_THE_CONTEXT
# bytes from the start of a line; columns of indentation; tokens looked back
LATE_IN_LINE, DEEP, SEEN_WITHIN = 40, 8, 50

_PIECES = re.compile(
    rb"(?P<comment>\#[^\n]*)"
    rb'|(?P<string>"""(?:[^\\]|\\.)*?(?:"""|\Z)|\'\'\'(?:[^\\]|\\.)*?(?:\'\'\'|\Z)'
    rb'|"(?:[^"\\\n]|\\.)*(?:"|(?=\n)|\\?\Z)|\'(?:[^\'\\\n]|\\.)*(?:\'|(?=\n)|\\?\Z))'
    rb"|(?P<open>[(\[{])|(?P<close>[)\]}])",
    re.DOTALL,
)


@dataclass(frozen=True)
class Places:
    """For every byte of a source text, numpy arrays of its length.

    Attributes:
        string: In a string literal, quotes included, prefixes not.
        comment: In a comment.
        depth: Brackets open around it, not counting itself.
        column: Bytes since the line began.
        indent: Spaces and tabs the line begins with.
    """

    string: np.ndarray
    comment: np.ndarray
    depth: np.ndarray
    column: np.ndarray
    indent: np.ndarray


def places(text: bytes) -> Places:
    """Find the strings, comments and brackets of Python source. Never fails: the text may be cut short.

    An unclosed string in single quotes ends with its line, one in triple quotes with the text. The inside of
    an f-string is string.
    """
    n = len(text)
    string, comment, step = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n + 1, np.int64)
    depth = 0
    for piece in _PIECES.finditer(text):
        begin, end = piece.span()
        if piece.lastgroup == "string":
            string[begin:end] = True
        elif piece.lastgroup == "comment":
            comment[begin:end] = True
        elif piece.lastgroup == "open":
            depth += 1
            step[end] += 1
        elif depth:  # a bracket that closes nothing is ignored
            depth -= 1
            step[begin] -= 1
    begins = np.array([0] + [i + 1 for i, byte in enumerate(text) if byte == 10], np.int64)
    line = np.searchsorted(begins, np.arange(n), side="right") - 1
    body = [len(row) - len(row.lstrip(b" \t")) for row in text.split(b"\n")]
    return Places(
        string, comment, step.cumsum()[:n], np.arange(n) - begins[line], np.array(body, np.int64)[line]
    )


def _documents(ids: list[int], separator: int) -> Iterator[slice]:
    """Yield the stretches of a token stream between separators."""
    begin = 0
    for i, token in enumerate([*ids, separator]):
        if token == separator:
            if i > begin:
                yield slice(begin, i)
            begin = i + 1


def _labels(pieces: list[bytes]) -> np.ndarray:
    """Return labels (tokens, concepts) of one document, without the two that its text does not decide."""
    text = b"".join(pieces)
    where = places(text)
    labels = np.zeros((len(pieces), len(NAMES)), bool)
    begin = 0
    for row, piece in zip(labels, pieces, strict=True):
        bare = piece.strip()
        at = begin + (len(piece) - len(piece.lstrip()) if bare else 0)
        before = text[max(0, at - 80) : at]
        last_line = before.rpartition(b"\n")[2]
        flags = {
            "newline": b"\n" in piece,
            "open bracket": any(bracket in piece for bracket in (b"(", b"[", b"{")),
            "digit": any(48 <= byte <= 57 for byte in piece),
            "capital": b"A" <= bare[:1] <= b"Z",
            "keyword": bare.decode("latin-1") in keyword.kwlist,
            "underscore": b"_" in piece,
        }
        if piece:
            flags |= {
                "in string": where.string[at],
                "in comment": where.comment[at],
                "in brackets": where.depth[at] >= 1,
                "in two brackets": where.depth[at] >= 2,
                "after dot": before.endswith(b"."),
                "after def": re.search(rb"\b(def|class)\s+$", last_line) is not None,
                "after comma": before.rstrip().endswith(b","),
                "line start": bool(bare) and where.column[at] == where.indent[at],
                "late in line": where.column[at] >= LATE_IN_LINE,
                "deeply indented": where.indent[at] >= DEEP,
            }
        row[[NAMES.index(name) for name, value in flags.items() if value]] = True
        begin += len(piece)
    return labels


def code_concepts(blocks: Tensor, tokenizer: Any) -> Tensor:
    """Return labels (B, T, F), bool, of token blocks (B, T), F concepts in the order of ``NAMES``.

    >>> from sae_experiments import concepts
    >>> tokens = model.tokenizer.encode("f(x)  # same")
    >>> labels = concepts.code_concepts(torch.tensor([tokens]), model.tokenizer)
    >>> labels.shape, labels[0, :, concepts.NAMES.index("in comment")].sum()
    (torch.Size([1, 12, 18]), tensor(6))

    "seen before": the same token among the ``SEEN_WITHIN`` before it, in its document. "late in block": in
    the second half of the block. "line start": the first token of a line beside white space. "late in line",
    "deeply indented": from ``LATE_IN_LINE`` bytes, ``DEEP`` columns on. "after def": a name that is being
    defined, by ``def`` or ``class``.

    Args:
        blocks: Consecutive blocks of :func:`sae_lib.corpora.token_blocks`, so that a block can begin inside a
            string. A separator ends a document and has no concept itself.
        tokenizer: The one that made the tokens.

    Raises:
        ValueError: Blocks are not whole numbers (B, T).
    """
    if blocks.ndim != 2 or blocks.is_floating_point() or 0 in blocks.shape:
        raise ValueError(
            f"blocks have shape {tuple(blocks.shape)} and type {blocks.dtype}; expected whole numbers (B, T)"
        )
    ids = blocks.flatten().tolist()
    separator = separator_id(tokenizer)
    labels = np.zeros((len(ids), len(NAMES)), bool)
    seen, late = NAMES.index("seen before"), NAMES.index("late in block")
    for document in _documents(ids, separator):
        tokens = ids[document]
        labels[document] = _labels(token_bytes(tokenizer, tokens))
        last: dict[int, int] = {}
        for i, token in enumerate(tokens):
            labels[document.start + i, seen] = i - last.get(token, -SEEN_WITHIN - 1) <= SEEN_WITHIN
            last[token] = i
    length = blocks.shape[1]
    labels[:, late] = (np.arange(len(ids)) % length >= length // 2) & (np.array(ids) != separator)
    return torch.from_numpy(labels).view(len(blocks), length, len(NAMES))
