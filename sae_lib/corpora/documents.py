"""Documents and corpora: named texts, which can be split into a part to train on and a part held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Document:
    """A text and its name, which is unique in the corpus.

    Attributes:
        id: The name.
        text: The text.
        group: What a split keeps together, such as the project of a source file; empty if the document
            stands alone.
    """

    id: str
    text: str
    group: str = ""


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
        """Split by group of documents into (train, held out); a document without a group is its own.

        The side depends only on the group's name, or the document's id, and the seed, so that new documents
        do not move old ones.

        Args:
            held_out: Expected fraction of groups in the second part, in (0, 1).
            seed: Seed of the split.

        Raises:
            ValueError: A side would be empty, or the fraction is out of range.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is {held_out}; expected a fraction between 0 and 1")
        sides: tuple[list[Document], list[Document]] = ([], [])
        for document in self.documents:
            name = document.group or document.id
            digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
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
