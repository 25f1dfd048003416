"""Timing in turn with a spread, and where two curves cross."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.gpu_check.context import Context
from benchmarks.step import seconds

Call = Callable[[], object]
# calls before those that count; seconds above which a call is a long one
WARM_UP, LONG = 3, 0.2
PRECISIONS = ("bf16", "tf32", "float32")


def spread(times: Sequence[float]) -> dict[str, float | int]:
    """Return median, smallest and largest of times in seconds, as milliseconds, and their number."""
    middle, low, high = (1e3 * value for value in (statistics.median(times), min(times), max(times)))
    return {"ms": middle, "ms_min": low, "ms_max": high, "rounds": len(times)}


def in_turn(
    context: Context, calls: dict[str, Call], rounds: int, until: float, at_most: float = math.inf
) -> dict[str, dict[str, float | int]]:
    """Time calls one after the other, round after round; those that fail are recorded and left out.

    Args:
        context: The part.
        calls: By name.
        rounds: At most so many; at least one.
        until: Seconds before the part's deadline at which no further round begins.
        at_most: Seconds from now after which no further round begins.
    """
    end = time.monotonic() + at_most
    ready = {}
    for name, call in calls.items():

        def warm_up(call: Call = call) -> bool:
            for _ in range(WARM_UP):
                # the first call may compile; one that takes long by itself needs no third
                if seconds(call, context.device) > LONG and time.monotonic() > end:
                    break
            return True

        if context.attempt(name, warm_up):
            ready[name] = call
    times: dict[str, list[float]] = {name: [] for name in ready}
    for number in range(rounds):
        if number and (context.left() < until or time.monotonic() > end):
            break
        for name, call in list(ready.items()):

            def once(call: Call = call) -> float:
                return seconds(call, context.device)

            duration = context.attempt(name, once)
            if duration is None:
                del ready[name], times[name]
            else:
                times[name].append(duration)
    return {name: spread(each) for name, each in times.items()}


def crossing(points: Sequence[tuple[float, float]], *, last: bool = False) -> float | None:
    """Return where a ratio passes 1, from (place, ratio) sorted by place: first, or last; None if nowhere.

    Between two points the ratio's logarithm is taken to be linear in the place's logarithm.
    """
    places = []
    for (left, a), (right, b) in itertools.pairwise(points):
        if (a - 1) * (b - 1) <= 0 and a != b:
            share = math.log(a) / (math.log(a) - math.log(b))
            places.append(math.exp(math.log(left) + share * (math.log(right) - math.log(left))))
    return places[-1 if last else 0] if places else None


@contextlib.contextmanager
def precision(context: Context, name: str) -> Iterator[None]:
    """Set how products are made: ``"bf16"`` by autocast, ``"tf32"`` or ``"float32"``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(context.device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def precisions(context: Context) -> tuple[str, ...]:
    """Return the precisions that the device has; compiled loops on a CPU know only float32."""
    if context.cuda:
        return PRECISIONS
    for name in PRECISIONS[:-1]:
        context.skip(name, "needs CUDA: compiled loops on a CPU use float32")
    return PRECISIONS[-1:]
