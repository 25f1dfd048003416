"""Blocks spread over documents: excerpts, rounds, and the count of the documents touched."""

import hashlib
import itertools
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_fixtures import text_corpus, tokenizer

from sae_lib.corpora import Corpus, Document, token_blocks
from sae_lib.corpora.blocks import excerpt, n_excerpts

torch.set_num_threads(1)
WORDS = tokenizer()
SEPARATOR = WORDS.convert_tokens_to_ids("<|endoftext|>")
words = st.text(st.sampled_from("ab \n\u00e9"), max_size=300)


def make(*texts: str) -> Corpus:
    return Corpus("test", "none", tuple(Document(f"d{i}", text) for i, text in enumerate(texts)))


def pieces(corpus: Corpus, block_size: int, **settings) -> list[bytes]:
    """The bytes between separators in one pass; the token of a byte is its place in the alphabet."""
    flat = [t for block in token_blocks(corpus, WORDS, block_size, **settings) for t in block.tolist()]
    parts = [list(ids) for is_end, ids in itertools.groupby(flat, lambda t: t == SEPARATOR) if not is_end]
    return [WORDS.decode(ids).encode() for ids in parts]


# ---- excerpts


@given(text=words, size=st.integers(1, 80))
def test_excerpts_are_the_text_and_of_about_one_length(text, size):
    count = n_excerpts(text, size)
    parts = [excerpt(text, i, count) for i in range(count)]
    assert "".join(parts) == text
    if count > 1:
        mean = len(text) / count
        assert all(mean / 2 - 1 <= len(part) <= 1.5 * mean + 1 for part in parts)
        assert 2 / 3 * size <= mean <= 4 / 3 * size


def test_a_cut_is_at_a_line_end_else_at_a_space_else_anywhere():
    text = "x = 1\n" * 100
    assert {excerpt(text, i, 7)[-1] for i in range(7)} == {"\n"}
    assert {excerpt("word " * 100, i, 7)[-1] for i in range(7)} == {" "}
    assert {len(excerpt("w" * 70, i, 7)) for i in range(7)} == {10}


# ---- rounds


@settings(deadline=None)
@given(texts=st.lists(words, min_size=1, max_size=6), seed=st.integers(0, 99), epoch=st.integers(0, 2))
def test_a_pass_gives_every_excerpt_once(texts, seed, epoch):
    corpus = make(*texts)
    # blocks of one token drop nothing
    expected = [excerpt(t, i, n_excerpts(t, 4)).encode() for t in texts for i in range(n_excerpts(t, 4))]
    assert Counter(pieces(corpus, 1, seed=seed, epoch=epoch)) == Counter(part for part in expected if part)


@settings(deadline=None)
@given(n_lines=st.lists(st.integers(1, 60), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_round_gives_every_document_that_has_more_its_next_excerpt(n_lines, seed):
    block = 16
    corpus = make(*("".join(f"{i:02d} {j:04d}\n" for j in range(n)) for i, n in enumerate(n_lines)))
    excerpts = [
        [
            excerpt(d.text, i, n_excerpts(d.text, 4 * block)).encode()
            for i in range(n_excerpts(d.text, 4 * block))
        ]
        for d in corpus.documents
    ]
    stream = pieces(corpus, block, seed=seed)
    # the last excerpts may be cut or missing, as partial blocks are dropped
    whole = stream[:-1] if stream else []
    turns: Counter[int] = Counter()
    seen: dict[int, list[int]] = {}
    for part in whole:
        document = int(part[:2])
        seen.setdefault(document, []).append(excerpts[document].index(part))
        turns[document] += 1
        # nobody is a round ahead of one who has more
        ahead = turns[document] - 1
        assert all(turns[other] >= min(ahead, len(excerpts[other])) for other in range(len(n_lines)))
    for document, numbers in seen.items():
        count = len(excerpts[document])
        assert numbers == [(numbers[0] + i) % count for i in range(len(numbers))]
        assert len(numbers) <= count


def test_starts_are_drawn_at_random_and_orders_differ_by_round_seed_and_pass():
    corpus = make(*("".join(f"{i:02d} {j:04d}\n" for j in range(80)) for i in range(40)))
    stream = pieces(corpus, 16)
    first, second = stream[:40], stream[40:80]
    assert {part[:2] for part in first} == {part[:2] for part in second} == {b"%02d" % i for i in range(40)}
    assert [part[:2] for part in first] != [part[:2] for part in second]
    assert len({part[3:7] for part in first}) >= 8
    again = [pieces(corpus, 16, seed=seed, epoch=epoch)[:40] for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    assert again[0] == first
    assert first not in again[1:]


def test_more_documents_are_touched_than_without():
    corpus = make(*("some words of text\n" * 300 for _ in range(50)))
    spread, whole = (token_blocks(corpus, WORDS, 64, spread=spread) for spread in (True, False))
    for blocks in (spread, whole):
        list(itertools.islice(blocks, 100))
    assert (spread.documents, whole.documents) == (25, 2)


@settings(deadline=None)
@given(
    texts=st.lists(words, min_size=1, max_size=8),
    block=st.integers(2, 40),
    spread=st.booleans(),
    seed=st.integers(0, 9),
)
def test_documents_are_counted_when_a_block_touches_them(texts, block, spread, seed):
    # each document has a letter of its own
    letters = [chr(ord("a") + i) for i in range(len(texts))]
    corpus = make(*(letter * (len(text) + 1) for letter, text in zip(letters, texts, strict=True)))
    blocks = token_blocks(corpus, WORDS, block, spread=spread, seed=seed)
    assert blocks.documents == 0
    seen: set[int] = set()
    for tokens in blocks:
        seen |= set(tokens.tolist()) - {SEPARATOR}
        assert blocks.documents == len(seen)


def test_tokenising_is_lazy():
    corpus, seen = make(*(["x y z\n" * 2_000] * 1000)), []

    class Counting:
        def __getattr__(self, name):
            return getattr(WORDS, name)

        def __call__(self, texts, **kwargs):
            seen.append(sum(map(len, texts)))
            return WORDS(texts, **kwargs)

    assert len(list(itertools.islice(token_blocks(corpus, Counting(), 256), 300))) == 300
    assert sum(seen) < 0.1 * 12_000 * 1000


def test_short_documents_come_whole():
    corpus = text_corpus()
    texts = Counter(document.text.encode() for document in corpus.documents)
    assert not Counter(pieces(corpus, 256)[:-1]) - texts


# ---- groups


@given(n=st.integers(150, 300), held_out=st.floats(0.3, 0.7), seed=st.integers(0, 2**31))
def test_a_split_keeps_groups_together(n, held_out, seed):
    documents = [Document(f"d{i}", "x", f"g{i // 3}") for i in range(n)]
    train, test = Corpus("test", "none", tuple(documents)).split(held_out, seed)
    groups = [{document.group for document in part.documents} for part in (train, test)]
    assert not groups[0] & groups[1]
    assert len(train.documents) + len(test.documents) == n
    # a group goes where a document of its name would
    alone, _ = Corpus("test", "none", tuple(Document(f"g{i // 3}", "x") for i in range(0, n, 3))).split(
        held_out, seed
    )
    assert {document.id for document in alone.documents} == groups[0]


def test_documents_without_a_group_are_split_as_they_always_were():
    corpus = make(*map(str, range(500)))
    expected = [
        document.id
        for document in corpus.documents
        if int.from_bytes(hashlib.sha256(f"7:{document.id}".encode()).digest()[:8], "little") < 0.1 * 2**64
    ]
    assert [document.id for document in corpus.split(0.1, seed=7)[1].documents] == expected


def test_a_group_does_not_change_the_fingerprint():
    one, other = (Corpus("a", "b", (Document("x", "y", group),)) for group in ("", "z"))
    assert one.fingerprint == other.fingerprint
