"""Command-line options that the records' commands share, and the search for a knob at a mean L0."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection

from sae_lib.sweeps import Tuned, tune

# trainings of a search, on a seed that is used for nothing else
BUDGET, TRIAL_SEED = 4, 100
# digits of a knob that is not a whole number
DIGITS = 3
K_METHODS = ("topk", "batch_topk", "matryoshka")
# L0 is about proportional to this power of the knob; in the TopK family K is the L0
SLOPES = {"gba": 0.85, "ba": 0.55, **dict.fromkeys(K_METHODS, 1.0), "l1": -1.9, "jumprelu": -0.8}
# largest knobs: frequencies at most 1, K well below the width
HIGHEST = {
    "gba": 1.0, "ba": 1.0, "l1": math.inf, "jumprelu": math.inf,
    **dict.fromkeys(K_METHODS, 512),
}  # fmt: skip


def towards(knob: float, l0: float, target: float, slope: float) -> float:
    """Return the knob at which L0 meets the target if it follows the knob to the power ``slope``."""
    return knob * (target / max(l0, 0.1)) ** (1 / slope)


def setting(method: str, knob: float) -> float:
    """Return a knob as it is tried: K a whole number, others with three digits, none beyond its largest."""
    return min(round(knob) if method in K_METHODS else float(f"{knob:.{DIGITS}g}"), HIGHEST[method])


def turn_knob(method: str, l0: Callable[[float], float], target: float, start: float, within: float) -> Tuned:
    """Turn a method's knob until L0 is near the target, in ``BUDGET`` trainings at most.

    Args:
        method: Name of the method.
        l0: Trains at a knob and returns L0, or NaN to end the search.
        target: Wanted L0.
        start: Knob of the first training.
        within: Relative distance from the target that ends the search.
    """
    return tune(
        l0, target, high=HIGHEST[method], start=start, slope=SLOPES[method], budget=BUDGET,
        tolerance=math.log1p(within), integer=method in K_METHODS, digits=DIGITS,
    )  # fmt: skip


def parser(name: str, description: str | None, stages: Collection[str]) -> argparse.ArgumentParser:
    """Return a command line that takes a stage and the number of workers."""
    parser = argparse.ArgumentParser(
        prog=f"python -m sae_experiments.records.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each; default 2")
    return parser
