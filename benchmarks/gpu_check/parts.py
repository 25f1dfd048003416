"""The parts of the check, in order, with their shares of the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        number: Place in the order, from 1.
        name: Short; the record is ``gpu_NUMBER_NAME.json``.
        run: ``module:function``, called with a :class:`~benchmarks.gpu_check.context.Context`.
        share: Seconds that the part would get of the default limit, if none before it left any.
    """

    number: int
    name: str
    run: str
    share: float


_PACKAGE = "benchmarks.gpu_check"
PARTS = (
    Part(1, "kernels", f"{_PACKAGE}.kernels:run", 85),
    Part(2, "step", f"{_PACKAGE}.steps:run", 130),
    Part(3, "crossover", f"{_PACKAGE}.crossover:run", 85),
    Part(4, "stream", f"{_PACKAGE}.stream:run", 125),
    Part(5, "screening", f"{_PACKAGE}.screening:run", 45),
)
