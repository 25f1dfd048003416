"""One run made: its knob searched, trained or trained to the end, measured, its row returned."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

import sae_lib
from sae_experiments.evidence import data
from sae_experiments.evidence.measuring import measured, short
from sae_experiments.evidence.runs import Run
from sae_experiments.paper_scale.run import Clock
from sae_experiments.records.common import DIGITS, HIGHEST, K_METHODS, SLOPES
from sae_lib.activations.store import ActivationStore
from sae_lib.files.atomic import read_json, replacing
from sae_lib.metrics import reconstruction
from sae_lib.sae import SparseAutoencoder
from sae_lib.storage import CONFIG
from sae_lib.sweeps import tune
from sae_lib.training import NonFiniteLossError, checkpoint

# trainings of a search for a knob, and the relative distance from the wanted L0 that ends it
BUDGET, WITHIN = 6, 0.05
# held-out rows on which a trial is measured
FEW = 16_384
# share of dead latents that ends a search: the rate is too high, no knob will help
LOST = 0.9
CLOCK = "seconds.json"


def train(run: Run, store: ActivationStore, folder: Path) -> tuple[SparseAutoencoder, float]:
    """Train a run in its folder, go on where it was stopped, or open the autoencoder that is there.

    Returns:
        The autoencoder, and the seconds of training in all sittings.

    Raises:
        ValueError: What is in the folder was trained on other rows.
        KeyboardInterrupt: Stopped, after a checkpoint.
    """
    clock = Clock(folder / CLOCK)
    half_way = (folder / checkpoint.NAME).exists()
    if (folder / CONFIG).exists() and not half_way:
        sae = sae_lib.load(folder)
        if sae.metadata["training"]["data"] != json.loads(json.dumps(store.describe())):
            raise ValueError(f"{folder} was trained on other rows than those of {store.folder}; move it away")
        return sae, clock.before
    try:
        sae, _ = sae_lib.train(
            store, run.build(), width=run.width, steps=run.steps, batch_size=run.batch_size, lr=run.lr,
            seed=run.seed, folder=folder, resume=half_way, checkpoint_every=run.checkpoint_every,
            callback=clock.note,
        )  # fmt: skip
    finally:
        clock.note()
    return sae, Clock(folder / CLOCK).before


def attempt(run: Run, store: ActivationStore, rows: Tensor, folder: Path) -> dict[str, Any]:
    """Return knob, L0 and FVU of a trial, on rows (N, d); made once and then read from the folder."""
    name = f"{run.name}-of-{store.n_rows}"
    kept, home = folder / f"{name}.json", folder / name
    folder.mkdir(parents=True, exist_ok=True)
    # runs that differ in seed or length share trials: another process may be at this one
    with FileLock(folder / f"{name}.lock"):
        if not kept.exists():
            result: dict[str, Any] = {"knob": run.settings[run.knob], "l0": None, "fvu": None, "dead": None}
            try:
                sae, seconds = train(run, store, home)
            except NonFiniteLossError:
                seconds = Clock(home / CLOCK).before
            else:
                score = reconstruction(sae, rows)
                result |= {"l0": short(score.l0), "fvu": short(1 - score.explained_variance)}
                result["dead"] = short(score.dead_share)
            with replacing(kept) as path:
                path.write_text(json.dumps(result | {"seconds": short(seconds)}), "utf8")
        # also where the last process ended between the two
        shutil.rmtree(home, ignore_errors=True)
    return dict(read_json(kept))


def tuned(run: Run, store: ActivationStore, rows: Tensor, folder: Path) -> tuple[Run, list[dict[str, Any]]]:
    """Search a run's knob, if it is not set, for its L0 on held-out rows (N, d).

    Returns:
        The run with its knob set, and the trials.
    """
    if run.is_set:
        return run, []
    trials: list[dict[str, Any]] = []
    few = rows[:: max(1, len(rows) // FEW)]

    def l0(knob: float) -> float:
        trials.append(attempt(run.trial(knob), store, few, folder / "trials"))
        lost = trials[-1]["l0"] is None or trials[-1]["dead"] > LOST
        return math.nan if lost else float(trials[-1]["l0"])

    best = tune(
        l0, run.l0, high=HIGHEST[run.method], start=run.start, slope=SLOPES[run.method], budget=BUDGET,
        tolerance=math.log1p(WITHIN), integer=run.method in K_METHODS, digits=DIGITS,
    )  # fmt: skip
    return run.with_knob(best.knob), trials


def make(run: Run, *, stores: Path, folder: Path, first_rows: int = 0) -> dict[str, Any]:
    """Make a run and return its row; L0 and the rest are None if its weights became NaN or infinite.

    Args:
        run: The run.
        stores: Folder of the stores.
        folder: Holds the run's own folder and those of trials.
        first_rows: See :func:`sae_experiments.evidence.data.training_rows`.

    Raises:
        NotReadyError: A store is missing or unfinished.
        KeyboardInterrupt: Stopped; the same call goes on.
    """
    store, rows = data.training_rows(run, stores, first_rows), data.held_out_rows(run, stores)
    ready, trials = tuned(run, store, rows, folder)
    method, home = ready.build(), folder / run.name
    described = {name: value for name, value in method.describe().items() if name not in ("name", "tied")}
    row: dict[str, Any] = {
        "stage": run.stage, "name": run.name, "method": run.method, "tied": run.tied, "width": run.width,
        "rows": run.steps * run.batch_size, "seed": run.seed, "layer": run.layer, "corpus": run.corpus,
        "target": run.l0, "l0": None, "fvu": None, "nmse": None, "dead": None, "lr": run.lr,
        "steps": run.steps, "batch_size": run.batch_size, "store_rows": store.n_rows,
        "measuring_seconds": 0.0, **described,
    }  # fmt: skip
    try:
        sae, seconds = train(ready, store, home)
    except NonFiniteLossError as error:
        seconds = Clock(home / CLOCK).before
        row["failed"] = str(error)
    else:
        started = time.perf_counter()
        row |= measured(sae, method, rows)
        row["measuring_seconds"] = short(time.perf_counter() - started)
    row |= {"seconds": short(seconds), "trials": trials, "trial_rows": run.trial(1).rows if trials else 0}
    return row
