"""The bytes that pieces of byte-level vocabularies stand for, by GPT-2's table."""

from functools import cache
from typing import Any


@cache
def _byte_of() -> dict[str, int]:
    """Map characters to bytes: printable bytes are their own character, the others one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def piece_bytes(piece: str) -> bytes | None:
    """Return the bytes of a piece of a vocabulary; None if it holds a character that stands for no byte."""
    table = _byte_of()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else None


def token_bytes(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """Return the bytes of each token; joined, those of a text's tokens are the text in UTF-8.

    ValueError for a token that is none of a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, SmolLM2).
    """
    pieces = []
    for token in tokenizer.convert_ids_to_tokens(ids):
        data = None if token is None else piece_bytes(token)
        if data is None:
            raise ValueError(
                f"token {token!r} is not made of byte-level characters; "
                "expected a byte-level BPE tokenizer, such as GPT-2's or those of Llama 3, Qwen and SmolLM2"
            )
        pieces.append(data)
    return pieces
