"""Checks of arguments, which raise a ValueError of name, value and what was expected.

NaN is outside every range.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def at_least(least: int, unit: str = "", /, **values: float) -> None:
    """Refuse a value below ``least``; ``unit`` ends the sentence, as in " steps"."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} is {value}; expected at least {least}{unit}")


def above_zero(**values: float) -> None:
    """Refuse a value of 0 or below."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected above 0")


def fraction(**values: float) -> None:
    """Refuse a value that is no share: 0 and below, and above 1."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; expected above 0, at most 1")


def cosine(**values: float) -> None:
    """Refuse a threshold outside −1 ≤ value < 1, which no cosine or every cosine would exceed."""
    for name, value in values.items():
        if not -1 <= value < 1:
            raise ValueError(f"{name} is {value}; expected a cosine, −1 ≤ {name} < 1")


def between(low: int, high: int, meaning: str, /, **values: float) -> None:
    """Refuse a value outside low … high; ``meaning`` says what ``high`` is."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; expected {low} … {high} ({meaning})")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def indices(latents: Sequence[int] | Tensor, width: int, least: int = 0) -> Tensor:
    """Return latents as an index (n,), n ≥ ``least``, into ``width`` of them."""
    index = torch.as_tensor(latents)
    if index.numel() == 0:
        index = index.long()
    if index.ndim != 1 or len(index) < least or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(
            f"latents have shape {tuple(index.shape)} and type {index.dtype}; "
            f"expected whole numbers (n,), n ≥ {least}"
        )
    for latent in index.tolist():
        if not 0 <= latent < width:
            raise ValueError(f"latent {latent} of {width}: allowed 0..{width - 1}")
    return index


def matrix(rows: Tensor, d: int | None = None, least: int = 1) -> None:
    """Refuse rows that are not (N, d) with N ≥ ``least``; None allows any d."""
    if rows.ndim != 2 or d not in (None, rows.shape[1]) or len(rows) < least:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; expected (N, {d or 'd'}) with N ≥ {least}")


def bad_row(rows: Tensor) -> int | None:
    """Return the number of the first row (N, d) that holds NaN or infinity; None if all are finite."""
    finite = torch.isfinite(rows)
    return None if finite.all() else int((~finite).any(dim=1).nonzero()[0])
