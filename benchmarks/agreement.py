"""Do two runs of GBA share directions? The record that chapter 10 shows: every pair of three seeds.

    python -m benchmarks.agreement    # book/results/10_agreement.json, 1 minute of two cores

Run it from the repository's root; the activations are those of the language testbed, code, layer 14, and a
Gaussian twin of them. Both are trained on with the settings that the search chose for the activations.
Finished runs are kept in runs/consistency, with those of chapter 11; started again, the command goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import consistency
from sae_lib import load, metrics, records
from sae_lib.experiments import testbed
from sae_lib.metrics import spectrum
from sae_lib.sweeps import sweep

RESULTS = "book/results"
DATA, LAYER, SEEDS = ("activations", "gaussian twin"), testbed.LAYERS["middle"], (0, 1, 2)
# cosines above which two runs count as agreed, and the number of bins of cosines from 0 to 1
AGREED, BINS = (0.5, 0.7, 0.9), 40


def share(kept: list[str], data: str) -> dict[str, list[float]]:
    """What two kept runs have in common.

    directions: how many they agree on at each of AGREED. histogram: latents of the first by their largest
    cosine with one of the second, in BINS bins.
    """
    _, held_out = consistency.source(data, LAYER)
    saes, rows = [load(at) for at in kept], held_out - held_out.mean(dim=0)
    best = metrics.max_cosine_similarity(*saes)
    directions = [len(spectrum.estimate_frequencies(saes, rows, threshold=t)) for t in AGREED]
    return {"directions": directions, "histogram": torch.histc(best, BINS, min=0, max=1).int().tolist()}


def main(arguments: list[str] | None = None) -> None:
    """Train, compare every pair; the record goes to book/results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each; default 2")
    options = parser.parse_args(arguments)
    testbed.open_testbed("quick", consistency.STORES, names=("code",))
    best = consistency.chosen()["gba", LAYER]
    at = {"method": "gba", "knob": best["knob"], "lr": best["lr"], "layer": LAYER, "steps": consistency.SHORT}
    cells = [{**at, "tied": True, "data": data, "seed": seed} for data in DATA for seed in SEEDS]
    trained = sweep(consistency.fit, cells, folder=Path(consistency.RUNS, "results"), workers=options.workers)
    kept = {(row["data"], row["seed"]): row["kept"] for row in trained}
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for data, (one, other) in itertools.product(DATA, itertools.combinations(SEEDS, 2)):
        found = share([kept[data, one], kept[data, other]], data)
        rows.append({**at, "data": data, "seeds": [one, other], **found})
    path = Path(RESULTS, "10_agreement.json")
    # the trainings may have been done on another day
    seconds = sum(row["seconds"] for row in trained) / options.workers + time.perf_counter() - started
    records.write(path, rows, seconds=seconds)
    print(path)


if __name__ == "__main__":
    # under the module's own name, so that other processes find what it defines
    from benchmarks import agreement

    agreement.main()
