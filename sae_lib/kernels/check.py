"""A check of a backend against the plain operations on a small example, before training relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sae_lib.kernels import reference
from sae_lib.kernels.operations import Operations

# rows, latents, columns: more than one of the GPU's tiles each, the last one partial; d with and without
SHAPES = ((150, 300, 128), (150, 300, 72))


def fault(load: Callable[[], Operations], device: torch.device, factors: torch.dtype) -> str | None:
    """Say what is wrong with a backend on a device; None if nothing is.

    Numbers are small integers, so that sums are exact in any order and precision: results must be equal bit
    for bit. Any exception is a fault too.

    Args:
        load: Returns the backend.
        device: Device to check on.
        factors: Type of the numbers in the encoder product; any but float32 is set through autocast.
    """
    try:
        backend = load()
        for shape in SHAPES:
            with torch.no_grad():
                for name, result, expected in _results(backend, shape, device, factors):
                    if not _equal(result, expected):
                        return f"{name} differs from the plain operation"
    # a missing compiler, an old driver, too little shared memory: each raises a different exception
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def _results(
    backend: Operations, shape: tuple[int, int, int], device: torch.device, factors: torch.dtype
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each operation, the backend's result, and the right one."""
    (n_rows, width, d), stream = shape, torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randint(-4, 5, size, generator=stream).float().to(device)

    x, weight, kind = draw(n_rows, d), draw(width, d), device.type
    # about one entry in twenty is above the bar, some equal it, and some latents have none or all
    bar = torch.full((width,), float(round(1.645 * (20 / 3) * d**0.5)), device=device)
    bar[::50], bar[1::50] = torch.inf, -torch.inf
    with torch.autocast(kind, enabled=False):
        expected = reference.scan(x, weight, bar)
    rounded = factors in (torch.bfloat16, torch.float16)
    with torch.autocast(kind, factors if rounded else None, enabled=rounded):
        result = backend.scan(x, weight, bar)
    with torch.autocast(kind, enabled=False):
        yield "scan", result, expected
        _, support, values = expected
        shuffled = torch.randperm(len(support), generator=stream).to(device)
        entries = support.rows[shuffled], support.latents[shuffled], support.shape
        yield "index", backend.index(*entries), reference.index(*entries)
        yield "decode", backend.decode(values, support, weight), reference.decode(values, support, weight)
        yield "dots", backend.dots(x, support, weight), reference.dots(x, support, weight)
        totals = weight.clone(), weight.clone()
        backend.accumulate(values, support, x, totals[0])
        reference.accumulate(values, support, x, totals[1])
        yield "accumulate", *totals


def _equal(result: Any, expected: Any) -> bool:
    """Return whether tensors, or tuples of tensors and supports, are equal bit for bit."""
    if isinstance(expected, Tensor):
        return result.dtype == expected.dtype and torch.equal(result, expected)
    parts = [list(x) if isinstance(x, tuple) else list(vars(x).values()) for x in (result, expected)]
    return all(_equal(*pair) for pair in zip(*parts, strict=True))
