"""Mean, spread and range of each group of runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (0 for a single run), smallest and largest value, number of runs."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """Format mean and deviation alike: ``f"{spread:.2f}"`` is "0.95 ± 0.02"."""
        return f"{self.mean:{spec}} ± {self.sd:{spec}}"


def summary(
    rows: Sequence[Mapping[str, Any]], by: Sequence[str], of: Sequence[str]
) -> dict[tuple[Any, ...], dict[str, Spread]]:
    """Group ``rows`` by the values of ``by`` and summarise each column of ``of``, in order of appearance.

    >>> rows = [{"k": 5, "frr": 0.9}, {"k": 5, "frr": 1.0}, {"k": 10, "frr": 0.5}]
    >>> for key, columns in sae_lib.sweeps.summary(rows, by=["k"], of=["frr"]).items():
    ...     print(key, f"{columns['frr']:.2f}")
    (5,) 0.95 ± 0.07
    (10,) 0.50 ± 0.00

    Raises:
        KeyError: A row lacks one of the columns.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if missing := [name for name in (*by, *of) if name not in row]:
            raise KeyError(f"a row has no {missing[0]!r}; it has {', '.join(row)}")
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return {key: {name: spread([row[name] for row in group]) for name in of} for key, group in groups.items()}


def spread(values: Sequence[float]) -> Spread:
    """Summarise at least one value; all is NaN if one of them is NaN or infinite."""
    if not values:
        raise ValueError("no values to summarise; expected at least one")
    if not all(map(math.isfinite, values)):
        return Spread(math.nan, math.nan, math.nan, math.nan, len(values))
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), sd, min(values), max(values), len(values))
