"""Readings, splitting, absorption and interventions over seeds: the records that chapter 12 shows.

    python -m sae_experiments.records.reading WHAT

    readings         book/records/12_readings.json, 2 minutes of two cores
    splitting        book/records/12_splitting.json, 3 minutes of two cores
    interventions    book/records/12_interventions.json, 2 minutes

Run it from the repository's root. Finished runs are kept in runs/reading; started again, the command resumes.
Settings are the winners of chapter 10's search, book/records/10_search.json.

Readings: three methods on code, middle layer; purity, predictions of readings, latents that fire together,
and the effect of steering and ablating four latents. Splitting: GBA and TopK on code, middle layer, at three
widths. TopK has the same K at all widths, GBA the same sum of ceilings: HTF falls as the width grows.
Interventions: 20 latents of three methods, late layer.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import sae_lib
from sae_experiments import testbed
from sae_experiments.latent_reading import Place, Read, intervene
from sae_lib import records
from sae_lib.metrics import splitting
from sae_lib.metrics.cooccurrence import Rho2, cooccurrence
from sae_lib.metrics.reading import TokenTable, code_table, scattered
from sae_lib.sweeps import sweep

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "book" / "records"
# the command is run from the repository's root
STORES = "runs/language"
WIDTHS = (512, 1024, 2048)
SEEDS = (0, 1, 2)
METHODS = ("gba", "topk", "jumprelu")


@cache
def place(layer: int) -> Place:
    """Open the testbed's rows of code at a layer, once a process."""
    return Place(testbed.open_testbed("quick", STORES, layers=(layer,), names=("code",)), "code", layer)


def cells(layer: int, methods: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return cells of every method with the settings of the search, and every seed."""
    chosen = testbed.settings(records.read(RECORDS / "10_search.json").rows, "code", layer)
    return [
        {"method": m, "knob": chosen[m]["knob"], "lr": chosen[m]["lr"], "layer": layer, "seed": s}
        for s in SEEDS for m in methods
    ]  # fmt: skip


def fitted(where: Place, name: str, knob: float, lr: float, seed: int, width: int = 1024) -> Any:
    """Train once as on the testbed; GBA's ceilings have the same sum at every width."""
    method = testbed.contestant(name, knob * (1024 / width if name == "gba" else 1))
    sizes: dict[str, Any] = where.bed.training | {"width": width}
    return sae_lib.train(where.store, method, lr=lr, seed=seed, **sizes)[0]


def verdicts(where: Place, read: Read) -> dict[str, dict[str, float]]:
    """Return mean held-out scores of three kinds of reading, for latents with 5 held-out firings or more."""
    vocabulary = where.bed.model.vocabulary
    table = TokenTable(read.codes, where.tokens, vocabulary)
    held_out = TokenTable(read.test_codes, where.test_tokens, vocabulary)
    kept = held_out.firings[read.latents] >= 5
    latents, top = read.latents[kept], [np.unique(tokens) for tokens in read.strongest[kept]]
    readings = {
        "its strongest tokens": top, "the best list": [table.best_reading(m) for m in latents],
        "another latent's": top[1:] + top[:1],
    }  # fmt: skip
    scores = {kind: held_out.score(latents, lists) for kind, lists in readings.items()}
    return {
        kind: {name: float(getattr(score, name).mean()) for name in ("precision", "recall", "f1")}
        for kind, score in scores.items()
    }


def together(rho2: Rho2) -> dict[str, float]:
    """Summarise co-occurrence as chapter 12 shows it."""
    return {
        "latents": rho2.n_latents, "largest": float(np.nanmedian(rho2.largest)), "mean": rho2.mean,
        "rho2_sqrt_n": rho2.rho2_sqrt_n,
    }  # fmt: skip


def told(method: str, knob: float, lr: float, layer: int, seed: int) -> dict[str, Any]:
    """Train one autoencoder and measure the readings of chapter 12."""
    start, where = time.perf_counter(), place(layer)
    read = where.read(fitted(where, method, knob, lr, seed))
    tried = intervene(where, read, 4, contexts=2, seed=seed)
    pushed = {
        f"{kind} {name}": values.tolist()
        for kind in tried.predicted for name, values in tried.scores(kind).items()
    }  # fmt: skip
    return {
        "l0": read.test_codes.nnz / len(where.test), "alive": len(read.latents) / read.sae.width,
        "purity": float(read.purity.mean()), "pure": float((read.purity >= 0.9).mean()),
        "readings": verdicts(where, read),
        "together": together(cooccurrence(read.codes).rho2(min_firings=50)),
        "together, null": together(cooccurrence(scattered(read.codes, seed=seed)).rho2(min_firings=50)),
        **pushed, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def pair(narrow: Any, wide: Any, narrow_codes: Any, wide_codes: Any) -> dict[str, Any]:
    """Measure the splitting of one autoencoder in another, and in one whose latents fire at random."""
    groups = splitting.splitting(narrow_codes, wide_codes)
    null = splitting.splitting(narrow_codes, scattered(wide_codes))
    near = splitting.near_latents(narrow, wide, 0.5)[groups.parents]
    return {
        "parents": len(groups.parents), "children": groups.children.mean(), "split": groups.split().mean(),
        "near": near.mean(), "covered": groups.covered.mean(),
        "histogram": np.bincount(groups.children.clip(max=8), minlength=9).tolist(),
        "null_children": null.children.mean(), "null_split": null.split().mean(),
    }  # fmt: skip


def split(method: str, knob: float, lr: float, layer: int, seed: int) -> dict[str, Any]:
    """Train one seed at every width, and a second one at the narrowest for comparison."""
    start = time.perf_counter()
    where, saes, codes, absorption = place(layer), {}, {}, {}
    for width in WIDTHS:
        for twin in (0, 1) if width == WIDTHS[0] else (0,):
            sae = fitted(where, method, knob, lr, seed + 10 * twin, width)
            saes[width, twin], codes[width, twin] = sae, code_table(sae, where.rows)
        test_codes = code_table(saes[width, 0], where.test)
        classes = where.absorption(saes[width, 0], codes[width, 0], test_codes)
        absorption[width] = [{"l0": test_codes.nnz / len(where.test), **row.to_dict()} for row in classes]
    pairs = [
        {"narrow": a, "wide": b, "twin": a == b, **pair(saes[a, 0], saes[b, t], codes[a, 0], codes[b, t])}
        for a, b, t in ((WIDTHS[0], b, int(b == WIDTHS[0])) for b in WIDTHS)
    ]
    return {"pairs": pairs, "absorption": absorption, "seconds": time.perf_counter() - start}


def intervened(method: str, knob: float, lr: float, layer: int, seed: int) -> dict[str, Any]:
    """Steer and ablate 20 latents of one autoencoder; return rank scores of each and the share above 0."""
    start, where = time.perf_counter(), place(layer)
    read = where.read(fitted(where, method, knob, lr, seed))
    tried = intervene(where, read, seed=seed)
    scores = {kind: tried.scores(kind) for kind in tried.predicted}
    by_latent = {
        f"{kind} {name}": values.tolist()
        for kind, arrays in scores.items() for name, values in arrays.items()
    }  # fmt: skip

    def share(changes: Any, said: Any) -> float:
        return float(np.mean([(c[t] > 0).float().mean() for c, t in zip(changes, said, strict=True)]))

    gains = {
        f"{kind} {name} share": share(changes, said)
        for kind, said in tried.predicted.items()
        for name, changes in (("steered", tried.steered), ("ablated", -tried.ablated))
    }  # fmt: skip
    l0 = read.test_codes.nnz / len(where.test)
    row = {"latents": tried.latents.tolist(), "l0": l0, **by_latent, **gains}
    return row | {"seconds": time.perf_counter() - start}


def main(what: str, workers: int = 2) -> Path:
    """Make all runs of one record and return its path."""
    folder, rows = ROOT / "runs" / "reading", list[dict[str, Any]]()
    if what == "interventions":
        done = sweep(intervened, cells(26, METHODS), folder=folder, workers=workers)
    elif what == "readings":
        done = sweep(told, cells(14, METHODS), folder=folder, workers=workers)
    else:
        done = sweep(split, cells(14, METHODS[:2]), folder=folder, workers=workers)
    # of all sittings together
    seconds = sum(r.pop("seconds") for r in done) / workers
    for r in done:
        if what != "splitting":
            rows.append(r)
            continue
        common = {name: r[name] for name in ("method", "knob", "lr", "layer", "seed")}
        rows += [{"what": "splitting", **common, **row} for row in r["pairs"]]
        rows += [
            {"what": "absorption", **common, "width": int(width), **row}
            for width, classes in r["absorption"].items() for row in classes
        ]  # fmt: skip
    path = RECORDS / f"12_{what}.json"
    records.write(path, rows, seconds=seconds)
    return path


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("readings", "splitting", "interventions"))
    parser.add_argument("--workers", type=int, default=2)
    return parser


if __name__ == "__main__":
    # under the module's own name, so that other processes find what it defines
    from sae_experiments.records import reading

    print(reading.main(**vars(parser().parse_args())))
