"""Training as a whole, data and log included, against its bare steps.

    python -m benchmarks.training                               # random rows, d 576, width 9,216, batch 1,024
    python -m benchmarks.training --store runs/stores/code-14   # rows from disk
    python -m benchmarks.training --record book/records/14_training.json

``sae_lib.train`` is stopped after every 20 steps for as many bare steps, as ``benchmarks.step`` times them,
on a batch that stays in memory. So both meet the same machine, and a ratio of 1 says that serving rows,
logging and the loop cost nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

import sae_lib
from benchmarks import report
from benchmarks.step import ours_step, units
from sae_lib.activations import ActivationStore
from sae_lib.batches import BatchSource, Rows

# steps in a turn; the first turn compiles and warms up
TURN = 20


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark and return its rows."""
    chosen = parser().parse_args(arguments)
    started = time.perf_counter()
    data: BatchSource = (
        ActivationStore.open(chosen.store)
        if chosen.store
        else Rows(normalize(torch.randn(chosen.rows, chosen.d), dim=1))
    )
    # its ceiling keeps L0 where the bare step has it
    methods = {
        "BA": sae_lib.BiasAdaptation(target_frequency=chosen.l0 / chosen.width),
        "TopK": sae_lib.TopK(k=chosen.l0),
    }
    settings = {"width": chosen.width, "batch": chosen.batch, "l0": chosen.l0}
    rows = [
        {"name": name, **settings, "units": units(), "store": chosen.store is not None,
         **compare(data, method, **settings, turns=chosen.turns)}
        for name, method in methods.items()
    ]  # fmt: skip
    report.finish(
        rows, chosen, started,
        lambda row: f"{row['name']:6} bare {row['bare_ms']:8.2f} ms, train {row['train_ms']:8.2f} ms a step: "
                    f"{row['of_bare']:.3f} ({row['of_bare_low']:.3f}–{row['of_bare_high']:.3f}) of its rate",
    )  # fmt: skip
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    sizes = {"d": 576, "width": 9216, "batch": 1024, "l0": 32, "rows": 262_144, "turns": 6}
    options = report.parser("training", __doc__.split("\n")[0], **sizes)
    options.add_argument("--store", type=Path, help="a store to train on, in place of random rows")
    return options


def compare(
    data: BatchSource, method: sae_lib.methods.Method, width: int, batch: int, l0: int, turns: int
) -> dict[str, float]:
    """Return the milliseconds of a bare step and of a step of training, and the share of the bare rate."""
    bare_step = ours_step(method, next(data.batches(batch, seed=0)), width, l0)
    bare, whole, resumed = [], [], 0.0

    def turn(number: int, sae: sae_lib.SparseAutoencoder) -> None:
        nonlocal resumed
        began = time.perf_counter()
        whole.append((began - resumed) / TURN)
        for _ in range(TURN):
            bare_step()
        resumed = time.perf_counter()
        bare.append((resumed - began) / TURN)

    settings = {"width": width, "batch_size": batch, "log_every": TURN, "steps": TURN * (turns + 1)}
    sae_lib.train(data, method, **settings, callback=turn, progress=False)
    shares = [b / w for b, w in zip(bare[1:], whole[1:], strict=True)]
    low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else 3 * shares
    return {
        "bare_ms": 1e3 * statistics.median(bare[1:]), "train_ms": 1e3 * statistics.median(whole[1:]),
        "of_bare": statistics.median(shares), "of_bare_low": low, "of_bare_high": high,
    }  # fmt: skip


if __name__ == "__main__":
    main()
