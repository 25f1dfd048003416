"""Documents cut into blocks of tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from sae_lib.corpora.documents import Corpus
from sae_lib.randomness import generator

# characters given to the tokenizer at once: enough to occupy its threads, few enough to stay lazy
_CHUNK_CHARACTERS = 2**18
# of English and code, roughly: the length of an excerpt is set in characters, as tokenising all would cost
_CHARACTERS_PER_TOKEN = 4


def separator_id(tokenizer: Any) -> int:
    """Return the token put between documents: ``<|endoftext|>`` where there is one, else the EOS token.

    The two differ in chat models, whose EOS ends a turn, not a document.
    """
    if "<|endoftext|>" in tokenizer.all_special_tokens:
        return int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to put between documents; set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


def opening_ids(tokenizer: Any) -> list[int]:
    """Return the tokens that open every block: BOS if the tokenizer adds it to texts, otherwise none."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def n_excerpts(text: str, size: int) -> int:
    """Return into how many excerpts of about ``size`` characters a text is cut, at least one."""
    return max(1, round(len(text) / size))


def excerpt(text: str, number: int, of: int) -> str:
    r"""Return one of the excerpts of about equal length into which a text is cut.

    A cut is at the last line end in the half excerpt before the even division, else at the last space there,
    else at the division itself. Only the surroundings of the two ends are looked at.

    >>> [sae_lib.corpora.blocks.excerpt("a = 1\nbb = 2\nc = 3\n", i, 2) for i in range(2)]
    ['a = 1\n', 'bb = 2\nc = 3\n']
    """

    def cut(i: int) -> int:
        target = i * len(text) // of
        low = target - len(text) // (2 * of)
        if 0 < i < of:
            for end in ("\n", " "):
                if (found := text.rfind(end, low, target)) >= 0:
                    return found + 1
        return target

    return text[cut(number) : cut(number + 1)]


def _documents(corpus: Corpus, seed: int, epoch: int) -> Iterator[tuple[str, bool]]:
    """Yield every document's text in a random order, and that it is new."""
    for index in torch.randperm(
        len(corpus.documents), generator=generator(seed, "documents", epoch)
    ).tolist():
        yield corpus.documents[index].text, True


def _rounds(corpus: Corpus, seed: int, epoch: int, size: int) -> Iterator[tuple[str, bool]]:
    """Yield one excerpt of every document, then another of every document that has more, and so on.

    With each goes whether its document is new. Every round has its own order; a document's excerpts come in
    their order from a random one on, the first following the last.
    """
    documents = corpus.documents
    starts = torch.randint(2**31, (len(documents),), generator=generator(seed, "excerpts", epoch))
    left, turn = torch.arange(len(documents)), 0
    while len(left):
        order = torch.randperm(len(left), generator=generator(seed, "round", epoch, turn))
        more = torch.zeros(len(left), dtype=torch.bool)
        for place in order.tolist():
            index = int(left[place])
            text = documents[index].text
            count = n_excerpts(text, size)
            first = int(starts[index]) * count >> 31
            yield excerpt(text, (first + turn) % count, count), turn == 0
            more[place] = turn + 1 < count
        left, turn = left[more], turn + 1


def _chunks(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    chunk: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece[0])
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class TokenBlocks(Iterator[Tensor]):
    """An iterator over blocks of tokens that counts the documents it has touched; see :func:`token_blocks`.

    Attributes:
        documents: Documents of which a token, or the separator after them, is in a block handed out.
    """

    def __init__(
        self,
        pieces: Iterator[tuple[str, bool]],
        tokenizer: Any,
        opening: list[int],
        separator: int,
        fresh: int,
    ) -> None:
        self.documents = 0
        self._pieces, self._tokenizer = pieces, tokenizer
        self._opening, self._separator, self._fresh = opening, separator, fresh
        self._blocks = self._cut()

    def __next__(self) -> Tensor:
        """Return the next block (block_size,)."""
        return next(self._blocks)

    def _cut(self) -> Iterator[Tensor]:
        pending: list[int] = []
        # places in the stream of tokens: where new documents begin, and where the pending tokens do
        begins: deque[int] = deque()
        place = 0
        for chunk in _chunks(self._pieces):
            # verbose=False: documents may be longer than the model's context
            texts = [text for text, _ in chunk]
            encoded = self._tokenizer(
                texts, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            for ids, (_, is_new) in zip(encoded.input_ids, chunk, strict=True):
                if is_new:
                    begins.append(place + len(pending))
                pending += [*ids, self._separator]
            used = len(pending) // self._fresh * self._fresh
            for begin in range(0, used, self._fresh):
                while begins and begins[0] < place + begin + self._fresh:
                    begins.popleft()
                    self.documents += 1
                yield torch.tensor(self._opening + pending[begin : begin + self._fresh])
            del pending[:used]
            place += used


def token_blocks(
    corpus: Corpus,
    tokenizer: Any,
    block_size: int = 256,
    *,
    seed: int = 0,
    epoch: int = 0,
    spread: bool = True,
) -> TokenBlocks:
    """Return an iterator over int64 blocks (block_size,) of one pass over the corpus, without padding.

    With ``spread``, the first blocks touch as many documents as they can. Documents are cut at line ends into
    excerpts of about one block (by characters, four to a token), and read in rounds: the first takes one
    excerpt of every document, drawn at random, each later one the next excerpt of every document that has
    more. Without, documents are read whole, one after the other. Both come in an order drawn from
    ``(seed, epoch)``.

    Each excerpt or document is followed by :func:`separator_id`; the stream of tokens is cut every
    ``block_size`` tokens and the last, partial block is dropped. Where the tokenizer opens texts with BOS,
    every block starts with it (and has one token less of the stream). Control tokens spelled out in the text
    (``<|im_start|>``) are tokenised as plain characters. Text is tokenised only as blocks are requested.

    Raises:
        ValueError: Blocks are too short to hold a token of the text.
    """
    opening, separator = opening_ids(tokenizer), separator_id(tokenizer)
    fresh = block_size - len(opening)
    if fresh < 1:
        raise ValueError(f"block_size is {block_size}; expected at least {len(opening) + 1}")
    pieces = (
        _rounds(corpus, seed, epoch, _CHARACTERS_PER_TOKEN * fresh)
        if spread
        else _documents(corpus, seed, epoch)
    )
    return TokenBlocks(pieces, tokenizer, opening, separator, fresh)
