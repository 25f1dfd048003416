"""Shards of one or more stores, written in rounds of one shard a process, all sites in one model pass."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_lib.activations.manifest import DTYPES, Manifest, Shard, write_shard
from sae_lib.activations.positions import enough, forward, kept, median_norm, norms_of
from sae_lib.checks import bad_row
from sae_lib.corpora import TokenBlocks
from sae_lib.distributed import World
from sae_lib.language_models import LanguageModel, Site
from sae_lib.normalisation import Normalisation

# rows that suffice to fit a scale
_FIT_ROWS = 16_384


@dataclass
class _Rows:
    """What a shard's blocks (B, T) give: rows (n, d) and norms (n,) at each site, and their places (n,)."""

    blocks: Tensor
    documents: int
    acts: list[Tensor]
    norms: list[Tensor]
    places: Tensor


def _storable(
    rows: Tensor, norms: Tensor, dtype: torch.dtype, longest: float, model: LanguageModel, site: Site
) -> Tensor:
    """Convert rows to the type of the store, on the CPU; refuse numbers that do not survive.

    Rows longer than ``longest`` may overflow: they will be dropped, or looked at again with the first shard.
    """
    stored = rows.to(dtype)
    if not torch.isfinite(stored).all():
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"{model.name} gives NaN or infinity at {site}, first in row {bad_row(rows)} of {len(rows)} "
                "of a batch; load it with dtype=torch.float32 or torch.bfloat16"
            )
        kept_rows = rows[norms <= longest]
        if not torch.isfinite(kept_rows.to(dtype)).all():
            raise _too_large(kept_rows.abs().max().item(), dtype, site)
    return stored.cpu()


def _too_large(largest: float, dtype: torch.dtype, site: Site) -> ValueError:
    return ValueError(
        f"an activation of {largest:.4g} at {site} does not fit {dtype}; "
        'use dtype="bfloat16" or dtype="float32"'
    )


def _fill_shard(
    model: LanguageModel,
    sites: Sequence[Site],
    blocks: Tensor,
    documents: int,
    longest: Sequence[float],
    settings: Mapping[str, Any],
    bar: tqdm,
) -> _Rows:
    """Run the model on a shard's blocks (B, T); ``longest`` is the longest norm to keep at each."""
    dtype, skip_first = DTYPES[settings["dtype"]], settings["skip_first"]
    places = kept(model, blocks, skip_first).flatten().nonzero().squeeze(1)
    acts = [torch.empty(len(places), model.d_model, dtype=dtype) for _ in sites]
    norms = [torch.empty(len(places)) for _ in sites]
    filled = 0
    for batch in blocks.split(settings["batch_blocks"]):
        by_site = forward(model, sites, batch, skip_first)
        part = slice(filled, filled + len(by_site[0]))
        for number, (site, rows) in enumerate(zip(sites, by_site, strict=True)):
            lengths = norms_of(rows)
            acts[number][part] = _storable(rows, lengths, dtype, longest[number], model, site)
            norms[number][part] = lengths.cpu()
        filled = part.stop
        bar.update(len(by_site[0]) * len(sites))
    return _Rows(blocks, documents, acts, norms, places)


def _longest(manifest: Manifest) -> float:
    """Return the longest norm to keep: infinity where there is no limit, 0 while it is not known."""
    max_norm = manifest.settings.get("max_norm")
    return math.inf if max_norm is None else max_norm * (manifest.median_norm or 0.0)


def _fit_medians(manifests: Sequence[Manifest], shards: Mapping[int, _Rows], world: World) -> None:
    """Set the median norm, of the first shard's rows, in the manifests of all processes."""
    norms = shards[0].norms if 0 in shards else []
    medians = json.loads(world.texts(json.dumps([median_norm(lengths) for lengths in norms]))[0])
    for manifest, median in zip(manifests, medians, strict=True):
        manifest.median_norm = median


def _write(folder: Path, index: int, number: int, shard: _Rows, manifest: Manifest, site: Site) -> Shard:
    """Write the shard of one site, without the rows that are too long; fit the scale on the first."""
    rows, places = shard.acts[number], shard.places
    usual = shard.norms[number] <= _longest(manifest)
    if not usual.all():
        rows, places = rows[usual], places[usual]
    # the first shard's rows were converted before it was known which of them would be dropped
    if index == 0 and not torch.isfinite(rows).all():
        raise _too_large(torch.finfo(rows.dtype).max, rows.dtype, site)
    if index == 0:
        sample = rows[:: max(1, len(rows) // _FIT_ROWS)].float()
        manifest.normalisation = Normalisation.fit(manifest.settings["normalisation"], sample).to_dict()
    counts = {
        "documents": shard.documents,
        "dropped_by_norm": len(usual) - len(rows),
        "dropped_by_position": shard.blocks.numel() - len(usual),
    }
    return write_shard(folder, index, rows, shard.blocks, places, **counts)


def _next(unfinished: Mapping[Site, Manifest], world: World) -> tuple[list[Site], range]:
    """Return the sites that are furthest behind, and the numbers of the shards they get next, one a process.

    The numbers end where another site has got to, so that it joins them from there.
    """
    counts = {site: len(manifest.shards) for site, manifest in unfinished.items()}
    first = min(counts.values())
    ends = [first + world.size, *(count for count in counts.values() if count > first)]
    return [site for site, count in counts.items() if count == first], range(first, min(ends))


def _turn(
    blocks: Iterator[Tensor], text: TokenBlocks, per_shard: int, numbers: range, world: World
) -> dict[int, tuple[Tensor, int] | None]:
    """Return the shards for which there is text, and what belongs to the one this process writes.

    That is its blocks (B, T), and the documents of ``text`` that they and those before have touched.
    """
    turn: dict[int, tuple[Tensor, int] | None] = {}
    for index in numbers:
        if batch := list(itertools.islice(blocks, per_shard)):
            turn[index] = (torch.stack(batch), text.documents) if index % world.size == world.rank else None
    return turn


def write_shards(
    model: LanguageModel,
    unfinished: Mapping[Site, Manifest],
    folders: Mapping[Site, Path],
    text: TokenBlocks,
    n_tokens: int,
    world: World,
    bar: tqdm,
) -> None:
    """Write all shards that are missing, and the manifests after every round."""
    settings = next(iter(unfinished.values())).settings
    per_shard = settings["blocks_per_shard"]
    behind, numbers = _next(unfinished, world)
    blocks = enough(model, text, settings["skip_first"], n_tokens)
    blocks = itertools.islice(blocks, numbers.start * per_shard, None)
    try:
        while turn := _turn(blocks, text, per_shard, numbers, world):
            manifests = [unfinished[site] for site in behind]
            longest = [_longest(manifest) for manifest in manifests]
            shards = {
                index: _fill_shard(model, behind, *mine, longest, settings, bar)
                for index, mine in turn.items()
                if mine is not None
            }
            if numbers.start == 0 and settings.get("max_norm") is not None:
                _fit_medians(manifests, shards, world)
            written: list[dict[str, Any]] = []
            for index, shard in shards.items():
                for number, (site, manifest) in enumerate(zip(behind, manifests, strict=True)):
                    written.append(asdict(_write(folders[site], index, number, shard, manifest, site)))
            by_process = [json.loads(listed) for listed in world.texts(json.dumps(written))]
            by_others = (listed for rank, listed in enumerate(by_process) if rank != world.rank)
            by_them = itertools.chain.from_iterable(by_others)
            bar.update(sum(entry["rows"] + entry["dropped_by_norm"] for entry in by_them))
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
