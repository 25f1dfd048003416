"""The stores of a run: training rows and held-out rows."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path

from torch import Tensor

from sae_experiments import testbed
from sae_experiments.evidence.plans import NotReadyError
from sae_experiments.evidence.runs import Run
from sae_experiments.stores import PLANS
from sae_lib.activations.manifest import Manifest, check_shard
from sae_lib.activations.store import ActivationStore

# stages whose runs may read the first shards of a store that is not finished
EARLY = ("search", "size")
# the most that --first-rows may ask for: longer runs shall see more documents than so few rows hold
MOST_FIRST_ROWS = 1_000_000


def location(run: Run, part: str, stores: Path) -> tuple[str, Path]:
    """Return name and folder of the store with a run's training rows, or with those held out."""
    for name, plan in PLANS.items():
        if (plan.corpus, plan.part) == (run.corpus, part) and run.layer in plan.layers:
            return name, plan.folders(name, stores)[f"resid_post.{run.layer}"]
    raise ValueError(f"no store of {run.corpus}, {part}, at layer {run.layer}; see sae_experiments.stores")


def _first(folder: Path, manifest: Manifest, n_rows: int) -> ActivationStore:
    """Open the first shards of a store, finished or not: as many as hold ``n_rows`` rows."""
    ends = itertools.accumulate(shard.rows for shard in manifest.shards)
    number = 1 + sum(end < n_rows for end in ends)
    shards = manifest.shards[:number]
    for shard in shards:
        check_shard(folder, shard, hashes=False)
    return ActivationStore(folder, dataclasses.replace(manifest, shards=shards, finished=True))


def training_rows(run: Run, stores: Path, first_rows: int = 0) -> ActivationStore:
    """Open the store that a run is trained on.

    With ``first_rows``, runs of the early stages that are no longer than this read the shards that hold the
    first rows, whether the harvest is over or not.

    Raises:
        NotReadyError: The store is missing or unfinished.
    """
    name, folder = location(run, "train", stores)
    harvest = f"python -m sae_experiments.stores {name}"
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError:
        raise NotReadyError(f"there is no store in {folder}; run {harvest} first") from None
    if run.stage in EARLY and run.rows <= first_rows <= manifest.n_rows:
        return _first(folder, manifest, first_rows)
    if not manifest.finished:
        planned = manifest.settings.get("n_tokens")
        early = ""
        if run.stage in EARLY and run.rows <= MOST_FIRST_ROWS:
            early = f", or set --first-rows from {run.rows:,} to the rows that are there"
        raise NotReadyError(
            f"the store in {folder} is unfinished, {manifest.n_rows:,} rows of about {planned:,}; wait for "
            f"{harvest} or run it again{early}"
        )
    # sizes are compared; hashing would read all gigabytes before every run
    return ActivationStore.open(folder, verify=False)


def held_out_rows(run: Run, stores: Path) -> Tensor:
    """Return all held-out rows (N, d) of a run's text and layer, as the model has them.

    Raises:
        NotReadyError: The store is missing or unfinished.
    """
    name, folder = location(run, "held out", stores)
    try:
        return _all_rows(folder)
    except (FileNotFoundError, ValueError) as error:
        raise NotReadyError(f"{error}; run python -m sae_experiments.stores {name} first") from None


# the runs of one text and layer follow each other; every other place would take 300 MB more
@functools.lru_cache(maxsize=1)
def _all_rows(folder: Path) -> Tensor:
    return testbed.all_rows(ActivationStore.open(folder))
