"""Corpora: named lists of documents, which can be split by document and cut into blocks of tokens."""

from sae_lib.corpora.blocks import TokenBlocks, opening_ids, separator_id, token_blocks
from sae_lib.corpora.documents import Corpus, Document
from sae_lib.corpora.packages import installed_packages
from sae_lib.corpora.sources import (
    NAMED,
    WIKIPEDIA_PACKAGE,
    corpus,
    folder,
    hugging_face,
    standard_library,
    wikipedia_summaries,
)

__all__ = [
    "NAMED",
    "WIKIPEDIA_PACKAGE",
    "Corpus",
    "Document",
    "TokenBlocks",
    "corpus",
    "folder",
    "hugging_face",
    "installed_packages",
    "opening_ids",
    "separator_id",
    "standard_library",
    "token_blocks",
    "wikipedia_summaries",
]
