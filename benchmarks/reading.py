"""Splitting, absorption and interventions over seeds: the records that chapter 12 shows.

    python -m benchmarks.reading splitting       # book/results/12_splitting.json, 10 minutes of two cores
    python -m benchmarks.reading interventions   # book/results/12_interventions.json, 10 minutes

Finished runs are kept in runs/reading; started again, the command goes on where it stopped. Both read the
learning rates, and the second the knobs, from book/results/10_search.json.

Splitting: GBA and TopK on code, middle layer, at widths 256, 1,024 and 4,096, with 16 latents a row at every
width (32 would be an eighth of the narrowest). GBA's knob for that is found on seed 100, by at most four
trials a width. Interventions: 20 latents of GBA, TopK and JumpReLU at the middle and the late layer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import sae_lib
from sae_lib import language_testbed, records
from sae_lib.language_reading import Place, intervene, open_place
from sae_lib.metrics import reconstruction, splitting
from sae_lib.metrics.reading import scattered, sparse_codes
from sae_lib.sweeps import sweep, tune

ROOT = Path(__file__).resolve().parent.parent
# the command is run from the repository's root
STORES = "runs/language"
WIDTHS = (256, 1024, 4096)
L0 = 16
SEEDS = (0, 1, 2)
TRIAL_SEED = 100


def place(layer: int) -> Place:
    """The testbed's rows of code at a layer."""
    return open_place(STORES, "code", layer)


def fitted(where: Place, name: str, knob: float, lr: float, seed: int, **changes: Any) -> Any:
    """One training run of the testbed."""
    method = language_testbed.contestant(name, knob)
    return sae_lib.train(where.store, method, lr=lr, seed=seed, **where.bed.training | changes)[0]


def knob_of(method: str, width: int, lr: float) -> dict[str, Any]:
    """The knob at which L0 latents of a given number fire on a held-out row."""
    if method == "topk":
        return {"knob": L0, "l0": float(L0)}
    where = place(14)

    def l0(knob: float) -> float:
        sae = fitted(where, method, knob, lr, TRIAL_SEED, width=width)
        return float(reconstruction(sae, where.test).l0)

    # the mean of GBA's ceilings is about a quarter of the highest one
    found = tune(l0, L0, 3 * L0 / width, 12 * L0 / width, budget=4)
    return {"knob": found.knob, "l0": found.value}


def pair(narrow: Any, wide: Any, narrow_codes: Any, wide_codes: Any) -> dict[str, Any]:
    """Splitting of one autoencoder in another, and in one whose latents fire at random."""
    found = splitting.splitting(narrow_codes, wide_codes)
    null = splitting.splitting(narrow_codes, scattered(wide_codes))
    near = splitting.near_latents(narrow, wide, 0.5)[found.parents]
    return {
        "parents": len(found.parents), "children": found.children.mean(), "split": found.split().mean(),
        "near": near.mean(), "covered": found.covered.mean(),
        "histogram": np.bincount(found.children.clip(max=8), minlength=9).tolist(),
        "null_children": null.children.mean(), "null_split": null.split().mean(),
    }  # fmt: skip


def split(method: str, knobs: dict[str, float], lr: float, seed: int) -> dict[str, Any]:
    """Train one seed at every width, and a second seed of the two narrower ones for comparison."""
    where, saes, codes, absorption = place(14), {}, {}, {}
    for width in WIDTHS:
        for twin in (0, 1) if width < WIDTHS[-1] else (0,):
            sae = fitted(where, method, knobs[str(width)], lr, seed + 10 * twin, width=width)
            saes[width, twin], codes[width, twin] = sae, sparse_codes(sae, where.rows)
        test_codes = sparse_codes(saes[width, 0], where.test)
        found = where.absorption(saes[width, 0], codes[width, 0], test_codes)
        absorption[width] = [row.to_dict() for row in found]
    pairs = [
        {"narrow": a, "wide": b, "twin": a == b, **pair(saes[a, 0], saes[b, t], codes[a, 0], codes[b, t])}
        for a, b, t in ((256, 256, 1), (256, 1024, 0), (256, 4096, 0), (1024, 1024, 1), (1024, 4096, 0))
    ]
    return {"pairs": pairs, "absorption": absorption}


def intervened(method: str, layer: int, knob: float, lr: float, seed: int) -> dict[str, Any]:
    """Steer and ablate 20 latents of one autoencoder; mean rank scores, and those of each latent."""
    where = place(layer)
    read = where.read(fitted(where, method, knob, lr, seed))
    tried = intervene(where, read, seed=seed)
    scores = {kind: tried.scores(kind) for kind in tried.predicted}
    own = {
        f"{kind} {name}": values.tolist()
        for kind, found in scores.items() for name, values in found.items()
    }  # fmt: skip

    def share(changes: Any, said: Any) -> float:
        return float(np.mean([(c[t] > 0).float().mean() for c, t in zip(changes, said, strict=True)]))

    gains = {
        f"{kind} {name} share": share(changes, said)
        for kind, said in tried.predicted.items()
        for name, changes in (("steered", tried.steered), ("ablated", -tried.ablated))
    }  # fmt: skip
    return {"latents": tried.latents.tolist(), "l0": read.test_codes.nnz / len(where.test), **own, **gains}


def settings(method: str, layer: int) -> dict[str, float]:
    """Knob and learning rate that the search chose for L0 = 32 on code."""
    rows = records.read(ROOT / "book" / "results" / "10_search.json").rows
    row = next(
        r for r in rows
        if r["chosen"] and (r["method"], r["corpus"], r["layer"], r["target"]) == (method, "code", layer, 32)
    )  # fmt: skip
    return {"knob": row["knob"], "lr": row["lr"]}


def main(what: str, workers: int = 2) -> Path:
    """All runs of one record; returns its path."""
    start, folder = time.perf_counter(), ROOT / "runs" / "reading"
    if what == "splitting":
        rates = {m: settings(m, 14)["lr"] for m in ("gba", "topk")}
        cells = [{"method": m, "width": w, "lr": lr} for m, lr in rates.items() for w in reversed(WIDTHS)]
        tuned = sweep(knob_of, cells, folder=folder, workers=workers)
        knobs = {m: {str(r["width"]): r["knob"] for r in tuned if r["method"] == m} for m in rates}
        cells = [
            {"method": m, "knobs": knobs[m], "lr": lr, "seed": s} for s in SEEDS for m, lr in rates.items()
        ]
        found = sweep(split, cells, folder=folder, workers=workers)
        rows: list[dict[str, Any]] = [{"what": "knob", **row} for row in tuned]
        for r in found:
            common = {"method": r["method"], "seed": r["seed"]}
            rows += [{"what": "splitting", **common, **row} for row in r["pairs"]]
            rows += [
                {"what": "absorption", **common, "width": int(width), **row}
                for width, classes in r["absorption"].items() for row in classes
            ]  # fmt: skip
    else:
        cells = [
            {"method": m, "layer": layer, **settings(m, layer), "seed": s}
            for s in SEEDS for layer in (14, 26) for m in ("gba", "topk", "jumprelu")
        ]  # fmt: skip
        rows = sweep(intervened, cells, folder=folder, workers=workers)
    path = ROOT / "book" / "results" / f"12_{what}.json"
    records.write(path, rows, seconds=time.perf_counter() - start)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("splitting", "interventions"))
    parser.add_argument("--workers", type=int, default=2)
    print(main(**vars(parser.parse_args())))
