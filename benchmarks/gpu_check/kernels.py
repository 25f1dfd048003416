"""Part 1: the kernels' tests, the fast backend against sums in float64, and training twice."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.gpu_check import twice
from benchmarks.gpu_check.context import Context
from sae_lib import kernels
from sae_lib.kernels import Operations, SparseCodes, check, reference

TESTS = Path(__file__).resolve().parents[2] / "tests" / "library" / "triton_checks.py"
# rows, latents, columns: less than a tile, uneven, the smaller models' shapes, a quarter of the paper's width
SHAPES = ((7, 100, 24), (1000, 5000, 200), (1024, 9216, 576), (2048, 16_384, 1536))
TOY_SHAPES = ((7, 100, 24), (33, 203, 50))
DENSITY = 0.01
# what an addition may lose in units of the factors' norms: tensor cores cut their sums, they do not round
LOSS = 2.0**-22


def run(context: Context) -> None:
    """Run the tests, the self-check of the library, and the comparisons."""
    context.attempt("tests", lambda: tests(context))
    backend = kernels.backend(context.device)
    if not context.cuda:
        context.skip("Triton kernels", "no CUDA device: below, the CPU's compiled loops are compared")
    elif backend is reference:
        context.skip("Triton kernels", "Triton is not installed")
    for factors in (torch.float32, torch.bfloat16):
        if factors == torch.bfloat16 and not context.cuda:
            context.skip("bfloat16", "compiled loops on a CPU use float32")
            continue

        def self_check(factors: torch.dtype = factors) -> None:
            fault = check.fault(lambda: backend, context.device, factors)
            context.row("self-check", factors=factors, fault=fault, ok=fault is None)

        context.attempt("self-check", self_check)
        for shape in TOY_SHAPES if context.toy else SHAPES:
            name = f"{' × '.join(map(str, shape))}, {str(factors).removeprefix('torch.')}"

            def compared(shape: tuple[int, int, int] = shape, factors: torch.dtype = factors) -> None:
                compare(context, backend, shape, factors)

            context.attempt(name, compared)
    twice.run(context)


def tests(context: Context) -> None:
    """Run the kernels' test functions in a process of their own, which may crash."""
    if not find_spec("pytest"):
        context.skip("tests", "pytest is not installed")
        return
    report = context.rows.with_name("tests.xml")
    # without the tests' conftest, which needs packages that only they use
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(TESTS)]
    environment = dict(os.environ)
    if context.cuda:
        environment["TRITON_INTERPRET"] = "0"
    elif find_spec("triton"):
        # the interpreter takes half a minute for all of them
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        command += ["-k", "repeat_to_the_bit or (self_check and float32)"]
    else:
        context.skip("tests", "Triton is not installed")
        return
    try:
        done = subprocess.run(
            [*command, f"--junitxml={report}"], env=environment, capture_output=True, text=True,
            timeout=0.7 * context.left(), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        context.row("tests", failed=f"not done after {late.timeout:.0f} s", output=said[-2000:])
        return
    if not report.exists():
        context.row("tests", failed=f"pytest ended with {done.returncode}", output=done.stdout[-2000:])
        return
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    for case in bad[:20]:
        fault = next(child for child in case if child.tag in ("failure", "error"))
        context.row(f"test {case.get('name')}", failed=(fault.get("message") or "")[:500])
    context.row(
        "tests", passed=len(cases) - len(bad) - skipped, failed_tests=len(bad), skipped=skipped,
        interpreted=not context.cuda, ok=not bad and len(cases) > skipped,
    )  # fmt: skip


@torch.no_grad()
def compare(context: Context, backend: Operations, shape: tuple[int, int, int], factors: torch.dtype) -> None:
    """Compare all operations with float64, and with themselves once more, which has to give the same bits."""
    (n_rows, width, d), stream = shape, context.generator()
    x = torch.randn(n_rows, d, device=context.device, generator=stream)
    weight = normalize(torch.randn(width, d, device=context.device, generator=stream), dim=1)
    level = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - DENSITY)).item()
    bar = torch.full((width,), level, device=context.device)
    bar[::50] = torch.inf
    exact = [tensor.to(factors).double() for tensor in (x, weight)]
    u = exact[0] @ exact[1].T
    first, again = (_all(backend, x, weight, bar, factors) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(first.values(), again.values(), strict=True))
    rows, latents, values = first["rows"], first["latents"], first["values"]
    fires = torch.zeros_like(u, dtype=torch.bool)
    fires[rows, latents] = True
    wrong = fires ^ (u > bar)
    # an entry may be missing or too many only where u is its bar up to rounding
    off = (u - bar)[wrong].abs().amax().item() if wrong.any() else 0.0
    support, _ = reference.index(rows, latents, (n_rows, width))
    plain = x.double(), weight.double(), values.double()
    total = torch.zeros_like(plain[1])
    reference.accumulate(plain[2], support, plain[0], total)
    right = {
        "peak": u.amax(dim=0),
        "values": u[rows, latents],
        "decoded": reference.decode(plain[2], support, plain[1]),
        "dots": torch.cat([_dots(plain[0], plain[1], *part) for part in _chunks(rows, latents)]),
        "accumulated": total,
        "by_row": SparseCodes(plain[2], support).to_dense().sum(dim=1),
        "by_latent": SparseCodes(plain[2], support).to_dense().sum(dim=0),
    }
    errors = {f"error_{name}": _error(first[name], value) for name, value in right.items()}
    bound = d * LOSS * exact[0].norm(dim=1).max().item() * exact[1].norm(dim=1).max().item()
    scale = {name: max(value.abs().max().item(), 1.0) for name, value in right.items() if value.numel()}
    ok = same and off <= bound and errors["error_peak"] <= bound and errors["error_values"] <= bound
    ok = ok and all(errors[f"error_{name}"] <= 1e-4 * size for name, size in scale.items())
    context.row(
        "comparison", rows=n_rows, width=width, d=d, factors=factors, entries=len(rows), **errors,
        wrong_entries=int(wrong.sum()), wrong_by=off, allowed=bound, same_bits_twice=same, ok=ok,
    )  # fmt: skip


def _all(
    backend: Operations, x: Tensor, weight: Tensor, bar: Tensor, factors: torch.dtype
) -> dict[str, Tensor]:
    """Return the result of every operation."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=factors == torch.bfloat16):
        peak, support, values = backend.scan(x, weight, bar)
    total = torch.zeros_like(weight)
    backend.accumulate(values, support, x, total)
    return {
        "peak": peak, "rows": support.rows, "latents": support.latents, "row_order": support.row_order,
        "values": values, "decoded": backend.decode(values, support, weight),
        "dots": backend.dots(x, support, weight), "accumulated": total,
        "by_row": support.by_row(values), "by_latent": support.by_latent(values),
    }  # fmt: skip


def _chunks(rows: Tensor, latents: Tensor, size: int = 2**17) -> list[tuple[Tensor, Tensor]]:
    return list(zip(rows.split(size), latents.split(size), strict=True))


def _dots(x: Tensor, weight: Tensor, rows: Tensor, latents: Tensor) -> Tensor:
    return (x[rows] * weight[latents]).sum(dim=1)


def _error(ours: Tensor, right: Tensor) -> float:
    return (ours.double() - right).abs().max().item() if right.numel() else 0.0
