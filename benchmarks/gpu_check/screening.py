"""Part 5: screening by a product in low precision, exact products only for what it lets through.

In float8 for entries that bfloat16 factors decide, as under autocast; in bfloat16 for those that float32
decides. Compared with the library's scan, which multiplies everything in the higher precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.gpu_check.bounds import Rounded, candidates, margins, rounded
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.pieces import bar_of
from benchmarks.gpu_check.steps import SIZES, TOY_SIZES
from benchmarks.gpu_check.timing import in_turn
from benchmarks.step import seconds
from sae_lib import kernels
from sae_lib.kernels import Support, reference

FP8 = torch.float8_e4m3fn
# candidates that are verified at a time, and at most; rows (M, B) of products compared at a time
CHUNK, MOST, BLOCK = 2**22, 2**27, 4096


@dataclass(frozen=True)
class Screen:
    """A screen for one batch.

    Attributes:
        kind: Precision of the screen.
        x: (B, d) with numbers in the precision that decides, stored as float32.
        weight: (M, d), likewise.
        bar: (M,).
        emulated: Whether the product is made in float32 from numbers of low precision.
        by_row: Whether the device's float8 product takes a scale for each row and each latent.
    """

    kind: torch.dtype
    x: Tensor
    weight: Tensor
    bar: Tensor
    emulated: bool
    by_row: bool = True

    @property
    def stored(self) -> float:
        """What a product loses when it is stored."""
        return 2.0**-20 if self.emulated else 2.0**-8

    @property
    def sums(self) -> float:
        """What the sums of the screen lose at most, in units of the norms."""
        d = self.x.shape[1]
        if self.emulated or self.kind != FP8:
            # sums of tensor cores are cut, not rounded, to float32
            return d * 2.0**-22
        # ASSUMED of Hopper's float8: 32 products and the sum so far are cut to 13 bits below the largest, and
        # every 128 numbers that sum moves to one in float32; the record says how much was seen
        return 4 * 33 * 2.0**-13 + d * 2.0**-22

    def factors(self) -> tuple[Rounded, Rounded]:
        """Round both factors."""
        return rounded(self.x, self.kind), rounded(self.weight, self.kind)

    def product(self, x: Rounded, weight: Rounded) -> Tensor:
        """Return the products (M, B), latents first, so that candidates come in the order of latents."""
        if self.emulated:
            return (weight.numbers.float() @ x.numbers.float().T) * weight.scale * x.scale.T
        if self.kind != FP8:
            return weight.numbers @ x.numbers.T
        if self.by_row:
            return _float8(weight.numbers, x.numbers, weight.scale, x.scale.T.contiguous())
        one = torch.ones((), device=self.x.device)
        return _float8(weight.numbers, x.numbers, one, one).float().mul_(weight.scale).mul_(x.scale.T)

    def pick(self, product: Tensor, x: Rounded, weight: Rounded) -> tuple[Tensor, Tensor]:
        """Return latents and rows of the candidates, in the order of latents."""
        of_row, of_latent = margins(x, weight, sums=self.sums, truth=self.x.shape[1] * 2.0**-22)
        parts = []
        for first in range(0, len(product), BLOCK):
            span = slice(first, first + BLOCK)
            may = candidates(product[span], of_row, of_latent[span], self.bar[span], self.stored)
            latents, rows = may.nonzero(as_tuple=True)
            parts.append((latents + first, rows))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def verify(self, latents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, rows and exact products of the candidates that are active."""
        kept = list(self._verified(latents[:MOST], rows[:MOST]))
        return tuple(torch.cat(part) for part in zip(*kept, strict=True))  # type: ignore[return-value]

    def _verified(self, latents: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # the CPU's loops need a complete support, a GPU's only the entries
        backend = kernels.backend(self.x.device) if self.x.is_cuda else reference
        for m, i in zip(latents.split(CHUNK), rows.split(CHUNK), strict=True):
            u = backend.dots(self.x, Support(i, m, i[:0], i[:0], i[:0]), self.weight)
            active = u > self.bar[m]
            yield m[active], i[active], u[active]


def _float8(weight: Tensor, x: Tensor, of_weight: Tensor, of_x: Tensor) -> Tensor:
    # a faster sum would lose more than the bound allows for
    return torch._scaled_mm(
        weight, x.T, scale_a=of_weight, scale_b=of_x, out_dtype=torch.bfloat16, use_fast_accum=False,
    )  # fmt: skip


def scales_rows(device: torch.device) -> bool:
    """Return whether PyTorch's float8 product takes a scale for each row here."""
    few = rounded(torch.ones(64, 64, device=device), FP8)
    try:
        _float8(few.numbers, few.numbers, few.scale, few.scale.T.contiguous())
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def run(context: Context) -> None:
    """Screen in float8, if the device has it, and in bfloat16."""
    sizes = TOY_SIZES if context.toy else SIZES
    # sums of parts of a product would otherwise be rounded to bfloat16
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.manual_seed(context.seed)
    x = normalize(torch.randn(sizes["batch"], sizes["d"], device=context.device), dim=1)
    weight = normalize(torch.randn(sizes["width"], sizes["d"], device=context.device), dim=1)
    bar = bar_of(x, sizes["width"], sizes["l0"])
    for name, kind in (("float8", FP8), ("bfloat16", torch.bfloat16)):
        if context.cuda and kind == FP8 and torch.cuda.get_device_capability() < (8, 9):
            context.skip(name, "float8 products need compute capability 8.9 or more")
            continue
        decides = torch.bfloat16 if kind == FP8 else torch.float32
        factors = (x.to(decides).float(), weight.to(decides).float())
        by_row = kind != FP8 or not context.cuda or scales_rows(context.device)
        screen = Screen(kind, *factors, bar, emulated=not context.cuda, by_row=by_row)
        if screen.emulated:
            context.skip(f"{name} product", "no CUDA device: emulated in float32, and its time says nothing")

        def measured(name: str = name, screen: Screen = screen) -> None:
            measure(context, name, screen, sizes)

        context.attempt(name, measured)


@torch.no_grad()
def measure(context: Context, name: str, screen: Screen, sizes: dict[str, int]) -> None:
    """Count candidates and misses against the library's scan, then time both."""
    backend, bf16 = kernels.backend(screen.x.device), screen.kind == FP8 and context.cuda

    def scan() -> tuple[Tensor, Support, Tensor]:
        with torch.autocast(context.device.type, torch.bfloat16, enabled=bf16):
            found: tuple[Tensor, Support, Tensor] = backend.scan(screen.x, screen.weight, screen.bar)
        return found

    _, support, _ = scan()
    x, weight = screen.factors()
    product = screen.product(x, weight)
    latents, rows = screen.pick(product, x, weight)
    n_rows = len(screen.x)
    keys, active = latents * n_rows + rows, support.latents * n_rows + support.rows
    misses = int((~torch.isin(active, keys)).sum())
    m, i, _ = screen.verify(latents, rows)
    verified = m * n_rows + i
    whole = len(latents) <= MOST
    differing = int((~torch.isin(verified, active)).sum() + (~torch.isin(active, verified)).sum())
    context.row(
        name, **sizes, emulated=screen.emulated, scales_by_row=screen.by_row,
        candidates=len(latents), active=len(active),
        candidates_per_active=len(latents) / max(len(active), 1), misses=misses, ok=misses == 0,
        verified_share=min(1.0, MOST / max(len(latents), 1)),
        # entries next to their bar, which two orders of summation may decide differently
        differing_after_verification=differing if whole else None, **observed(screen, product, x, weight),
    )  # fmt: skip
    calls = {
        "rounding": lambda: screen.factors(),
        "product": lambda: screen.product(x, weight),
        "picking": lambda: screen.pick(product, x, weight),
        "verification": lambda: screen.verify(latents, rows),
        "scan": scan,
    }
    once = {key: seconds(call, context.device) for key, call in calls.items()}
    rounds = int(max(1, min(15, 0.3 * context.left() / sum(once.values()) - 4)))
    times = in_turn(context, calls, rounds, 1.0)
    for key, values in times.items():
        context.row(f"{name}, {key}", **values)
    if len(times) == len(calls):
        total = sum(values["ms"] for key, values in times.items() if key != "scan")
        context.row(f"{name}, total", ms=total, over_scan=total / times["scan"]["ms"])


def observed(screen: Screen, product: Tensor, x: Rounded, weight: Rounded) -> dict[str, float]:
    """Return the largest errors seen on some latents, as shares of what is allowed for."""
    some = slice(0, 1024)
    right = screen.weight[some].double() @ screen.x.double().T
    of_row, of_latent = margins(x, weight, sums=screen.sums, truth=0.0)
    off = (product[some].double() - right).abs() - screen.stored * product[some].double().abs()
    back = [part.numbers.double() * part.scale.double() for part in (weight, x)]
    low = back[0][some] @ back[1].T
    sums = (product[some].double() - low).abs() - screen.stored * product[some].double().abs()
    norms = weight.norm_rounded[some, None] * x.norm_rounded[None, :]
    return {
        "share_of_margin_seen": (off / (of_latent[some, None] * of_row[None, :])).max().item(),
        "error_of_sums_seen": (sums / norms).max().item(),
        "error_of_sums_allowed": screen.sums,
    }
