"""One knob turned until a measurement meets its target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sae_lib.checks import above_zero, at_least


@dataclass(frozen=True)
class Tuned:
    """The setting that came closest to a target, its value, and all (setting, value) tried, in order."""

    knob: float
    value: float
    trials: list[tuple[float, float]]


def tune(
    measure: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    *,
    budget: int = 6,
    tolerance: float = 0.05,
    integer: bool = False,
) -> Tuned:
    """Find the setting of one knob at which ``measure`` comes closest to ``target``.

    >>> found = sae_lib.sweeps.tune(lambda k: 2 * k, target=32, low=1, high=100, integer=True)
    >>> found.knob, found.value, len(found.trials) <= 6
    (16, 32, True)

    For a measurement above 0 that rises or falls with a knob above 0: the L0 of an autoencoder as a function
    of K, λ or a target frequency. Both ends are tried first, then the crossing is interpolated on logarithmic
    axes, with bisection as soon as interpolation is stuck at one end.

    budget: most calls of ``measure``, at least 2; fewer if a value is within ``tolerance``, relative.
    integer: settings are whole numbers, ``low`` and ``high`` too.
    """
    if not 0 < low < high:
        raise ValueError(f"low={low}, high={high}; expected 0 < low < high")
    above_zero(target=target)
    at_least(2, " calls", budget=budget)
    trials: list[tuple[float, float]] = []

    def miss(trial: tuple[float, float]) -> float:
        return math.log(max(trial[1], 1e-12) / target)

    def attempt(knob: float) -> tuple[float, float]:
        trials.append((knob, measure(knob)))
        return trials[-1]

    def closest() -> tuple[float, float]:
        return min(trials, key=lambda trial: abs(miss(trial)))

    left, right = attempt(low), attempt(high)
    while len(trials) < budget and abs(miss(closest())) > tolerance and miss(left) * miss(right) < 0:
        # kept off the ends, where a curved measurement would hold it for many calls
        share = min(max(miss(left) / (miss(left) - miss(right)), 0.1), 0.9)
        knob = left[0] * (right[0] / left[0]) ** share
        if integer:
            if right[0] - left[0] < 2:
                break
            knob = min(max(round(knob), left[0] + 1), right[0] - 1)
        middle = attempt(knob)
        left, right = (middle, right) if miss(middle) * miss(left) > 0 else (left, middle)
    return Tuned(*closest(), trials)
