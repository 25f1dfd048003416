"""The cost of a GBA step against each of its sizes, sparse and dense.

    python -m benchmarks.cost                                       # about three minutes on two cores
    python -m benchmarks.cost --record book/records/14_cost.json

One size at a time departs from d 576, width 9,216, batch 1,024, L0 32. Rules and contestants are those of
``benchmarks.step``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks import report, step

BASE = {"d": 576, "width": 9216, "batch": 1024, "l0": 32}
VALUES = {
    "d": (128, 256, 576, 1152),
    "width": (576, 2304, 9216, 36_864),
    "batch": (64, 256, 1024, 4096),
    "l0": (4, 16, 32, 128, 512, 2048),
}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark and return its rows."""
    options = parser().parse_args(arguments)
    started = time.perf_counter()
    shapes = [BASE | {size: value} for size, values in VALUES.items() for value in values]
    rows = []
    for shape in {tuple(s.items()): s for s in shapes}.values():
        x = normalize(torch.randn(shape["batch"], shape["d"]), dim=1)
        measured = step.measure(x, shape["width"], shape["l0"], options.rounds, only="GBA")
        rows += [shape | row for row in measured]
    report.finish(
        rows, options, started,
        lambda row: " ".join(f"{size} {row[size]:<6}" for size in BASE)
                    + f" {row['name']:20} {row['x_gemm']:6.2f} × product",
    )  # fmt: skip
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    return report.parser("cost", __doc__.split("\n")[0], rounds=5)


if __name__ == "__main__":
    main()
