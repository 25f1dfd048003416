"""Part 3: at which density and size sparse and dense steps take as long, and the constants for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

import sae_lib
from benchmarks import step
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.timing import crossing, in_turn, precision, precisions

WIDTH, D, BATCH, ROUNDS = 65_536, 1536, 8192, 7
# coarse first: where time runs out, the crossing is still between two of them
DENSITIES = (0.001, 0.01, 0.1, 0.003, 0.03)
# (batch, d, width); their products are 2²⁶, 2²⁹, … 2³⁸
SHAPES = (
    (256, 256, 1024), (512, 512, 2048), (1024, 512, 8192), (2048, 1024, 16_384), (4096, 1024, 65_536),
)  # fmt: skip
SHAPE_L0 = 32
TOY_SHAPES = ((32, 8, 64), (64, 16, 128))


def run(context: Context) -> None:
    """Sweep density at the paper's size, then size at a fixed L0; record the crossings and the constants."""
    width, d, batch = (256, 16, 64) if context.toy else (WIDTH, D, BATCH)
    shapes = TOY_SHAPES if context.toy else SHAPES
    # in what the library's steps mostly run on a GPU, and the one that costs the product most
    names = [name for name in precisions(context) if name != "tf32"]
    ratios: dict[tuple[str, str], dict[float, float]] = {}
    # building the autoencoders takes as long again
    at_most = 0.5 * context.left() / len(names) / (len(DENSITIES) + len(shapes))

    def measure(kind: str, place: float, batch: int, d: int, width: int, l0: int, until: float) -> None:
        torch.manual_seed(context.seed)
        x = normalize(torch.randn(batch, d, device=context.device), dim=1)
        method = sae_lib.GroupBiasAdaptation()
        calls = {
            name: step.ours_step(method, x, width, l0, dense=name == "dense") for name in ("sparse", "dense")
        }
        for name in names:
            with precision(context, name):
                times = in_turn(context, calls, 2 if context.toy else ROUNDS, until, at_most)
            if len(times) == len(calls):
                ratio = times["sparse"]["ms"] / times["dense"]["ms"]
                ratios.setdefault((kind, name), {})[place] = ratio
                context.row(
                    kind, precision=name, batch=batch, d=d, width=width, l0=l0, size=batch * d * width,
                    density=l0 / width, sparse_ms=times["sparse"]["ms"], dense_ms=times["dense"]["ms"],
                    sparse_over_dense=ratio, rounds=times["sparse"]["rounds"],
                )  # fmt: skip

    whole = context.left()
    for density in DENSITIES:
        if context.left() > 0.4 * whole:
            l0 = max(1, round(density * width))
            context.attempt(
                f"density {density}",
                lambda density=density, l0=l0: measure(  # type: ignore[misc]
                    "density", density, batch, d, width, l0, 0.4 * whole
                ),
            )
        else:
            context.skip(f"density {density}", "no time left")
    for b, dim, m in shapes:
        context.attempt(
            f"size {b * dim * m}",
            lambda b=b, dim=dim, m=m: measure(  # type: ignore[misc]
                "size", b * dim * m, b, dim, m, min(SHAPE_L0, m // 8), 0.0
            ),
        )
    densest = [_limit(context, "density", name, ratios.get(("density", name), {})) for name in names]
    smallest = [_limit(context, "size", name, ratios.get(("size", name), {})) for name in names]
    context.row("constants", **constants(densest, smallest), kind=context.device.type)


def _limit(context: Context, kind: str, name: str, ratios: dict[float, float]) -> float | None:
    """Record where sparse and dense steps take as long; return the limit to set, None if there is none."""
    points = sorted(ratios.items())
    where = crossing(points, last=kind == "size")
    value, note = (where, "interpolated") if where is not None else _outside(kind, points)
    context.row(f"crossing of {kind}", precision=name, value=value, points=len(points), note=note)
    return value


def _outside(kind: str, points: Sequence[tuple[float, float]]) -> tuple[float | None, str]:
    """Return the limit where no crossing was measured, with the reason."""
    if not points:
        return None, "nothing was measured"
    if all(ratio < 1 for _, ratio in points):
        ends = points[-1][0] if kind == "density" else points[0][0]
        return ends, "the sparse step was faster everywhere: the end of the sweep"
    return (0.0 if kind == "density" else None), "the sparse step was slower everywhere"


def constants(densest: Sequence[float | None], smallest: Sequence[float | None]) -> dict[str, object]:
    """Return what to put into ``sae_lib/kernels/__init__.py``: the most cautious over the precisions.

    A density is rounded down to two digits, a size up to a power of two.
    """
    low = min((value for value in densest if value is not None), default=None)
    high = max((value for value in smallest if value is not None), default=None)
    if low:
        unit = 10.0 ** (math.floor(math.log10(low)) - 1)
        low = round(math.floor(low / unit + 1e-9) * unit, 12)
    exponent = None if high is None or None in smallest else math.ceil(math.log2(high) - 1e-9)
    return {"DENSEST": low, "SMALLEST": None if exponent is None else f"2**{exponent}"}
