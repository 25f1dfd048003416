"""A backend beside the plain operations on a small example, before training relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sae_lib.kernels import reference

# rows, latents, columns: more than one of the GPU's tiles each, the last ones not full; d whole tiles, or not
SHAPES = ((150, 300, 128), (150, 300, 72))


def fault(load: Callable[[], ModuleType], device: torch.device, factors: torch.dtype) -> str | None:
    """What is wrong with the backend that ``load`` gives, on a device; None if nothing is.

    factors: type of the numbers in the encoder product; another one than float32 is asked for by autocast.

    Numbers are small and whole, so that sums are exact in any order and precision: results must be equal to
    the bit. Whatever a backend raises is a fault too.
    """
    try:
        backend = load()
        for shape in SHAPES:
            with torch.no_grad():
                for name, found, expected in _results(backend, shape, device, factors):
                    if not _equal(found, expected):
                        return f"{name} differs from the plain operation"
    # a missing compiler, an old driver, too little shared memory: each has an exception of its own
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def _results(
    backend: ModuleType, shape: tuple[int, int, int], device: torch.device, factors: torch.dtype
) -> Iterator[tuple[str, Any, Any]]:
    """Names of the operations, what the backend gives, and what is right."""
    (n_rows, width, d), stream = shape, torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randint(-4, 5, size, generator=stream).float().to(device)

    x, weight, kind = draw(n_rows, d), draw(width, d), device.type
    # about one entry in twenty, some equal to the bar, and latents with none and with all of them
    bar = torch.full((width,), float(round(1.645 * (20 / 3) * d**0.5)), device=device)
    bar[::50], bar[1::50] = torch.inf, -torch.inf
    with torch.autocast(kind, enabled=False):
        expected = reference.scan(x, weight, bar)
    rounded = factors in (torch.bfloat16, torch.float16)
    with torch.autocast(kind, factors if rounded else None, enabled=rounded):
        found = backend.scan(x, weight, bar)
    with torch.autocast(kind, enabled=False):
        yield "scan", found, expected
        _, support, values = expected
        shuffled = torch.randperm(len(support), generator=stream).to(device)
        entries = support.rows[shuffled], support.latents[shuffled], support.shape
        yield "index", backend.index(*entries), reference.index(*entries)
        yield "decode", *(one.decode(values, support, weight) for one in (backend, reference))
        yield "dots", *(one.dots(x, support, weight) for one in (backend, reference))
        totals = weight.clone(), weight.clone()
        for one, total in zip((backend, reference), totals, strict=True):
            one.accumulate(values, support, x, total)
        yield "accumulate", *totals


def _equal(found: Any, expected: Any) -> bool:
    """Whether tensors, or tuples of tensors and supports, are equal to the bit."""
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    parts = [list(one) if isinstance(one, tuple) else list(vars(one).values()) for one in (found, expected)]
    return all(_equal(*pair) for pair in zip(*parts, strict=True))
