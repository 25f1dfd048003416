"""Text of single tokens with every character visible."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from sae_lib.language_models.byte_vocabulary import piece_bytes

# the space of a sentencepiece vocabulary, which decoding drops at the start of a text
_SENTENCEPIECE_SPACE = "\u2581"
# control characters with a well-known symbol
_PICTURES = {"\n": "↵", "\r": "␍", "\t": "⇥"}
# control and format characters, surrogates, unassigned and private ones, line separators
_INVISIBLE = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def _bytes(piece: str) -> bytes | None:
    """Return the bytes that a vocabulary's piece stands for; None if it is no piece of bytes."""
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
        # part of a character: complete characters as they are, other bytes as numbers
        return "".join(
            f"⟨{ord(c) - 0xDC00:02X}⟩" if 0xDC80 <= ord(c) <= 0xDCFF else c
            for c in data.decode("utf-8", "surrogateescape")
        )
    if piece.startswith(_SENTENCEPIECE_SPACE) and not text.startswith(" "):
        text = " " + text
    return text or piece


def texts(tokenizer: Any, tokens: Iterable[int]) -> dict[int, str]:
    """Return the text of each token id on its own, spaces included.

    Bytes that are no complete UTF-8 character appear as ⟨E2⟩, ids unknown to the tokenizer as ⟨id 270⟩.
    """
    return {token: _text(tokenizer, token) for token in sorted(set(tokens))}


def visible(text: str) -> str:
    """Return the text with a symbol or number for every invisible character except spaces.

    A line feed is ↵, a tab ⇥, a zero-width or direction-changing character ⟨U+200B⟩.
    """
    return "".join(
        _PICTURES.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _INVISIBLE else c)
        for c in text
    )
