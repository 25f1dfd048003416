"""Checks that several parts of the package share."""

from __future__ import annotations


def at_least_one(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
