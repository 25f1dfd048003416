"""One knob turned until a measurement meets its target."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from sae_lib.checks import above_zero, at_least

# a step from a start changes the knob by this factor at most, for a measurement may have collapsed
STRIDE = 10.0


@dataclass(frozen=True)
class Tuned:
    """The setting that came closest to a target, its value, and all (setting, value) tried, in order."""

    knob: float
    value: float
    trials: list[tuple[float, float]]


def tune(
    measure: Callable[[float], float],
    target: float,
    low: float = 0.0,
    high: float = math.inf,
    *,
    budget: int = 6,
    tolerance: float = 0.05,
    integer: bool = False,
    start: float | None = None,
    slope: float | None = None,
    digits: int | None = None,
) -> Tuned:
    """Find the setting of one knob at which ``measure`` comes closest to ``target``.

    >>> tuned = sae_lib.sweeps.tune(lambda k: 2 * k, target=32, low=1, high=100, integer=True)
    >>> tuned.knob, tuned.value, len(tuned.trials) <= 6
    (16, 32, True)
    >>> tuned = sae_lib.sweeps.tune(lambda htf: 90 * htf**0.8, target=32, start=0.2, slope=0.9, digits=3)
    >>> tuned.knob, round(tuned.value, 1), len(tuned.trials)
    (0.265, 31.1, 2)

    For a measurement above 0 that rises or falls with a knob above 0: the L0 of an autoencoder as a function
    of K, λ or a target frequency. Axes are logarithmic. Without ``start`` both ends are tried first, then the
    crossing is interpolated, with bisection as soon as interpolation is stuck at one end. From a ``start``
    the search follows the secant through the two nearest trials, within the nearest bracket; ``slope`` stands
    in for the first secant, and for one that noise or a flat part has changed more than threefold.

    Args:
        measure: Value at a setting. NaN ends a search from a ``start``.
        target: Wanted value.
        low: Lowest setting; needed without ``start``.
        high: Highest setting; needed without ``start``.
        budget: Most calls of ``measure``, at least 2.
        tolerance: Distance in log(value) from the target that ends the search; 0.05 is about 5 %.
        integer: Settings are whole numbers, ``low`` and ``high`` too.
        start: First setting, where a good guess is known.
        slope: With ``start``: the power of the knob that the value usually follows.
        digits: With ``start``: significant digits of a setting.

    Raises:
        ValueError: Ends, target, start or budget out of range, or a ``start`` without ``slope``.
    """
    above_zero(target=target)
    at_least(2, " calls", budget=budget)
    search = _Search(measure, target, budget, tolerance)
    if start is None:
        if not 0 < low < high < math.inf:
            raise ValueError(f"low={low}, high={high}; expected 0 < low < high")
        search.between(low, high, integer=integer)
    else:
        if not (low <= start <= high and start > 0):
            raise ValueError(f"start={start}; expected a number above 0 from low={low} to high={high}")
        if not slope:
            raise ValueError(f"slope={slope}; a search from start={start} needs one that is not 0")

        def setting(knob: float) -> float:
            if integer:
                knob = round(knob)
            elif digits:
                knob = float(f"{knob:.{digits}g}")
            return min(max(knob, low), high)

        search.along(start, slope, setting)
    return Tuned(*search.nearest()[0], search.trials)


@dataclass
class _Search:
    """The trials of one search, and two ways of choosing the next."""

    measure: Callable[[float], float]
    target: float
    budget: int
    tolerance: float
    trials: list[tuple[float, float]] = field(default_factory=list)

    def attempt(self, knob: float) -> tuple[float, float]:
        self.trials.append((knob, self.measure(knob)))
        return self.trials[-1]

    def miss(self, trial: tuple[float, float]) -> float:
        return math.log(max(trial[1], 1e-12) / self.target)

    def nearest(self) -> list[tuple[float, float]]:
        def distance(trial: tuple[float, float]) -> float:
            return math.inf if math.isnan(trial[1]) else abs(self.miss(trial))

        return sorted(self.trials, key=distance)

    def unfinished(self) -> bool:
        return len(self.trials) < self.budget and abs(self.miss(self.nearest()[0])) > self.tolerance

    def between(self, low: float, high: float, *, integer: bool) -> None:
        left, right = self.attempt(low), self.attempt(high)
        while self.unfinished() and self.miss(left) * self.miss(right) < 0:
            # kept off the ends, where a curved measurement would hold it for many calls
            share = min(max(self.miss(left) / (self.miss(left) - self.miss(right)), 0.1), 0.9)
            knob = left[0] * (right[0] / left[0]) ** share
            if integer:
                if right[0] - left[0] < 2:
                    break
                knob = min(max(round(knob), left[0] + 1), right[0] - 1)
            middle = self.attempt(knob)
            left, right = (middle, right) if self.miss(middle) * self.miss(left) > 0 else (left, middle)

    def along(self, start: float, usual: float, setting: Callable[[float], float]) -> None:
        knob = start
        while not math.isnan(self.attempt(knob)[1]) and self.unfinished():
            best, *others = self.nearest()
            slope = usual
            if others:
                secant = (self.miss(best) - self.miss(others[0])) / math.log(best[0] / others[0][0])
                slope = secant if 1 / 3 < secant / usual < 3 else usual
            step = min(max(-self.miss(best) / slope, -math.log(STRIDE)), math.log(STRIDE))
            knob = best[0] * math.exp(step)
            across = [tried for tried, value in others if (value < self.target) != (best[1] < self.target)]
            if across:
                # the crossing is between the two, wherever the slope points
                other = min(across, key=lambda tried: abs(math.log(tried / best[0])))
                if not min(best[0], other) < knob < max(best[0], other):
                    knob = math.sqrt(best[0] * other)
            knob = setting(knob)
            if any(knob == tried for tried, _ in self.trials):
                break
