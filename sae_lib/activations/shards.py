"""Shards of one or several stores, written in rounds: one a process, all sites in one pass of the model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_lib.activations.manifest import DTYPES, Manifest, Shard, write_shard
from sae_lib.activations.positions import forward, kept
from sae_lib.checks import bad_row
from sae_lib.distributed import World
from sae_lib.language_models import LanguageModel, Site
from sae_lib.normalisation import Normalisation

# rows that suffice to fit a scale
_FIT_ROWS = 16_384


def _storable(rows: Tensor, dtype: torch.dtype, model: LanguageModel, site: Site) -> Tensor:
    """Rows in the type of the store, on the CPU. Raises ValueError when a number does not survive."""
    stored = rows.to(dtype)
    if not torch.isfinite(stored).all():
        if torch.isfinite(rows).all():
            raise ValueError(
                f"an activation of {rows.abs().max().item():.4g} at {site} does not fit {dtype}; "
                'use dtype="bfloat16" or dtype="float32"'
            )
        raise ValueError(
            f"{model.name} gives NaN or infinity at {site}, first in row {bad_row(rows)} of {len(rows)} "
            "of a batch; load it with dtype=torch.float32 or torch.bfloat16"
        )
    return stored.cpu()


def _fill_shard(
    model: LanguageModel, sites: Sequence[Site], blocks: Tensor, settings: Mapping[str, Any], bar: tqdm
) -> tuple[list[Tensor], Tensor]:
    """Rows (n, d) of a shard's blocks (B, T) at each site, and their places (n,) in the flattened blocks."""
    dtype, skip_first = DTYPES[settings["dtype"]], settings["skip_first"]
    places = kept(model, blocks, skip_first).flatten().nonzero().squeeze(1)
    acts = [torch.empty(len(places), model.d_model, dtype=dtype) for _ in sites]
    filled = 0
    for batch in blocks.split(settings["batch_blocks"]):
        read = forward(model, sites, batch, skip_first)
        for site, whole, rows in zip(sites, acts, read, strict=True):
            whole[filled : filled + len(rows)] = _storable(rows, dtype, model, site)
        filled += len(read[0])
        bar.update(len(read[0]) * len(sites))
    return acts, places


def _next(unfinished: Mapping[Site, Manifest], world: World) -> tuple[list[Site], range]:
    """The sites that are furthest behind, and the numbers of the shards they get next, one a process.

    They stop where another site stands: from there on it goes along.
    """
    counts = {site: len(manifest.shards) for site, manifest in unfinished.items()}
    first = min(counts.values())
    ends = [first + world.size, *(count for count in counts.values() if count > first)]
    return [site for site, count in counts.items() if count == first], range(first, min(ends))


def _turn(blocks: Iterator[Tensor], per_shard: int, numbers: range, world: World) -> dict[int, Tensor | None]:
    """Those of the shards for which there is text, with the blocks (B, T) of the one that is ours."""
    turn: dict[int, Tensor | None] = {}
    for index in numbers:
        if batch := list(itertools.islice(blocks, per_shard)):
            turn[index] = torch.stack(batch) if index % world.size == world.rank else None
    return turn


def write_shards(
    model: LanguageModel,
    unfinished: Mapping[Site, Manifest],
    folders: Mapping[Site, Path],
    blocks: Iterator[Tensor],
    world: World,
    bar: tqdm,
) -> None:
    """Write all shards that are missing, and the manifests after every round."""
    settings = next(iter(unfinished.values())).settings
    per_shard = settings["blocks_per_shard"]
    behind, numbers = _next(unfinished, world)
    blocks = itertools.islice(blocks, numbers.start * per_shard, None)
    try:
        while turn := _turn(blocks, per_shard, numbers, world):
            written: list[dict[str, Any]] = []
            for index, tokens in turn.items():
                if tokens is None:
                    continue
                acts, places = _fill_shard(model, behind, tokens, settings, bar)
                for site, rows in zip(behind, acts, strict=True):
                    if index == 0:
                        sample = rows[:: max(1, len(rows) // _FIT_ROWS)].float()
                        fitted = Normalisation.fit(settings["normalisation"], sample)
                        unfinished[site].normalisation = fitted.to_dict()
                    written.append(asdict(write_shard(folders[site], index, rows, tokens, places)))
            by_process = [json.loads(text) for text in world.texts(json.dumps(written))]
            elsewhere = (of for rank, of in enumerate(by_process) if rank != world.rank)
            bar.update(sum(shard["rows"] for shard in itertools.chain.from_iterable(elsewhere)))
            for number, site in enumerate(behind):
                unfinished[site].shards += [Shard(**by_process[index % world.size][number]) for index in turn]
                if world.first:
                    unfinished[site].write(folders[site])
            behind, numbers = _next(unfinished, world)
    except KeyboardInterrupt:
        whole = [
            f"{len(found.shards)} whole shards are in {folders[site]}" for site, found in unfinished.items()
        ]
        raise KeyboardInterrupt(
            f"harvest stopped; {' and '.join(whole)}, the same call goes on after them"
        ) from None
