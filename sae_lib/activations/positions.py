"""The tokens that give a row, and everything that decides its values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from sae_lib.checks import at_least
from sae_lib.corpora import Corpus, opening_ids, separator_id
from sae_lib.language_models import LanguageModel, Site


def vocabulary_sha256(tokenizer: Any) -> str:
    """Return the hexadecimal SHA-256 of the tokenizer's pieces in the order of their ids."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(repr(words).encode("utf-8", "surrogatepass")).hexdigest()


def origin(
    model: LanguageModel,
    corpus: Corpus,
    site: Site,
    block_size: int,
    batch_blocks: int,
    skip_first: int,
    spread: bool,
    max_norm: float | None,
) -> dict[str, Any]:
    """Return everything that decides the rows, as plain JSON values, after checking the sizes.

    ``spread`` and ``max_norm`` are left out when off, so that stores from before there were such options have
    the same settings.
    """
    if not 0 <= skip_first < block_size:
        raise ValueError(f"skip_first is {skip_first}; expected 0..{block_size - 1} (block_size - 1)")
    if max_norm is not None and not 1 < max_norm < math.inf:
        raise ValueError(
            f"max_norm is {max_norm}; expected above 1 (times the median norm), or None to keep all rows"
        )
    at_least(1, batch_blocks=batch_blocks)
    tokenizer = {
        "vocabulary_sha256": vocabulary_sha256(model.tokenizer),
        "separator": separator_id(model.tokenizer),
        "opening": opening_ids(model.tokenizer),
    }
    sources = {"model": {"name": model.name, "fingerprint": model.fingerprint}, "site": str(site)}
    sizes = {"block_size": block_size, "batch_blocks": batch_blocks, "skip_first": skip_first}
    rules: dict[str, bool | float] = {"spread": True} if spread else {}
    if max_norm is not None:
        rules["max_norm"] = max_norm
    return {**sources, "corpus": corpus.describe(), "tokenizer": tokenizer, **sizes, **rules}


def kept(model: LanguageModel, blocks: Tensor, skip_first: int) -> Tensor:
    """Return which positions of blocks (…, T) give a row, bool (…, T): all but the first and separators.

    Models park attention on the first ``skip_first`` positions and on the separators between documents: in
    middle layers such rows can be a hundred times as long as others, and a few would dominate the loss.
    """
    keep = blocks != separator_id(model.tokenizer)
    keep[..., :skip_first] = False
    return keep


def forward(model: LanguageModel, sites: Sequence[Site], blocks: Tensor, skip_first: int) -> list[Tensor]:
    """Return the rows (n, d) that one batch of blocks (B, T) gives at each site."""
    # positions found on the CPU: with a mask on the device, the CPU would have to wait for it
    places = kept(model, blocks, skip_first).flatten().nonzero().squeeze(1).to(model.device)
    return [acts.flatten(0, 1)[places] for acts in model.activations_at(blocks, sites)]


def norms_of(rows: Tensor) -> Tensor:
    """Return the norm of each row (n, d): float32 (n,)."""
    return rows.float().norm(dim=-1)


def median_norm(norms: Tensor) -> float:
    """Return the median of some norms (n,), the lower one of two."""
    return float(norms.median())


def enough(model: LanguageModel, blocks: Iterator[Tensor], skip_first: int, n_rows: int) -> Iterator[Tensor]:
    """Yield as many blocks as give at least ``n_rows`` rows, or all there are."""
    while n_rows > 0 and (block := next(blocks, None)) is not None:
        n_rows -= int(kept(model, block, skip_first).sum())
        yield block


def no_block(corpus: Corpus, block_size: int) -> ValueError:
    """Return the error of a corpus that is too short."""
    return ValueError(
        f"corpus {corpus.name!r} does not fill one block of {block_size} tokens; lower block_size"
    )
