"""Activations on disk, read through memory maps."""

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
    """Rows of a finished harvest, as training batches, by number, and with the text they come from.

    >>> settings = {"n_tokens": 500, "block_size": 32}
    >>> _ = sae_lib.activations.harvest(model, corpus, "resid_post.1", "acts", **settings)
    >>> store = sae_lib.activations.ActivationStore.open("acts")
    >>> store.sample(10).shape == (10, model.d_model), len(store.context(3))
    (True, 6)

    Rows are numbered in the order of the token stream. Shards are mapped into memory, so only what is
    read takes space. Use :meth:`open`.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.d_in = manifest.d_in
        self.n_rows = manifest.n_rows
        self.normalisation = Normalisation(**(manifest.normalisation or {}))
        # the number after each shard's last row
        self._ends = torch.tensor([shard.rows for shard in manifest.shards], dtype=torch.long).cumsum(0)
        self._open: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> ActivationStore:
        """Open a finished store.

        verify: compare every shard's SHA-256 with the manifest (reads the whole store once); names and
            sizes are compared in any case.
        Raises FileNotFoundError or ValueError naming the file or field at fault and what to do.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if not manifest.finished:
            raise ValueError(
                f"{folder} is unfinished: {manifest.n_rows} of about {manifest.settings.get('n_tokens')} "
                f"rows; {RESUME} to go on"
            )
        for shard in manifest.shards:
            check_shard(folder, shard, hashes=verify)
        return cls(folder, manifest)

    def _shard(self, index: int) -> dict[str, Tensor]:
        """The mapped tensors of a shard."""
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
                raise ValueError(f"{error}; {RESUME} to write it anew") from None
        return self._open[index]

    def _locate(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The shard of each row number, and the row's number within it."""
        if index.numel() and (index.min() < 0 or index.max() >= self.n_rows):
            raise IndexError(
                f"rows {int(index.min())}..{int(index.max())} asked for; the store holds 0..{self.n_rows - 1}"
            )
        shard = torch.searchsorted(self._ends, index, right=True)
        begins = torch.cat([self._ends.new_zeros(1), self._ends])
        return shard, index - begins[shard]

    def rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Rows by number, in raw units: float32 (n, d_in). Raises IndexError for a number out of range."""
        index = torch.as_tensor(indices, dtype=torch.long)
        of_shard, within = self._locate(index)
        out = torch.empty(len(index), self.d_in)
        # shard by shard: each map is then read in one gather
        for shard in of_shard.unique().tolist():
            here = of_shard == shard
            out[here] = self._shard(shard)["acts"][within[here]].float()
        return out

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` different rows drawn at random, in raw units: float32 (n, d_in)."""
        if not 1 <= n <= self.n_rows:
            raise ValueError(f"{n} rows asked for; the store can give 1..{self.n_rows}")
        return self.rows(torch.randperm(self.n_rows, generator=generator(seed, "sample"))[:n])

    def context(self, row: int) -> Tensor:
        """The tokens of a row's block up to and including the row's own: int64 (length,)."""
        shard, within = (int(number) for number in self._locate(torch.tensor(row)))
        tensors = self._shard(shard)
        block, position = divmod(int(tensors["places"][within]), self.manifest.block_size)
        return tensors["blocks"][block, : position + 1].long()

    def places(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Number of the block and position in it of each row's token: int64 (n,) both.

        Blocks are numbered through the store. Raises IndexError for a number out of range.
        """
        index = torch.as_tensor(indices, dtype=torch.long)
        of_shard, within = self._locate(index)
        place = torch.empty_like(index)
        for shard in of_shard.unique().tolist():
            here = of_shard == shard
            place[here] = self._shard(shard)["places"][within[here]].long()
        size = self.manifest.block_size
        return of_shard * self.manifest.blocks_per_shard + place // size, place % size

    def windows(
        self, indices: Tensor | Sequence[int], before: int = 0, after: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The text around rows: tokens, and the rows they gave, int64 (n, before + 1 + after) both.

        Column ``before`` is the row itself. A token is −1 outside the row's block; a row is −1 there, and
        where a token gave none (the first of a block, separators). Raises IndexError as :meth:`rows`.
        """
        if before < 0 or after < 0:
            raise ValueError(f"before is {before}, after is {after}; expected 0 or more tokens")
        index = torch.as_tensor(indices, dtype=torch.long)
        of_shard, within = self._locate(index)
        tokens = torch.full((len(index), before + 1 + after), -1)
        rows = tokens.clone()
        offsets = torch.arange(-before, after + 1)
        for shard in of_shard.unique().tolist():
            here, tensors = of_shard == shard, self._shard(shard)
            own = tensors["places"][within[here]].long()[:, None]
            inside = (own % self.manifest.block_size + offsets >= 0) & (
                own % self.manifest.block_size + offsets < self.manifest.block_size
            )
            place = torch.where(inside, own + offsets, own)
            tokens[here] = torch.where(inside, tensors["blocks"].flatten()[place].long(), -1)
            # places ascend, so that a row is found by where its place would stand
            at = torch.searchsorted(tensors["places"], place.int()).clamp(max=len(tensors["places"]) - 1)
            found = inside & (tensors["places"][at] == place)
            begin = int(self._ends[shard]) - len(tensors["places"])
            rows[here] = torch.where(found, begin + at, -1)
        return tokens, rows

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, part: slice = slice(None)
    ) -> Iterator[Tensor]:
        """Yield normalised float32 batches (batch_size, d_in) without end, from number ``start`` on.

        Every pass is one permutation of all rows, cut into batches; the tail that fills no batch is dropped.
        part: the rows of each batch that are read and served.
        """
        per_epoch = self.n_rows // batch_size
        if per_epoch == 0:
            raise ValueError(
                f"batch size {batch_size} exceeds the {self.n_rows} rows of {self.folder}; lower it"
            )
        epoch, position = divmod(start, per_epoch)
        while True:
            # int32 halves the one thing held in memory for every row
            order = torch.randperm(self.n_rows, generator=generator(seed, "order", epoch), dtype=torch.int32)
            for i in range(position, per_epoch):
                yield self.normalisation.apply(self.rows(order[i * batch_size : (i + 1) * batch_size][part]))
            epoch, position = epoch + 1, 0

    def describe(self) -> dict[str, Any]:
        """Where the rows come from: the manifest's settings and sizes."""
        return {
            "source": "activation store",
            "n_rows": self.n_rows,
            "d_in": self.d_in,
            **self.manifest.settings,
        }
