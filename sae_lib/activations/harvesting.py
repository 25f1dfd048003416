"""A language model's activations on a corpus, written to disk by a run that may be interrupted.

Several sites are read in one pass of the model, each into a store of its own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from sae_lib.activations.manifest import DTYPES, MANIFEST, Manifest, Shard, check_shard, shard_name
from sae_lib.activations.positions import enough, origin
from sae_lib.activations.shards import write_shards
from sae_lib.activations.store import ActivationStore
from sae_lib.checks import at_least, one_of
from sae_lib.corpora import Corpus, token_blocks
from sae_lib.distributed import World
from sae_lib.files.atomic import only_writer, short
from sae_lib.language_models import LanguageModel, Site
from sae_lib.normalisation import KINDS

Place = TypeVar("Place", bound=str | Site)


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
            warnings.warn(f"harvesting again from shard {i} on: {error}", stacklevel=6)
            manifest.shards, manifest.finished = manifest.shards[:i], False
            manifest.normalisation = manifest.normalisation if i else None
            manifest.write(folder)
            break
    return manifest


def _progress(
    model: LanguageModel, unfinished: Mapping[Site, Manifest], n_tokens: int, show: bool | None
) -> tqdm:
    """A bar of the rows in all unfinished stores; ``show=None`` shows it on a terminal."""
    return tqdm(
        total=n_tokens * len(unfinished), initial=sum(manifest.n_rows for manifest in unfinished.values()),
        unit=" rows", desc=f"{', '.join(map(str, unfinished))} of {model.name}",
        disable=None if show is None else not show,
    )  # fmt: skip


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
    """Write the activations at one site to a store, or go on with one begun earlier.

    >>> settings = {"n_tokens": 500, "block_size": 32}
    >>> store = sae_lib.activations.harvest(model, corpus, "resid_post.1", "acts", **settings)
    >>> store.n_rows >= 500, store.d_in == model.d_model
    (True, True)
    >>> sae, log = sae_lib.train(store, sae_lib.TopK(k=4), width=64, steps=10, batch_size=64)

    site: see :class:`sae_lib.language_models.Site`.
    All else as for :func:`harvest_sites`, of which this is the short form.
    """
    return harvest_sites(
        model, corpus, {site: folder}, n_tokens=n_tokens, normalisation=normalisation, block_size=block_size,
        batch_blocks=batch_blocks, dtype=dtype, shard_rows=shard_rows, seed=seed, skip_first=skip_first,
        progress=progress, parallel=parallel,
    )[site]  # fmt: skip


def harvest_sites(
    model: LanguageModel,
    corpus: Corpus,
    folders: Mapping[Place, str | Path],
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
) -> dict[Place, ActivationStore]:
    """Write the activations of at least ``n_tokens`` tokens at some sites, or go on with what was begun.

    folders: for each site (see :class:`sae_lib.language_models.Site`) the folder of its store. The model runs
        once for all of them, up to the last; a store has the bytes that it has when harvested alone.
    n_tokens: rows to write, rounded up to a whole block; one pass over the corpus at most, with a warning
        if it holds less.
    normalisation: ``"scale"``, ``"unit"`` or ``"none"``. Rows are stored raw; the constant is fitted on the
        first shard and applied on reading.
    block_size: tokens the model sees at once. batch_blocks: blocks in one forward pass.
    dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``, for the files.
    shard_rows: rows of a file, about; also what an interruption can cost. One shard a site is in memory.
    seed: order of the documents.
    skip_first: positions left out of every block, beside the separators between documents: models park
        attention on both, with rows up to a hundred times as long as the others
        (:func:`sae_lib.activations.kept`). Now and then the second position is such a place, hence 2.
    progress: show a bar; None shows it on a terminal.
    parallel: ``"auto"`` shares the shards out among the processes that ``torchrun`` has started, which must
        all see the folders; ``"off"`` does not.

    May be killed at any moment: the same call goes on after the last whole shard, and ends with the same
    bytes as an unbroken run (on the same machine with as many threads). A damaged shard is written anew.
    Stores that are behind the others catch up first; finished ones are left as they are. Processes may differ
    in number from call to call: in rounds, process r writes the shards whose number is r modulo R, the first
    one the manifests after each round. One such job at a time may write to a folder.
    Raises ValueError when a folder was begun with other settings, or when an activation does not fit
    ``dtype``; RuntimeError when another process is writing.
    """
    where = {model.site(site): Path(folder) for site, folder in folders.items()}
    if not folders or len(where) < len(folders):
        raise ValueError(
            f"sites are {[str(site) for site in folders]}; expected at least one, and none twice"
        )
    if len({folder.resolve() for folder in where.values()}) < len(where):
        raise ValueError(f"folders are {[str(f) for f in where.values()]}; expected one of its own a site")
    one_of("dtype", dtype, DTYPES)
    one_of("normalisation", normalisation, KINDS)
    at_least(1, n_tokens=n_tokens, shard_rows=shard_rows)
    settings = origin(model, corpus, next(iter(where)), block_size, batch_blocks, skip_first)
    settings |= {"n_tokens": n_tokens, "seed": seed, "dtype": dtype, "normalisation": normalisation}
    # shards are whole forward batches, so that a resumed run composes the same ones
    batch_rows = batch_blocks * (block_size - skip_first)
    settings["blocks_per_shard"] = max(1, round(shard_rows / batch_rows)) * batch_blocks

    world = World.join_all(parallel)
    with ExitStack() as locked:

        def begin() -> list[dict[str, Any]]:
            for folder in where.values():
                locked.enter_context(only_writer(folder, "harvesting into"))
            found = []
            for site, folder in where.items():
                found.append(_resumed(folder, Manifest(settings | {"site": str(site)}, model.d_model)))
            # when all folders are found to be in order
            for folder, manifest in zip(where.values(), found, strict=True):
                if not (folder / MANIFEST).exists():
                    manifest.write(folder)
            return [asdict(manifest) for manifest in found]

        manifests = {
            site: Manifest(**found | {"shards": [Shard(**shard) for shard in found["shards"]]})
            for site, found in zip(where, world.by_first(begin), strict=True)
        }
        if unfinished := {site: manifest for site, manifest in manifests.items() if not manifest.finished}:
            everything = token_blocks(corpus, model.tokenizer, block_size, seed=seed)
            blocks = enough(model, everything, skip_first, n_tokens)
            with _progress(model, unfinished, n_tokens, progress if world.first else False) as bar:
                write_shards(model, unfinished, where, blocks, world, bar)
            # the same in all of them, as they hold the same tokens
            rows = next(iter(unfinished.values())).n_rows
            if not rows:
                raise ValueError(
                    f"corpus {corpus.name!r} does not fill one block of {block_size} tokens; lower block_size"
                )
            if rows < n_tokens and world.first:
                warnings.warn(
                    f"corpus {corpus.name!r} gave {rows} rows of the {n_tokens} asked for", stacklevel=3
                )
            for site, manifest in unfinished.items():
                manifest.finished = True
                if world.first:
                    manifest.write(where[site])
            # fitted by the first process, and said when the manifests are written
            fitted = json.loads(world.texts(json.dumps([m.normalisation for m in unfinished.values()]))[0])
            for manifest, values in zip(unfinished.values(), fitted, strict=True):
                manifest.normalisation = values
    stores = (ActivationStore(where[site], manifest) for site, manifest in manifests.items())
    return dict(zip(folders, stores, strict=True))
