"""What arguments are checked for, and how they are refused: name, value, what was expected.

Each function raises ValueError. NaN is outside of every range.
"""

from __future__ import annotations

from collections.abc import Collection

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
    """Refuse what is no share of something: 0 and below, and above 1."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}; expected above 0, at most 1")


def cosine(**values: float) -> None:
    """Refuse what no cosine can be above."""
    for name, value in values.items():
        if not -1 <= value < 1:
            raise ValueError(f"{name} is {value}; expected a cosine, −1 ≤ {name} < 1")


def between(low: int, high: int, what: str, /, **values: float) -> None:
    """Refuse a value outside of low … high; ``what`` says what ``high`` is."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; expected {low} … {high} ({what})")


def one_of(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def matrix(rows: Tensor, d: int) -> None:
    """Refuse rows that are not (N, d), and none at all."""
    if rows.ndim != 2 or rows.shape[1] != d or len(rows) == 0:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; expected (N, {d}) with N ≥ 1")


def bad_row(rows: Tensor) -> int | None:
    """The first of the rows (N, d) that holds NaN or infinity, for the caller to say where it comes from."""
    finite = torch.isfinite(rows)
    return None if finite.all() else int((~finite).any(dim=1).nonzero()[0])
