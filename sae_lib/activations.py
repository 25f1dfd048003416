"""A language model's activations on a corpus, written to disk by a run that may be interrupted."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_lib.corpora import Corpus, token_blocks
from sae_lib.distributed import World
from sae_lib.files import only_writer, short
from sae_lib.language_models import LanguageModel, Site
from sae_lib.manifest import DTYPES, MANIFEST, Manifest, Shard, check_shard, shard_name, write_shard
from sae_lib.normalisation import KINDS, Normalisation
from sae_lib.store import ActivationStore
from sae_lib.stream import ActivationStream, enough, forward, kept, origin

__all__ = ["ActivationStore", "ActivationStream", "harvest"]

# rows that suffice to fit a scale
_FIT_ROWS = 16_384


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where} is {short(old)} in the store and {short(new)} now"


def _resumed(folder: Path, fresh: Manifest) -> Manifest:
    """The manifest to go on from: the folder's own, cut before its first missing or damaged shard."""
    if not (folder / MANIFEST).exists():
        if (folder / shard_name(0)).exists():
            raise FileExistsError(
                f"{folder} holds shards but no {MANIFEST}; restore it or use an empty folder"
            )
        fresh.write(folder)
        return fresh
    manifest = Manifest.read(folder)
    if different := list(
        _differences({"d_in": manifest.d_in, **manifest.settings}, {"d_in": fresh.d_in, **fresh.settings})
    ):
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(different)}. "
            "Use the same ones to go on, or another folder"
        )
    for i, shard in enumerate(manifest.shards):
        try:
            check_shard(folder, shard, hashes=True)
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(f"harvesting again from shard {i} on: {error}", stacklevel=5)
            manifest.shards, manifest.finished = manifest.shards[:i], False
            manifest.normalisation = manifest.normalisation if i else None
            manifest.write(folder)
            break
    return manifest


def _storable(rows: Tensor, dtype: torch.dtype, model: LanguageModel, site: Site) -> Tensor:
    """Rows in the type of the store, on the CPU. Raises ValueError when a number does not survive."""
    stored = rows.to(dtype)
    if not torch.isfinite(stored).all():
        if torch.isfinite(rows).all():
            raise ValueError(
                f"an activation of {rows.abs().max().item():.4g} at {site} does not fit {dtype}; "
                'use dtype="bfloat16" or dtype="float32"'
            )
        bad = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
        raise ValueError(
            f"{model.name} gives NaN or infinity at {site}, first in row {bad} of {len(rows)} of a batch; "
            "load it with dtype=torch.float32 or torch.bfloat16"
        )
    return stored.cpu()


def _fill_shard(
    model: LanguageModel,
    site: Site,
    blocks: Tensor,
    dtype: torch.dtype,
    batch_blocks: int,
    skip_first: int,
    bar: tqdm,
) -> tuple[Tensor, Tensor]:
    """Rows (n, d) of a shard's blocks (B, T), and their places (n,) in the flattened blocks."""
    places = kept(model, blocks, skip_first).flatten().nonzero().squeeze(1)
    acts = torch.empty(len(places), model.d_model, dtype=dtype)
    filled = 0
    for batch in blocks.split(batch_blocks):
        rows = forward(model, site, batch, skip_first)
        acts[filled : filled + len(rows)] = _storable(rows, dtype, model, site)
        filled += len(rows)
        bar.update(len(rows))
    return acts, places


def _turn(blocks: Iterator[Tensor], per_shard: int, first: int, world: World) -> dict[int, Tensor | None]:
    """Numbers of the next shards, one a process, with the blocks (B, T) of the one that is ours."""
    turn: dict[int, Tensor | None] = {}
    for index in range(first, first + world.size):
        if batch := list(itertools.islice(blocks, per_shard)):
            turn[index] = torch.stack(batch) if index % world.size == world.rank else None
    return turn


def harvest(
    model: LanguageModel,
    corpus: Corpus,
    site: str | Site,
    folder: str | Path,
    *,
    n_tokens: int,
    normalisation: str = "scale",
    block_size: int = 256,
    batch_blocks: int = 8,
    dtype: str = "float16",
    shard_rows: int = 65_536,
    seed: int = 0,
    skip_first: int = 2,
    progress: bool | None = None,
    parallel: str = "auto",
) -> ActivationStore:
    """Write the activations of at least ``n_tokens`` tokens to a store, or go on with one begun earlier.

    site: see :class:`sae_lib.language_models.Site`.
    n_tokens: rows to write, rounded up to a whole block; one pass over the corpus at most, with a warning
        if it holds less.
    normalisation: ``"scale"``, ``"unit"`` or ``"none"``. Rows are stored raw; the constant is fitted on the
        first shard and applied on reading.
    block_size: tokens the model sees at once. batch_blocks: blocks in one forward pass.
    dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``, for the files.
    shard_rows: rows of a file, about; also what an interruption can cost.
    seed: order of the documents.
    skip_first: positions left out of every block, beside the separators between documents: models park
        attention on both, with rows up to a hundred times as long as the others
        (:func:`sae_lib.stream.kept`). Now and then the second position is such a place, hence 2.
    progress: show a bar; None shows it on a terminal.
    parallel: ``"auto"`` shares the shards out among the processes that ``torchrun`` has started, which must
        all see the folder; ``"off"`` does not.

    May be killed at any moment: the same call goes on after the last whole shard, and ends with the same
    bytes as an unbroken run (on the same machine with as many threads). A damaged shard is written anew.
    Processes may differ in number from call to call: in rounds, process r writes the shards r, r + R, …, the
    first one the manifest after each round. One such job at a time may write to a folder.
    Raises ValueError when the folder was begun with other settings, or when an activation does not fit
    ``dtype``; RuntimeError when another process is writing.
    """
    site, folder = model.site(site), Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if normalisation not in KINDS:
        raise ValueError(f"normalisation is {normalisation!r}; expected one of {', '.join(KINDS)}")
    for name, value in (("n_tokens", n_tokens), ("shard_rows", shard_rows)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    settings = origin(model, corpus, site, block_size, batch_blocks, skip_first)
    settings |= {"n_tokens": n_tokens, "seed": seed, "dtype": dtype, "normalisation": normalisation}
    # shards are whole forward batches, so that a resumed run composes the same ones
    batch_rows = batch_blocks * (block_size - skip_first)
    per_shard = max(1, round(shard_rows / batch_rows)) * batch_blocks
    settings["blocks_per_shard"] = per_shard
    fresh = Manifest(settings, model.d_model)

    world = World.joined(parallel)
    with ExitStack() as locked:

        def begin() -> dict[str, Any]:
            locked.enter_context(only_writer(folder, "harvesting into"))
            return asdict(_resumed(folder, fresh))

        found = world.by_first(begin)
        manifest = Manifest(**found | {"shards": [Shard(**shard) for shard in found["shards"]]})
        if manifest.finished:
            return ActivationStore(folder, manifest)
        done = len(manifest.shards) * per_shard
        everything = token_blocks(corpus, model.tokenizer, block_size, seed=seed)
        blocks = itertools.islice(enough(model, everything, skip_first, n_tokens), done, None)
        with tqdm(
            total=n_tokens, initial=sum(shard.rows for shard in manifest.shards), unit=" tokens",
            desc=f"{site} of {model.name}",
            disable=not world.first or (None if progress is None else not progress),
        ) as bar:  # fmt: skip
            try:
                while turn := _turn(blocks, per_shard, len(manifest.shards), world):
                    entry = None
                    for index, tokens in turn.items():
                        if tokens is None:
                            continue
                        acts, places = _fill_shard(
                            model, site, tokens, DTYPES[dtype], batch_blocks, skip_first, bar
                        )
                        if index == 0:
                            every = max(1, len(acts) // _FIT_ROWS)
                            manifest.normalisation = Normalisation.fit(
                                normalisation, acts[::every].float()
                            ).to_dict()
                        entry = asdict(write_shard(folder, index, acts, tokens, places))
                    entries = [json.loads(text) for text in world.texts(json.dumps(entry))]
                    shards = [Shard(**entries[index % world.size]) for index in turn]
                    bar.update(sum(shard.rows for shard in shards) - (entry["rows"] if entry else 0))
                    manifest.shards += shards
                    if world.first:
                        manifest.write(folder)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"harvest stopped; {len(manifest.shards)} whole shards are in {folder}, "
                    "the same call goes on after them"
                ) from None
        rows = sum(shard.rows for shard in manifest.shards)
        if not rows:
            raise ValueError(
                f"corpus {corpus.name!r} does not fill one block of {block_size} tokens; lower block_size"
            )
        if rows < n_tokens and world.first:
            warnings.warn(
                f"corpus {corpus.name!r} gave {rows} rows of the {n_tokens} asked for", stacklevel=2
            )
        manifest.finished = True
        if world.first:
            manifest.write(folder)
        # fitted by the first process, and said when the manifest is written
        manifest.normalisation = json.loads(world.texts(json.dumps(manifest.normalisation))[0])
    return ActivationStore(folder, manifest)
