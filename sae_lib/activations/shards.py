"""Shards of one or more stores, written in rounds of one shard a process, all sites in one model pass."""

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
    """Convert rows to the type of the store, on the CPU; refuse numbers that do not survive."""
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
    """Return a shard's rows (n, d) at each site, and their places (n,) in the flattened blocks (B, T)."""
    dtype, skip_first = DTYPES[settings["dtype"]], settings["skip_first"]
    places = kept(model, blocks, skip_first).flatten().nonzero().squeeze(1)
    acts = [torch.empty(len(places), model.d_model, dtype=dtype) for _ in sites]
    filled = 0
    for batch in blocks.split(settings["batch_blocks"]):
        by_site = forward(model, sites, batch, skip_first)
        n_rows = len(by_site[0])
        for site, shard_rows, rows in zip(sites, acts, by_site, strict=True):
            shard_rows[filled : filled + n_rows] = _storable(rows, dtype, model, site)
        filled += n_rows
        bar.update(n_rows * len(sites))
    return acts, places


def _next(unfinished: Mapping[Site, Manifest], world: World) -> tuple[list[Site], range]:
    """Return the sites that are furthest behind, and the numbers of the shards they get next, one a process.

    The numbers end where another site has got to, so that it joins them from there.
    """
    counts = {site: len(manifest.shards) for site, manifest in unfinished.items()}
    first = min(counts.values())
    ends = [first + world.size, *(count for count in counts.values() if count > first)]
    return [site for site, count in counts.items() if count == first], range(first, min(ends))


def _turn(blocks: Iterator[Tensor], per_shard: int, numbers: range, world: World) -> dict[int, Tensor | None]:
    """Return the shards for which there is text, and the blocks (B, T) of the one this process writes."""
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
            by_others = (shards for rank, shards in enumerate(by_process) if rank != world.rank)
            bar.update(sum(shard["rows"] for shard in itertools.chain.from_iterable(by_others)))
            for number, site in enumerate(behind):
                unfinished[site].shards += [Shard(**by_process[index % world.size][number]) for index in turn]
                if world.first:
                    unfinished[site].write(folders[site])
            behind, numbers = _next(unfinished, world)
    except KeyboardInterrupt:
        saved = [f"{len(manifest.shards)} shards in {folders[site]}" for site, manifest in unfinished.items()]
        raise KeyboardInterrupt(
            f"harvest stopped; saved are {' and '.join(saved)}; the same call resumes after them"
        ) from None
