"""Stores of activations, read from disk through memory maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.activations.manifest import RESUME, Manifest, check_shard
from sae_lib.files.tensors import read_tensors
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator


class ActivationStore:
    """The rows of a finished harvest: as training batches, by number, and with the text they come from.

    >>> settings = {"n_tokens": 500, "block_size": 32}
    >>> _ = sae_lib.activations.harvest(model, corpus, "resid_post.1", "acts", **settings)
    >>> store = sae_lib.activations.ActivationStore.open("acts")
    >>> store.sample(10).shape == (10, model.d_model), len(store.context(3))
    (True, 8)

    Use :meth:`open`. Rows are numbered in the order of the token stream. Shards are mapped into memory, so
    that only rows in use take space.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.d_in = manifest.d_in
        self.n_rows = manifest.n_rows
        self.normalisation = Normalisation(**(manifest.normalisation or {}))
        # one past the number of each shard's last row
        self._ends = torch.tensor([shard.rows for shard in manifest.shards], dtype=torch.long).cumsum(0)
        self._open: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> ActivationStore:
        """Open a finished store.

        Args:
            folder: Folder of the harvest.
            verify: Compare every shard's SHA-256 with the manifest, which reads the entire store once; names
                and sizes are always compared.

        Raises:
            FileNotFoundError: The manifest or a shard is missing.
            ValueError: The harvest is unfinished, or a file or field is wrong; says which.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if not manifest.finished:
            raise ValueError(
                f"{folder} is unfinished: {manifest.n_rows} of about {manifest.settings.get('n_tokens')} "
                f"rows; {RESUME} to finish it"
            )
        for shard in manifest.shards:
            check_shard(folder, shard, hashes=verify)
        return cls(folder, manifest)

    def _shard(self, index: int) -> dict[str, Tensor]:
        """Return the mapped tensors of a shard."""
        if index not in self._open:
            shard = self.manifest.shards[index]
            path = self.folder / shard.file
            expected = {
                "acts": ({self.manifest.dtype}, (shard.rows, self.d_in)),
                "blocks": ({torch.int32}, (shard.blocks, self.manifest.block_size)),
                "places": ({torch.int32}, (shard.rows,)),
            }
            try:
                self._open[index] = read_tensors(path, expected, "the manifest")
            except ValueError as error:
                raise ValueError(f"{error}; {RESUME} to write it again") from None
        return self._open[index]

    def _locate(self, indices: Tensor | Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the shards that hold rows: number, which of the indices they hold, row numbers within it."""
        index = torch.as_tensor(indices, dtype=torch.long)
        if index.numel() and (index.min() < 0 or index.max() >= self.n_rows):
            raise IndexError(
                f"row numbers are {int(index.min())}..{int(index.max())}; "
                f"the store holds 0..{self.n_rows - 1}"
            )
        shards = torch.searchsorted(self._ends, index, right=True)
        # shard by shard, so that each map is read in one gather
        for shard in shards.unique().tolist():
            inside = shards == shard
            begin = int(self._ends[shard]) - self.manifest.shards[shard].rows
            yield shard, inside, index[inside] - begin

    def rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return rows by number, in raw units: float32 (n, d_in).

        Raises:
            IndexError: A number is out of range; also in :meth:`context`, :meth:`places`, :meth:`windows`.
        """
        rows = torch.empty(len(indices), self.d_in)
        for shard, inside, within in self._locate(indices):
            rows[inside] = self._shard(shard)["acts"][within].float()
        return rows

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw ``n`` different rows at random, in raw units: float32 (n, d_in)."""
        if not 1 <= n <= self.n_rows:
            raise ValueError(f"n is {n}; the store can give 1..{self.n_rows} rows")
        return self.rows(torch.randperm(self.n_rows, generator=generator(seed, "sample"))[:n])

    def context(self, row: int) -> Tensor:
        """Return the tokens of a row's block up to and including the row's own: int64 (length,)."""
        shard, _, within = next(self._locate([row]))
        tensors = self._shard(shard)
        block, position = divmod(int(tensors["places"][within]), self.manifest.block_size)
        return tensors["blocks"][block, : position + 1].long()

    def places(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the block (numbered through the store) and position of each row's token: int64 (n,) both."""
        blocks = torch.empty(len(indices), dtype=torch.long)
        positions = torch.empty_like(blocks)
        size = self.manifest.block_size
        for shard, inside, within in self._locate(indices):
            places = self._shard(shard)["places"][within].long()
            blocks[inside] = shard * self.manifest.blocks_per_shard + places // size
            positions[inside] = places % size
        return blocks, positions

    def windows(
        self, indices: Tensor | Sequence[int], before: int = 0, after: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the text around rows: tokens, and the rows they gave, int64 (n, before + 1 + after) both.

        Column ``before`` is the row itself. A token is −1 outside the row's block; a row is −1 there, and
        where a token gave none (the first of a block, separators).
        """
        if before < 0 or after < 0:
            raise ValueError(f"before is {before}, after is {after}; expected 0 or more tokens")
        tokens = torch.full((len(indices), before + 1 + after), -1)
        rows = tokens.clone()
        offsets = torch.arange(-before, after + 1)
        for shard, inside, within in self._locate(indices):
            blocks, places = self._shard(shard)["blocks"], self._shard(shard)["places"]
            centre = places[within].long()[:, None]
            position = centre % self.manifest.block_size + offsets
            in_block = (position >= 0) & (position < self.manifest.block_size)
            place = torch.where(in_block, centre + offsets, centre)
            tokens[inside] = torch.where(in_block, blocks.flatten()[place].long(), -1)
            # places ascend, so a binary search tells which of them gave rows
            candidates = torch.searchsorted(places, place.int()).clamp(max=len(places) - 1)
            gave_row = in_block & (places[candidates] == place)
            begin = int(self._ends[shard]) - len(places)
            rows[inside] = torch.where(gave_row, begin + candidates, -1)
        return tokens, rows

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor]:
        """Yield normalised float32 batches (batch_size, d_in) without end; see :class:`BatchSource`.

        Every pass is a permutation of all rows, cut into batches; rows that do not fill a batch are dropped.

        Args:
            batch_size: Rows of a batch.
            seed: Decides the order.
            start: Number of the first batch.
            part: The rows of each batch that are read and yielded.
        """
        per_epoch = self.n_rows // batch_size
        if per_epoch == 0:
            raise ValueError(
                f"batch size {batch_size} exceeds the {self.n_rows} rows of {self.folder}; lower it"
            )
        epoch, position = divmod(start, per_epoch)
        while True:
            # int32 halves the only array in memory that has an entry for every row
            order = torch.randperm(self.n_rows, generator=generator(seed, "order", epoch), dtype=torch.int32)
            for i in range(position, per_epoch):
                yield self.normalisation.apply(self.rows(order[i * batch_size : (i + 1) * batch_size][part]))
            epoch, position = epoch + 1, 0

    def describe(self) -> dict[str, Any]:
        """Describe where the rows come from: the manifest's settings and sizes."""
        sizes = {"n_rows": self.n_rows, "d_in": self.d_in}
        return {"source": "activation store", **sizes, **self.manifest.settings}
