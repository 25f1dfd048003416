"""Seven methods on the language-model testbed, on two CPU cores: the records that chapter 10 shows.

    python -m sae_experiments.records.language_model STAGE

    search       rates and knobs for every method, 12 minutes; first
    frontier     three more sparsities, three seeds, 12 minutes
    ablation     groups and frequencies of GBA, 2 minutes
    seeds        settings of the search, three seeds, 2 minutes
    losses       the model's loss with each of those in it, 2 minutes
    places       settings of the search elsewhere, three seeds, 12 minutes

Finished runs are kept in runs/10; started again, a stage resumes. The search and the frontier keep what their
records hold already and add what is missing; to make one from nothing, see ``sae_experiments.records``.

The rules. Rows, width, steps and batches are the testbed's (quick), the same for all. Every method gets the
same search, on a seed that is not used again: at layer 14 on code four learning rates, and for each of them
at most four trainings to turn the method's one knob until the mean L0 on held-out rows is the target. Each
rate is represented by its training nearest to the target; among those within 10 % of it the one with the
least error counts. Elsewhere the learning rate is kept and only the knob is searched again.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_experiments import testbed
from sae_experiments.records import common, consistency
from sae_experiments.records.common import SLOPES, TRIAL_SEED, setting, towards, turn_knob
from sae_experiments.testbed import CORPORA, LAYERS, METHODS, SIZES, contestant
from sae_lib import GroupBiasAdaptation, load, metrics, records, train
from sae_lib.language_models import LanguageModel
from sae_lib.methods import Method
from sae_lib.metrics.faithfulness import faithfulness
from sae_lib.sweeps import sweep

STORES, CACHE, RECORDS = "runs/language", "runs/10", "book/records"
RATES = (0.001, 0.003, 0.01, 0.03)
STOP, ACCEPT, TARGET = 0.05, 0.1, 32
SEEDS, TARGETS = (0, 1, 2), (20, 60, 200)
PLACES = [(corpus, layer) for corpus in CORPORA for layer in LAYERS.values()]
MIDDLE = ("code", LAYERS["middle"])
# where each search begins, for L0 = 32
START = {
    "gba": 0.3, "ba": 0.15, "topk": 32, "batch_topk": 31, "matryoshka": 30, "l1": 0.045, "jumprelu": 1e-3,
}  # fmt: skip
# at the rates that the search finds, L0 is nearly proportional to the frequencies
FOUND_SLOPES = SLOPES | {"gba": 0.95, "ba": 0.9}


open_place = functools.cache(testbed.open_place)


def fit(method: Method, lr: float, corpus: str, layer: int, seed: int) -> dict[str, float]:
    """Train one autoencoder and measure it on held-out rows."""
    store, rows = open_place(corpus, layer, STORES)
    size: dict[str, Any] = {name: SIZES["quick"][name] for name in ("width", "steps", "batch_size")}
    sae, _ = train(store, method, lr=lr, seed=seed, **size)
    score = metrics.reconstruction(sae, rows)
    return {"nmse": score.nmse, "l0": score.l0, "dead": score.dead_share}


def seek(
    method: str, lr: float, corpus: str, layer: int, target: float, start: float
) -> dict[str, list[dict[str, Any]]]:
    """Turn a method's knob from ``start`` until L0 is within 5 % of the target, in at most four trainings.

    A training that leaves nine latents in ten dead ends the search: the rate is too high.
    """
    trials: list[dict[str, Any]] = []

    def l0(knob: float) -> float:
        trials.append({"knob": knob, **fit(contestant(method, knob), lr, corpus, layer, TRIAL_SEED)})
        return math.nan if trials[-1]["dead"] > 0.9 else float(trials[-1]["l0"])

    turn_knob(method, l0, target, start, within=STOP)
    return {"trials": trials}


def chosen(trials: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """Take of each rate the trial nearest to the target; choose of those within 10 % the least error.

    Where none is within 10 %, the nearest of all is chosen.
    """
    by_rate: dict[float, dict[str, Any]] = {}
    for trial in sorted(trials, key=lambda t: -abs(t["l0"] - target)):
        by_rate[trial["lr"]] = trial
    near = [t for t in by_rate.values() if abs(t["l0"] / target - 1) <= ACCEPT]
    if near:
        return min(near, key=lambda t: t["nmse"])
    return min(by_rate.values(), key=lambda t: abs(t["l0"] - target))


def searched(cells: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """Return the trials of searches as rows; the one that counts for a method and place is marked."""
    searches = sweep(seek, cells, folder=CACHE, workers=workers)
    rows = [
        {k: v for k, v in search.items() if k not in ("trials", "start")}
        | {"seed": TRIAL_SEED, **trial, "chosen": False}
        for search in searches
        for trial in search["trials"]
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["corpus"], row["layer"]), []).append(row)
    for group in groups.values():
        chosen(group, TARGET)["chosen"] = True
    return rows


def recorded(stage: str) -> list[dict[str, Any]]:
    """Return the rows of a stage's record; none where there is no record."""
    path = Path(RECORDS, f"10_{stage}.json")
    return records.read(path).rows if path.exists() else []


def search(workers: int) -> list[dict[str, Any]]:
    """Search rate and knob of every method for L0 = 32 on code, middle layer, and knobs elsewhere."""
    rows = recorded("search")
    done = {(row["corpus"], row["layer"]) for row in rows}
    corpus, layer = MIDDLE
    if MIDDLE not in done:
        at = {"corpus": corpus, "layer": layer, "target": TARGET}
        cells = [{"method": m, "lr": lr, **at, "start": START[m]} for m in METHODS for lr in RATES]
        rows = rows + searched(cells, workers)
    best = settings(rows, *MIDDLE)
    cells = [
        {"method": m, "lr": best[m]["lr"], "corpus": corpus, "layer": layer, "target": TARGET,
         "start": best[m]["knob"]}
        for corpus, layer in PLACES
        for m in METHODS
        if (corpus, layer) not in done | {MIDDLE}
    ]  # fmt: skip
    return rows + searched(cells, workers)


def settings(rows: list[dict[str, Any]], corpus: str, layer: int) -> dict[str, dict[str, Any]]:
    """Return what the search chose for every method at a place: arguments of :func:`single`, no seed."""
    names = ("method", "lr", "knob", "corpus", "layer")
    chosen = testbed.settings(rows, corpus, layer)
    return {method: {name: row[name] for name in names} for method, row in chosen.items()}


def search_rows() -> list[dict[str, Any]]:
    """Return the rows of the search's record, which must exist."""
    return records.read(Path(RECORDS, "10_search.json")).rows


def single(method: str, knob: float, lr: float, corpus: str, layer: int, seed: int) -> dict[str, float]:
    """Run once with settings that a search has found."""
    return fit(contestant(method, knob), lr, corpus, layer, seed)


def frontier(workers: int) -> list[dict[str, Any]]:
    """Run every method at about 20, 60 and 200 active latents, without another search."""
    rows, cells = recorded("frontier"), []
    done = {(row["method"], row["lr"], row["knob"], row["seed"]) for row in rows}
    for name, at in settings(search_rows(), *MIDDLE).items():
        for target in TARGETS:
            knob = setting(name, towards(at["knob"], TARGET, target, FOUND_SLOPES[name]))
            new = [seed for seed in SEEDS if (name, at["lr"], knob, seed) not in done]
            cells += [{**at, "knob": knob, "seed": seed} for seed in new]
    return rows + sweep(single, cells, folder=CACHE, workers=workers)


def variant(
    groups: int, htf: float, ltf: float, lr: float, corpus: str, layer: int, seed: int
) -> dict[str, float]:
    """Run GBA with another ladder."""
    return fit(GroupBiasAdaptation(groups, htf, ltf, centre=True), lr, corpus, layer, seed)


def ablation(workers: int) -> list[dict[str, Any]]:
    """Vary GBA's ladder at the late layer on code: number of groups, highest and lowest frequency."""
    corpus, layer = "code", LAYERS["late"]
    lr = settings(search_rows(), corpus, layer)["gba"]["lr"]
    base = {"groups": 10, "htf": 0.3, "ltf": 0.003}
    ladders = [base]
    ladders += [base | {"groups": groups} for groups in (1, 3, 20)]
    ladders += [base | {"htf": htf} for htf in (0.5, 0.1, 0.05)]
    ladders += [base | {"ltf": 0.0003}]
    where = {"lr": lr, "corpus": corpus, "layer": layer}
    cells = [{**ladder, **where, "seed": seed} for ladder in ladders for seed in SEEDS]
    return sweep(variant, cells, folder=CACHE, workers=workers)


def three_seeds(workers: int) -> list[dict[str, Any]]:
    """Run every method at 32 active latents, middle layer, code; chapter 11 needs these runs too."""
    where = {"data": "activations", "layer": MIDDLE[1], "steps": SIZES["quick"]["steps"], "tied": True}
    by_method = settings(search_rows(), *MIDDLE)
    cells = [
        {**{name: setting[name] for name in ("method", "knob", "lr")}, **where, "seed": seed}
        for seed in SEEDS
        for setting in by_method.values()
    ]
    return sweep(consistency.fit, cells, folder=Path(consistency.RUNS, "results"), workers=workers)


def seeds(workers: int) -> list[dict[str, Any]]:
    """Return the errors of :func:`three_seeds`."""
    names = ("method", "lr", "knob", "layer", "seed", "nmse", "l0", "dead")
    return [{"corpus": MIDDLE[0], **{n: row[n] for n in names}} for row in three_seeds(workers)]


def places(workers: int) -> list[dict[str, Any]]:
    """Run every method at 32 active latents at the other layers and texts that were searched."""
    rows = search_rows()
    others = [settings(rows, *place) for place in testbed.searched_places(rows) if place != MIDDLE]
    cells = [{**setting, "seed": seed} for at in others for seed in SEEDS for setting in at.values()]
    return sweep(single, cells, folder=CACHE, workers=workers)


@functools.cache
def read_model() -> tuple[LanguageModel, Tensor]:
    """Load the model and four blocks of held-out code (4, 256)."""
    bed = testbed.open_testbed("quick", STORES, layers=[MIDDLE[1]], names=[MIDDLE[0]])
    return bed.model, bed.blocks(MIDDLE[0], 4)


def loss(kept: dict[str, str]) -> dict[str, Any]:
    """Measure the model's losses with autoencoders of the middle layer in it, by name."""
    model, blocks = read_model()
    scores = faithfulness(model, {m: load(at) for m, at in kept.items()}, f"resid_post.{MIDDLE[1]}", blocks)
    return {"losses": {name: {**vars(s), "ce_recovered": s.ce_recovered, "kl_recovered": s.kl_recovered}
                       for name, s in scores.items()}}  # fmt: skip


def losses(workers: int) -> list[dict[str, Any]]:
    """Measure the model's loss with each autoencoder of :func:`three_seeds` in it."""
    trained = three_seeds(workers)
    cells = [{"kept": {r["method"]: r["kept"] for r in trained if r["seed"] == seed}} for seed in SEEDS]
    by_seed = sweep(loss, cells, folder=CACHE, workers=workers)
    return [
        {"method": method, "seed": seed, **row}
        for seed, scores in zip(SEEDS, by_seed, strict=True)
        for method, row in scores["losses"].items()
    ]


STAGES = {
    "search": search, "frontier": frontier, "ablation": ablation, "seeds": seeds, "losses": losses,
    "places": places,
}  # fmt: skip
# stages that keep the rows of their record
GROWING = ("search", "frontier")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    return common.parser("language_model", __doc__, STAGES)


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; its record goes to book/records."""
    asked = parser().parse_args(arguments)
    started = time.perf_counter()
    testbed.open_testbed("quick", STORES)
    path = Path(RECORDS, f"10_{asked.stage}.json")
    rows = STAGES[asked.stage](asked.workers)
    before = records.read(path).made["seconds"] if asked.stage in GROWING and path.exists() else 0
    records.write(path, rows, seconds=before + time.perf_counter() - started)
    print(path)


if __name__ == "__main__":
    # under the module's own name, so that other processes find what it defines
    from sae_experiments.records import language_model

    language_model.main()
