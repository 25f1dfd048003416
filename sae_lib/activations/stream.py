"""Training rows straight from a language model, computed as they are needed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_lib.activations.positions import enough, forward, no_block, origin
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
        skip_first: int = 2,
    ) -> None:
        self.model, self.corpus, self.site = model, corpus, model.site(site)
        self.block_size, self.batch_blocks, self.skip_first = block_size, batch_blocks, skip_first
        self.buffer_rows = buffer_rows
        self.d_in = model.d_model
        self._origin = origin(model, corpus, self.site, block_size, batch_blocks, skip_first)
        if isinstance(normalisation, str):
            first = list(enough(model, self._blocks(seed=0), skip_first, min(buffer_rows, _FIT_ROWS)))
            normalisation = Normalisation.fit(normalisation, self._rows(first).cpu())
        self.normalisation = normalisation

    def _blocks(self, seed: int) -> Iterator[Tensor]:
        """Yield blocks without end, pass after pass."""
        # a copy, as a tokenizer refuses to be used by two threads at once
        tokenizer = copy.deepcopy(self.model.tokenizer)
        for epoch in itertools.count():
            blocks = token_blocks(self.corpus, tokenizer, self.block_size, seed=seed, epoch=epoch)
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
            rows = self.normalisation.apply(self._rows(text))
            order = torch.randperm(len(rows), generator=generator(seed, "order", buffer)).to(rows.device)
            for i in range(first, per_buffer):
                yield rows[order[i * batch_size : (i + 1) * batch_size]]

    def describe(self) -> dict[str, Any]:
        """Describe where the rows come from."""
        sizes = {"d_in": self.d_in, "buffer_rows": self.buffer_rows}
        return {"source": "activation stream", **sizes, **self._origin}
