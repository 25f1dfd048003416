"""What the commands for records share: their options, and how a knob is turned towards a mean L0."""

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
# L0 goes about as the knob to this power; of the TopK family K is the L0
SLOPES = {"gba": 0.85, "ba": 0.55, **dict.fromkeys(K_METHODS, 1.0), "l1": -1.9, "jumprelu": -0.8}
# where a knob ends: frequencies at 1, K well below the width
HIGHEST = {
    "gba": 1.0, "ba": 1.0, "l1": math.inf, "jumprelu": math.inf,
    **dict.fromkeys(K_METHODS, 512),
}  # fmt: skip


def towards(knob: float, l0: float, target: float, slope: float) -> float:
    """The knob at which L0 meets the target if it goes as the knob to the power ``slope``."""
    return knob * (target / max(l0, 0.1)) ** (1 / slope)


def setting(method: str, knob: float) -> float:
    """A knob as it is tried: K a whole number, others with three digits, none beyond its end."""
    return min(round(knob) if method in K_METHODS else float(f"{knob:.{DIGITS}g}"), HIGHEST[method])


def turn_knob(method: str, l0: Callable[[float], float], target: float, start: float, within: float) -> Tuned:
    """Turn a method's knob from ``start`` until L0 is ``within`` a share of the target, in BUDGET trainings.

    ``l0`` trains at a knob and returns L0, or NaN where turning the knob is of no use.
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
