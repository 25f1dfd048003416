"""Harvests of a language model's activations: written to disk by a run that may be interrupted.

One pass of the model reads several sites, each into its own store.
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
from sae_lib.activations.positions import no_block, origin
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
    """Return the manifest to resume from: the folder's, cut before its first missing or damaged shard."""
    if not (folder / MANIFEST).exists():
        if (folder / shard_name(0)).exists():
            raise FileExistsError(
                f"{folder} holds shards but no {MANIFEST}; restore it or use an empty folder"
            )
        return fresh
    manifest = Manifest.read(folder)
    old, new = ({"d_in": m.d_in, **m.settings} for m in (manifest, fresh))
    if differences := list(_differences(old, new)):
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differences)}. "
            "Resume with the same settings or choose another folder"
        )
    for i, shard in enumerate(manifest.shards):
        try:
            check_shard(folder, shard, hashes=True)
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(f"harvesting again from shard {i}: {error}", stacklevel=6)
            manifest.shards, manifest.finished = manifest.shards[:i], False
            if i == 0:
                manifest.normalisation = manifest.median_norm = None
            manifest.write(folder)
            break
    return manifest


def _progress(
    model: LanguageModel, unfinished: Mapping[Site, Manifest], n_tokens: int, show: bool | None
) -> tqdm:
    """Return a bar of the rows in all unfinished stores; ``show=None`` shows it on a terminal."""
    return tqdm(
        total=n_tokens * len(unfinished),
        initial=sum(manifest.n_rows + manifest.dropped_by_norm for manifest in unfinished.values()),
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
    skip_first: int = 4,
    spread: bool = True,
    max_norm: float | None = 3.0,
    progress: bool | None = None,
    parallel: str = "auto",
) -> ActivationStore:
    """Write the activations at one site to a store, or resume a harvest that was interrupted.

    >>> settings = {"n_tokens": 500, "block_size": 32}
    >>> store = sae_lib.activations.harvest(model, corpus, "resid_post.1", "acts", **settings)
    >>> store.n_rows >= 500, store.d_in == model.d_model
    (True, True)
    >>> sae, log = sae_lib.train(store, sae_lib.TopK(k=4), width=64, steps=10, batch_size=64)

    The short form of :func:`harvest_sites`, which describes all parameters and errors.
    """
    return harvest_sites(
        model, corpus, {site: folder}, n_tokens=n_tokens, normalisation=normalisation, block_size=block_size,
        batch_blocks=batch_blocks, dtype=dtype, shard_rows=shard_rows, seed=seed, skip_first=skip_first,
        spread=spread, max_norm=max_norm, progress=progress, parallel=parallel,
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
    skip_first: int = 4,
    spread: bool = True,
    max_norm: float | None = 3.0,
    progress: bool | None = None,
    parallel: str = "auto",
) -> dict[Place, ActivationStore]:
    """Write the activations of ``n_tokens`` tokens at some sites, or resume an interrupted harvest.

    The call may be killed at any moment: repeated, it resumes after the last complete shard and ends with the
    bytes of an unbroken run (on the same machine with as many threads). It rewrites damaged shards, lets
    stores that are behind the others catch up first, and leaves finished ones as they are. The number of
    processes may change from call to call: in rounds, process r of R writes the shards whose number is r
    modulo R, and the first process the manifests. Only one harvest at a time may write to a folder.

    Args:
        model: Language model to run.
        corpus: Documents to read, at most once; a warning says if they give too few rows.
        folders: Folder of the store for each site (:class:`sae_lib.language_models.Site`). The model runs
            once for all sites, up to the last; each store has the bytes it would have if harvested alone.
        n_tokens: Rows to write, rounded up to a whole block; those that ``max_norm`` drops count.
        normalisation: ``"scale"``, ``"unit"`` or ``"none"``. Rows are stored raw; the constant is fitted on
            the first shard and applied on reading.
        block_size: Tokens the model sees at once.
        batch_blocks: Blocks in one forward pass.
        dtype: Type of the rows in the files: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        shard_rows: Approximate rows of a file; as many are in memory for each site, and can be lost.
        seed: Decides the order of the documents.
        skip_first: Positions left out of every block, as are the separators between documents: models park
            attention on both (:func:`kept`), now and then also on one of the next positions, hence 4.
        spread: Whether the rows come from as many documents as they can, from an excerpt of each; else
            documents are read whole (:func:`sae_lib.corpora.token_blocks`). The manifest counts
            them.
        max_norm: Rows longer than this many times the median are dropped, as a few of them would dominate the
            loss: models park attention on other tokens, too. The median is that of the first shard at this
            site, so stores of several sites may drop different rows; the manifest holds it and counts the
            rows that were dropped. None keeps all.
        progress: Whether to show a bar; None shows it on a terminal.
        parallel: ``"auto"`` shares the shards among the processes that ``torchrun`` has started, which must
            all see the folders; ``"off"`` does not.

    Raises:
        ValueError: A folder was begun with other settings, or an activation does not fit ``dtype``.
        FileExistsError: A folder holds shards but no manifest.
        RuntimeError: Another process is writing to a folder.
    """
    paths = {model.site(site): Path(folder) for site, folder in folders.items()}
    if not folders or len(paths) < len(folders):
        raise ValueError(
            f"sites are {[str(site) for site in folders]}; expected at least one, and none twice"
        )
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ValueError(
            f"folders are {[str(p) for p in paths.values()]}; expected a different one for each site"
        )
    one_of("dtype", dtype, DTYPES)
    one_of("normalisation", normalisation, KINDS)
    at_least(1, n_tokens=n_tokens, shard_rows=shard_rows)
    settings = origin(
        model, corpus, next(iter(paths)), block_size, batch_blocks, skip_first, spread, max_norm
    )
    settings |= {"n_tokens": n_tokens, "seed": seed, "dtype": dtype, "normalisation": normalisation}
    # shards are whole forward batches, so that a resumed run composes the same ones
    batch_rows = batch_blocks * (block_size - skip_first)
    settings["blocks_per_shard"] = max(1, round(shard_rows / batch_rows)) * batch_blocks

    world = World.join_all(parallel)
    with ExitStack() as locks:

        def begin() -> list[dict[str, Any]]:
            for path in paths.values():
                locks.enter_context(only_writer(path, "harvesting into"))
            resumed = []
            for site, path in paths.items():
                resumed.append(_resumed(path, Manifest(settings | {"site": str(site)}, model.d_model)))
            # only now that all folders have proved to be in order
            for path, manifest in zip(paths.values(), resumed, strict=True):
                if not (path / MANIFEST).exists():
                    manifest.write(path)
            return [asdict(manifest) for manifest in resumed]

        manifests = {
            site: Manifest(**values | {"shards": [Shard(**shard) for shard in values["shards"]]})
            for site, values in zip(paths, world.by_first(begin), strict=True)
        }
        if unfinished := {site: manifest for site, manifest in manifests.items() if not manifest.finished}:
            text = token_blocks(corpus, model.tokenizer, block_size, seed=seed, spread=spread)
            with _progress(model, unfinished, n_tokens, progress if world.first else False) as bar:
                write_shards(model, unfinished, paths, text, n_tokens, world, bar)
            # the same sum for every store, as they read the same tokens
            one = next(iter(unfinished.values()))
            n_rows = one.n_rows + one.dropped_by_norm
            if not n_rows:
                raise no_block(corpus, block_size)
            if n_rows < n_tokens and world.first:
                warnings.warn(f"corpus {corpus.name!r} gave {n_rows} of {n_tokens} rows", stacklevel=3)
            for site, manifest in unfinished.items():
                manifest.finished = True
                if world.first:
                    manifest.write(paths[site])
            # fitted by the first process; sent to the others once the manifests are written
            fitted = json.loads(world.texts(json.dumps([m.normalisation for m in unfinished.values()]))[0])
            for manifest, values in zip(unfinished.values(), fitted, strict=True):
                manifest.normalisation = values
    stores = (ActivationStore(paths[site], manifest) for site, manifest in manifests.items())
    return dict(zip(folders, stores, strict=True))
