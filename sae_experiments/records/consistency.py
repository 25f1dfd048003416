"""Agreement between seeds on a language model's activations: the records that chapters 10 and 11 show.

    python -m sae_experiments.records.consistency STAGE

    short        GBA, TopK and L1, six seeds; chapter 11 repeats three
    others       the other four methods, six seeds
    layers       GBA, TopK and L1 at the early and the late layer, three seeds
    twin         the same three on a Gaussian twin of the activations
    long         the same three, three times as many steps
    longer       the same three, 12 times as many steps on four times the rows
    untied       GBA with a separate decoder
    agreement    directions that pairs of three seeds of GBA share, also on the twin; for chapter 10

Each stage takes two CPU cores one to ten minutes, the one with four times the rows a quarter of an hour, and
writes its own record. Trained autoencoders and finished runs are kept in runs/consistency; started again, a
stage resumes. Run it from the repository's root; the activations are those of the language testbed, code, in
runs/language.

The rules. Learning rates come from the search that chapter 10 shows, one for each method. The search for the
knob begins with the value from there and ends as soon as L0 is within 10 % of 32, after at most four
trainings on a seed that is not used again. Then come seeds 0, 1, …, which draw the initial weights and the
order of the rows, nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

import sae_lib
from sae_experiments import testbed
from sae_experiments.records import common
from sae_lib import activations, language_models, metrics, records
from sae_lib.batches import BatchSource, Rows
from sae_lib.metrics import spectrum
from sae_lib.sweeps import sweep

RUNS = "runs/consistency"
STORES = "runs/language"
RECORDS = "book/records"
SEARCH = "book/records/10_search.json"
TARGET = 32.0
MORE_ROWS = "four times the rows"
SIZE = testbed.SIZES["quick"]
SHORT, LONG, LONGER = (times * SIZE["steps"] for times in (1, 3, 12))
THREE = ("gba", "topk", "l1")
THRESHOLDS = (0.9, 0.7, 0.5)
# numbers of top latents: points on the curves over α
TOP = (1, 2, 3, 5, 8, 13, 20, 32, 51, 82, 128, 205, 328, 512, 717, 1024)
# bins of the firing rate; below the first edge a latent is silent on the 5,000 held-out rows
EDGES = (1e-9, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 1.0)
# the stage agreement: cosines above which two runs count as agreed, and bins of cosines from 0 to 1
DATA, SEEDS, AGREED, BINS = ("activations", "gaussian twin"), (0, 1, 2), (0.5, 0.7, 0.9), 40


def source(data: str, layer: int) -> tuple[BatchSource, Tensor]:
    """Return training rows, and held-out rows (N, d)."""
    more = activations.ActivationStore.open(more_rows(layer)) if data == MORE_ROWS else None
    train, rows = testbed.open_place("code", layer, STORES, store=more)
    if data != "gaussian twin":
        return train, rows
    twin = spectrum.gaussian_twin(train.normalisation.apply(testbed.all_rows(train)))
    return Rows(twin[len(rows) :]), twin[: len(rows)]


def more_rows(layer: int) -> Path:
    """Return the folder of a store with four times the rows of the same documents; harvest it if missing."""
    folder = Path(RUNS, "rows", f"layer-{layer}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        training, _ = testbed.texts("code")
        model = language_models.load()
        rows = 4 * SIZE["train"]
        activations.harvest(model, training, f"resid_post.{layer}", folder, n_tokens=rows, **testbed.RULES)
    return folder


def fit(
    method: str, knob: float, lr: float, seed: int, data: str, layer: int, steps: int, tied: bool
) -> dict[str, Any]:
    """Train one autoencoder, save it and measure it on held-out rows."""
    rows, held_out = source(data, layer)
    settings = {"tied": False} if method == "gba" and not tied else {}
    contestant = testbed.contestant(method, knob, **settings)
    size: dict[str, Any] = {"width": SIZE["width"], "batch_size": SIZE["batch_size"]}
    begun = time.perf_counter()
    sae, _ = sae_lib.train(rows, contestant, lr=lr, seed=seed, steps=steps, **size)
    kept = f"{RUNS}/{method}-{knob:g}-{lr:g}-{tied}-{data}-{layer}-{steps}-{seed}"
    sae.save(kept)
    score = metrics.reconstruction(sae, held_out)
    seconds = time.perf_counter() - begun
    return {"kept": kept, "l0": score.l0, "nmse": score.nmse, "dead": score.dead_share, "seconds": seconds}


def settle(
    method: str, start: float, lr: float, data: str, layer: int, steps: int, tied: bool
) -> dict[str, Any]:
    """Search from ``start`` for the knob of L0 = 32, up to 10 %, in at most four trainings."""
    if method in common.K_METHODS:
        return {"knob": start, "seconds": 0.0}
    seconds = 0.0

    def l0(knob: float) -> float:
        nonlocal seconds
        trained = fit(method, knob, lr, common.TRIAL_SEED, data, layer, steps, tied)
        seconds += trained["seconds"]
        return float(trained["l0"])

    knob = common.turn_knob(method, l0, TARGET, start, within=0.1).knob
    return {"knob": knob, "seconds": seconds}


def agreement(kept: list[str], data: str, layer: int) -> dict[str, Any]:
    """Measure how runs of the seeds 0, 1, … agree; pairs in the order (0, 1), (0, 2), …, (1, 2).

    Returns:
        ``pw_mcc`` and ``mcs`` of each pair, MCS as the mean over the latents of both; ``curves`` by rule and
        threshold, mean and standard deviation over pairs of the share among the top latents; ``by_rate``, for
        each bin of the firing rate the latents of a run, the share of these with MCS above each threshold,
        and their mean MCS; ``doubles``, of each run, the share of its firing latents that have another one at
        cosine above 0.9; ``start``, of each run, its latents' mean cosine with their initial directions.
    """
    saes = [sae_lib.load(folder) for folder in kept]
    _, held_out = source(data, layer)
    statistics = [metrics.latent_statistics(sae, held_out) for sae in saes]
    ordered = list(itertools.permutations(range(len(saes)), 2))
    similarity = {(i, j): metrics.max_cosine_similarity(saes[i], saes[j]) for i, j in ordered}
    pairs = list(itertools.combinations(range(len(saes)), 2))
    top = torch.tensor(TOP) - 1
    curves: dict[str, Any] = {}
    for rule, threshold in itertools.product(metrics.RULES, THRESHOLDS):
        one_way = {
            (i, j): metrics.consistency_curve(m, statistics[i], rule=rule, threshold=threshold)[top]
            for (i, j), m in similarity.items()
        }
        both = torch.stack([(one_way[i, j] + one_way[j, i]) / 2 for i, j in pairs])
        deviation = both.std(dim=0) if len(pairs) > 1 else torch.zeros(len(TOP))
        curves[f"{rule}, {threshold}"] = {"mean": rounded(both.mean(dim=0)), "sd": rounded(deviation)}
    return {
        "pw_mcc": rounded(metrics.pair_correlations(saes)),
        "mcs": [round(((similarity[i, j].mean() + similarity[j, i].mean()) / 2).item(), 4) for i, j in pairs],
        "curves": curves,
        "by_rate": by_rate(similarity, [s.firing_rate for s in statistics]),
        "start": [round(start(sae, seed), 4) for seed, sae in enumerate(saes)],
        "doubles": [round(doubles(sae, s.firing_rate), 4) for sae, s in zip(saes, statistics, strict=True)],
    }


def by_rate(similarity: dict[tuple[int, int], Tensor], rates: list[Tensor]) -> dict[str, Any]:
    """Measure the agreement of latents that fire equally often: over all ordered pairs, by bin."""
    edges = torch.tensor(EDGES, dtype=torch.float64)
    bins = len(EDGES)  # the first holds the silent ones
    latents, above, mean = torch.zeros(bins), {t: torch.zeros(bins) for t in THRESHOLDS}, torch.zeros(bins)
    for (i, _), m in similarity.items():
        place = torch.bucketize(rates[i], edges)
        latents += torch.bincount(place, minlength=bins)[:bins]
        mean += torch.bincount(place, weights=m.double(), minlength=bins)[:bins]
        for t in THRESHOLDS:
            above[t] += torch.bincount(place, weights=(m > t).double(), minlength=bins)[:bins]
    some = latents.clamp(min=1)
    return {
        "latents": rounded(latents / len(similarity)),
        "mcs": rounded(mean / some),
        **{f"above {t}": rounded(above[t] / some) for t in THRESHOLDS},
    }


def doubles(sae: sae_lib.SparseAutoencoder, rate: Tensor) -> float:
    """Return the share of the firing latents that have another one of the run at cosine above 0.9."""
    alive = sae.directions[rate > 0]
    return (metrics.cosines(alive, alive).fill_diagonal_(-1).amax(dim=0) > 0.9).double().mean().item()


def start(sae: sae_lib.SparseAutoencoder, seed: int) -> float:
    """Return the mean cosine of the latents with their initial directions, the same for every method."""
    before = sae_lib.SparseAutoencoder(sae.d_in, sae.width, seed=seed).weight.detach()
    return torch.nn.functional.cosine_similarity(sae.directions, before).mean().item()


def rounded(values: Tensor) -> list[float]:
    """Return a list of numbers with four decimals."""
    return [round(v, 4) for v in values.tolist()]


def chosen() -> dict[tuple[str, int], dict[str, Any]]:
    """Return by method and layer what the search chose on code for L0 = 32."""
    rows = records.read(SEARCH).rows
    return {
        (method, layer): row
        for layer in testbed.LAYERS.values()
        for method, row in testbed.settings(rows, "code", layer).items()
    }


def stages() -> dict[str, list[dict[str, Any]]]:
    """Return what each stage compares."""
    plain = {"data": "activations", "layer": 14, "steps": SHORT, "tied": True, "methods": THREE, "seeds": 3}
    others = tuple(m for m in testbed.METHODS if m not in THREE)
    return {
        "short": [{**plain, "seeds": 6}],
        "others": [{**plain, "methods": others, "seeds": 6}],
        "layers": [{**plain, "layer": testbed.LAYERS[when]} for when in ("early", "late")],
        "twin": [{**plain, "data": "gaussian twin"}],
        # where L0 = 32 is expected after three times as many steps
        "long": [{**plain, "steps": LONG, "start": {"gba": 0.22, "l1": 0.037}}],
        # begins near the knobs that 1,200 steps needed
        "longer": [{**plain, "data": MORE_ROWS, "steps": LONGER, "start": {"gba": 0.25, "l1": 0.037}}],
        "untied": [{**plain, "methods": ("gba",), "tied": False}],
    }


def compare(condition: dict[str, Any], workers: int) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of one condition, one for each method, and the seconds that its trainings took."""
    folder, picked = Path(RUNS, "results"), chosen()
    where = {name: condition[name] for name in ("data", "layer", "steps", "tied")}
    cells = []
    for method in condition["methods"]:
        best = picked[method, condition["layer"]]
        start = condition.get("start", {}).get(method, best["knob"])
        cells.append({"method": method, "start": start, "lr": best["lr"], **where})
    settled = sweep(settle, cells, folder=folder, workers=workers)
    settings = [{name: s[name] for name in ("method", "knob", "lr", *where)} for s in settled]
    cells = [{**setting, "seed": seed} for seed in range(condition["seeds"]) for setting in settings]
    fits = sweep(fit, cells, folder=folder, workers=workers)
    groups = [[r for r in fits if r["method"] == setting["method"]] for setting in settings]
    data, layer = condition["data"], condition["layer"]
    cells = [{"kept": [r["kept"] for r in group], "data": data, "layer": layer} for group in groups]
    rows, agreements = [], sweep(agreement, cells, folder=folder, workers=workers)
    for setting, group, row in zip(settings, groups, agreements, strict=True):
        measured = {name: [round(r[name], 4) for r in group] for name in ("l0", "nmse", "dead")}
        derived = {name: value for name, value in row.items() if name not in cells[0]}
        rows.append({**setting, "seeds": len(group), **measured, **derived})
    return rows, sum(r["seconds"] for r in (*settled, *fits)) / workers


def share(kept: list[str], data: str) -> dict[str, list[float]]:
    """Compare two saved runs of the middle layer.

    Returns:
        ``directions``, how many they agree on at each of ``AGREED``; ``histogram``, latents of the first by
        their largest cosine with one of the second, in ``BINS`` bins.
    """
    _, held_out = source(data, testbed.LAYERS["middle"])
    saes, rows = [sae_lib.load(at) for at in kept], held_out - held_out.mean(dim=0)
    best = metrics.max_cosine_similarity(*saes)
    agreed = [len(spectrum.estimate_frequencies(saes, rows, threshold=t)) for t in AGREED]
    return {"directions": agreed, "histogram": torch.histc(best, BINS, min=0, max=1).int().tolist()}


def shared_directions(workers: int) -> tuple[list[dict[str, Any]], float]:
    """Return a row for each pair of seeds of GBA, at the settings of the search, and the seconds."""
    best = chosen()["gba", testbed.LAYERS["middle"]]
    at = {name: best[name] for name in ("method", "knob", "lr", "layer")} | {"steps": SHORT}
    cells = [{**at, "tied": True, "data": data, "seed": seed} for data in DATA for seed in SEEDS]
    trained = sweep(fit, cells, folder=Path(RUNS, "results"), workers=workers)
    kept = {(row["data"], row["seed"]): row["kept"] for row in trained}
    started = time.perf_counter()
    rows = [
        {**at, "data": data, "seeds": [i, j], **share([kept[data, i], kept[data, j]], data)}
        for data, (i, j) in itertools.product(DATA, itertools.combinations(SEEDS, 2))
    ]
    # the trainings may have run on another day
    return rows, sum(row["seconds"] for row in trained) / workers + time.perf_counter() - started


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    return common.parser("consistency", __doc__, (*stages(), "agreement"))


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; its record goes to book/records."""
    asked = parser().parse_args(arguments)
    testbed.open_testbed("quick", STORES, names=("code",))
    path = Path(RECORDS, f"{10 if asked.stage == 'agreement' else 11}_{asked.stage}.json")
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    if asked.stage == "agreement":
        rows, seconds = shared_directions(asked.workers)
        records.write(path, rows, seconds=seconds)
    for condition in stages().get(asked.stage, ()):
        compared, took = compare(condition, asked.workers)
        rows, seconds = rows + compared, seconds + took
        records.write(path, rows, seconds=seconds)
    print(path)


if __name__ == "__main__":
    # under the module's own name, so that other processes find what it defines
    from sae_experiments.records import consistency

    consistency.main()
