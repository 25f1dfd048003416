"""Training rows straight from a language model, computed as they are needed."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_lib.activations.positions import enough, forward, median_norm, no_block, norms_of, origin
from sae_lib.corpora import Corpus, token_blocks
from sae_lib.language_models import LanguageModel, Site
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator

T = TypeVar("T")
# rows that suffice to fit a scale
_FIT_ROWS = 2_048


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each computed in a thread while the one before is in use."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


class ActivationStream:
    """Training batches straight from the model, without files; a new order of documents every pass.

    >>> stream = sae_lib.activations.ActivationStream(model, corpus, "resid_post.1", block_size=32)
    >>> next(stream.batches(64, seed=0)).shape == (64, model.d_model)
    True

    Batches are float32 on the model's device. A run that starts with batch ``i`` tokenises the text of the
    earlier ones again (some 300,000 tokens a second), but the model does not read it.

    Args:
        model: Language model to run.
        corpus: Documents to read, pass after pass.
        site: Place to read, :class:`sae_lib.language_models.Site`.
        normalisation: Fitted before, or a kind, to be fitted on the first rows of the stream with seed 0.
        block_size: Tokens the model sees at once.
        batch_blocks: Blocks in one forward pass.
        buffer_rows: Approximate rows computed at a time and shuffled; more of them mix more documents into
            a batch and take more memory.
        skip_first: Positions left out of every block; see :func:`harvest_sites`.
        spread: Whether to read an excerpt of every document before a second of any; see
            :func:`sae_lib.corpora.token_blocks`.
        max_norm: Rows longer than this many times the median norm are dropped; None keeps all. The median is
            that of the first rows of the stream with seed 0. Where a buffer has too few rows left, some of
            them are served twice.
    """

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        site: str | Site,
        *,
        normalisation: Normalisation | str = "scale",
        block_size: int = 256,
        batch_blocks: int = 8,
        buffer_rows: int = 16_384,
        skip_first: int = 4,
        spread: bool = True,
        max_norm: float | None = 3.0,
    ) -> None:
        self.model, self.corpus, self.site = model, corpus, model.site(site)
        self.block_size, self.batch_blocks, self.skip_first = block_size, batch_blocks, skip_first
        self.buffer_rows, self.spread, self.max_norm = buffer_rows, spread, max_norm
        self.d_in = model.d_model
        self._origin = origin(
            model, corpus, self.site, block_size, batch_blocks, skip_first, spread, max_norm
        )
        #: Norm of the longest row that is kept.
        self.longest = math.inf
        if isinstance(normalisation, str) or max_norm is not None:
            first = list(enough(model, self._blocks(seed=0), skip_first, min(buffer_rows, _FIT_ROWS)))
            rows = self._rows(first)
            if max_norm is not None:
                self.longest = max_norm * median_norm(norms_of(rows))
                rows = self._usual(rows)
            if isinstance(normalisation, str):
                normalisation = Normalisation.fit(normalisation, rows.cpu())
        self.normalisation = normalisation

    def _blocks(self, seed: int) -> Iterator[Tensor]:
        """Yield blocks without end, pass after pass."""
        # a copy, as a tokenizer refuses to be used by two threads at once
        tokenizer = copy.deepcopy(self.model.tokenizer)
        for epoch in itertools.count():
            blocks = token_blocks(
                self.corpus, tokenizer, self.block_size, seed=seed, epoch=epoch, spread=self.spread
            )
            first = next(blocks, None)
            if first is None:
                raise no_block(self.corpus, self.block_size)
            yield first
            yield from blocks

    def _rows(self, blocks: list[Tensor]) -> Tensor:
        """Compute the raw float32 rows of some blocks; refuse NaN and infinity."""
        batches = (
            torch.stack(blocks[i : i + self.batch_blocks]) for i in range(0, len(blocks), self.batch_blocks)
        )
        parts = [forward(self.model, [self.site], batch, self.skip_first)[0] for batch in batches]
        rows = torch.cat(parts).float()
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"{self.model.name} gives NaN or infinity at {self.site}; "
                "load it with dtype=torch.float32 or torch.bfloat16"
            )
        return rows

    def _usual(self, rows: Tensor) -> Tensor:
        """Return the rows that are not too long."""
        return rows if self.max_norm is None else rows[norms_of(rows) <= self.longest]

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield normalised float32 batches (batch_size, d_in) without end; see :class:`BatchSource`.

        A buffer is a whole number of batches, computed from the fewest blocks that hold them.
        """
        if batch_size < 1:
            raise ValueError(f"batch size is {batch_size}; expected at least 1")
        per_buffer = max(1, round(self.buffer_rows / batch_size))
        blocks = self._blocks(seed)
        texts = (
            list(enough(self.model, blocks, self.skip_first, per_buffer * batch_size))
            for _ in itertools.count()
        )
        # a thread tokenises ahead: a GPU would otherwise wait for the text
        for buffer, text in enumerate(ahead(texts)):
            # text of buffers before the first requested batch is skipped
            first = max(0, start - buffer * per_buffer)
            if first >= per_buffer:
                continue
            rows = self._usual(self._rows(text))
            if not len(rows):
                raise ValueError(
                    f"all rows of a buffer are over {self.max_norm} times as long as the median row; "
                    "set max_norm=None, or raise buffer_rows"
                )
            rows = self.normalisation.apply(rows)
            order = torch.randperm(len(rows), generator=generator(seed, "order", buffer)).to(rows.device)
            # where dropped rows leave too few, some come twice
            order = order.repeat(-(-per_buffer * batch_size // len(rows)))
            for i in range(first, per_buffer):
                yield rows[order[i * batch_size : (i + 1) * batch_size]]

    def describe(self) -> dict[str, Any]:
        """Describe where the rows come from."""
        sizes = {"d_in": self.d_in, "buffer_rows": self.buffer_rows}
        return {"source": "activation stream", **sizes, **self._origin}
