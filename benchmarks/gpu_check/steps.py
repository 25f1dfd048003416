"""Part 2: training steps against the encoder product, ours beside those of installed peers; pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import memory, step
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.pieces import pieces
from benchmarks.gpu_check.timing import Call, in_turn, precision, precisions

# the paper's width, the batch of its run here, and the size of Qwen2.5-1.5B's residual stream
SIZES = {"width": 65_536, "d": 1536, "batch": 8192, "l0": 64}
TOY_SIZES = {"width": 256, "d": 16, "batch": 64, "l0": 8}
ROUNDS, TOY_ROUNDS = 15, 2
# without its screen, which only a CPU has
SAME_ON_CUDA = ("sae_lib GBA, float32",)


def run(context: Context) -> None:
    """Measure the pieces, then all steps, in every precision."""
    sizes = TOY_SIZES if context.toy else SIZES
    rounds = TOY_ROUNDS if context.toy else ROUNDS
    torch.manual_seed(context.seed)
    x = normalize(torch.randn(sizes["batch"], sizes["d"], device=context.device), dim=1)
    allowed, whole = precisions(context), context.left()
    for number, name in enumerate(allowed):
        # our own parts are known even if a peer takes all the time
        until = whole * (0.85 - 0.12 * number)

        def measure_pieces(name: str = name, until: float = until) -> None:
            with precision(context, name):
                made = pieces(context, x, sizes["width"], sizes["l0"])
                times = {"encoder product": product(x, sizes["width"], name), **made}
                write(context, "piece", name, sizes, in_turn(context, times, rounds, until))

        context.attempt(f"pieces, {name}", measure_pieces)
    built: dict[str, Call] = {}
    for name, build in step.contestants(x, sizes["width"], sizes["l0"]).items():
        if context.cuda and name in SAME_ON_CUDA:
            continue
        made = context.attempt(name, build)
        if made:
            built[name] = made
    for missing in [peer for peer in ("SAELens", "sparsify") if not any(peer in name for name in built)]:
        context.skip(missing, "not installed, or its steps could not be built")
    share = context.left() / len(allowed)
    for number, name in enumerate(allowed):
        with precision(context, name):
            calls = {"encoder product": product(x, sizes["width"], name), **built}
            peaks = {key: context.attempt(key, _peak(call, context)) for key, call in calls.items()}
            calls = {key: call for key, call in calls.items() if peaks[key] is not None}
            times = in_turn(context, calls, rounds, share * (len(allowed) - 1 - number))
        write(context, "step", name, sizes, times, peaks)


def _peak(call: Call, context: Context) -> Callable[[], float]:
    def peak() -> float:
        # the first call compiles, and may try out algorithms with room of their own
        call()
        return memory.peak(call, context.device) / 2**20

    return peak


def product(x: Tensor, width: int, name: str) -> Call:
    """Return the encoder product in this precision."""
    weight, out = torch.randn(width, x.shape[1], device=x.device), x.new_empty(len(x), width)
    if name != "bf16":
        return lambda: torch.mm(x, weight.T, out=out)
    low, low_weight, out = x.bfloat16(), weight.bfloat16(), out.bfloat16()
    return lambda: torch.mm(low, low_weight.T, out=out)


def write(
    context: Context,
    kind: str,
    in_precision: str,
    sizes: dict[str, int],
    times: dict[str, dict[str, Any]],
    peaks: dict[str, float | None] | None = None,
) -> None:
    """Record times as multiples of the product among them."""
    base = times.get("encoder product", {"ms": float("nan")})["ms"]
    for name, values in times.items():
        extra: dict[str, Any] = {} if peaks is None else {"peak_mib": peaks[name]}
        if name == "encoder product":
            operations = 2 * sizes["batch"] * sizes["d"] * sizes["width"]
            extra["tflop_per_s"] = operations / values["ms"] / 1e9
        context.row(
            name, kind=kind, precision=in_precision, **sizes, **values, x_gemm=values["ms"] / base, **extra
        )
