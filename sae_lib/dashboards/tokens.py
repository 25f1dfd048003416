"""Text of single tokens, so that a reader sees every character of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from sae_lib.language_models.byte_vocabulary import piece_bytes

# what a sentencepiece vocabulary writes for a space, which decoding drops at the start of a text
_SENTENCEPIECE_SPACE = "\u2581"
# control characters that have a well-known picture
_PICTURES = {"\n": "↵", "\r": "␍", "\t": "⇥"}
# format and control characters, surrogates, unassigned and private ones, separators of lines
_INVISIBLE = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def _bytes(piece: str) -> bytes | None:
    """The bytes that a piece of a vocabulary stands for; None where it is no piece of bytes."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            return None
    return piece_bytes(piece)


def _text(tokenizer: Any, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    if piece is None:
        # vocabularies are padded to round sizes
        return f"⟨id {token}⟩"
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if "\ufffd" in text and (data := _bytes(piece)) is not None:
        # a piece of a character: what is whole of it, and the other bytes as numbers
        return "".join(
            f"⟨{ord(c) - 0xDC00:02X}⟩" if 0xDC80 <= ord(c) <= 0xDCFF else c
            for c in data.decode("utf-8", "surrogateescape")
        )
    if piece.startswith(_SENTENCEPIECE_SPACE) and not text.startswith(" "):
        text = " " + text
    return text or piece


def texts(tokenizer: Any, tokens: Iterable[int]) -> dict[int, str]:
    """Text of each token id by itself, spaces included.

    Bytes that are no whole UTF-8 character read ⟨E2⟩, ids that the tokenizer does not know ⟨id 270⟩.
    """
    return {token: _text(tokenizer, token) for token in sorted(set(tokens))}


def visible(text: str) -> str:
    """The text with a picture or number for every character that would not show, spaces excepted.

    A line feed is ↵, a tab ⇥, a zero-width or direction-changing character ⟨U+200B⟩.
    """
    return "".join(
        _PICTURES.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _INVISIBLE else c)
        for c in text
    )
