"""The pieces that a sparse step consists of, as calls to be timed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

import sae_lib
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.timing import Call
from sae_lib import kernels
from sae_lib.kernels.sparse_codes import Support


def bar_of(x: Tensor, width: int, l0: float) -> Tensor:
    """Return a bar (M,) that ``l0`` products of a unit row with random unit rows are above, on average."""
    level = torch.distributions.Normal(0, x.shape[1] ** -0.5).icdf(torch.tensor(1 - l0 / width))
    return torch.full((width,), level.item(), device=x.device)


def pieces(context: Context, x: Tensor, width: int, l0: int) -> dict[str, Call]:
    """Return calls by name, after recording whether the scan gives the same bits twice at this size.

    Args:
        context: The part.
        x: Unit rows (B, d).
        width: Latents M.
        l0: Latents that fire on a row.
    """
    backend, device = kernels.backend(x.device), x.device
    weight = normalize(torch.randn(width, x.shape[1], device=device), dim=1)
    bar = bar_of(x, width, l0)
    peak, support, values = backend.scan(x, weight, bar)
    other = backend.scan(x, weight, bar)
    pairs = [(peak, other[0]), (values, other[2])]
    pairs += zip(vars(support).values(), vars(other[1]).values(), strict=True)
    same = all(torch.equal(*pair) for pair in pairs)
    context.row("scan twice", entries=len(support), l0=len(support) / len(x), same_bits_twice=same, ok=same)
    del other, pairs
    sae = sae_lib.SparseAutoencoder(x.shape[1], width).to(device)
    method = sae_lib.GroupBiasAdaptation(groups=2)
    optimiser = method.optimiser([p for p in sae.parameters() if p.requires_grad], 1e-7, 0.0)
    for parameter in sae.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    total = torch.zeros_like(weight)
    shuffled = torch.randperm(len(support), device=device)
    entries = support.rows[shuffled], support.latents[shuffled], support.shape

    def without_gradient(call: Call) -> Call:
        def made() -> object:
            with torch.no_grad():
                return call()

        return made

    calls: dict[str, Call] = {
        "scan": lambda: backend.scan(x, weight, bar),
        "index": lambda: backend.index(*entries),
        "decode": lambda: backend.decode(values, support, weight),
        "dots": lambda: backend.dots(x, support, weight),
        "accumulate": lambda: backend.accumulate(values, support, x, total),
        "zeroed gradient": lambda: torch.zeros_like(weight),
        "sums by row and latent": lambda: _sums(values, support),
        "selection of TopK": lambda: _pre_activations(x, weight, bar).topk(l0, dim=1, sorted=False),
        "selection of BatchTopK": lambda: _pre_activations(x, weight, bar).flatten().topk(
            l0 * len(x), sorted=False
        ),
        "optimiser": optimiser.step,
        "unit rows": sae.unit_rows_,
    }  # fmt: skip
    return {name: without_gradient(call) for name, call in calls.items()}


def _sums(values: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    return support.by_row(values), support.by_latent(values)


def _pre_activations(x: Tensor, weight: Tensor, bar: Tensor) -> Tensor:
    return torch.addmm(-bar, x, weight.T)
