"""Pytest plugin on top of nbval: outputs compared in full, numbers as far as their kind asks.

Load it with `pytest -p tools.nbval_tolerance --nbval`. A cell's metadata say of which kind its numbers are:

* `nbval: {kind: exact}`: counts, closed forms; the output is compared as text, as where a cell says nothing.
* `nbval: {kind: rounding}`: the same on every processor but for the order of its sums: each number within a
  relative 1e-4 and one unit of its last digit, or as abs and rel say, for what is itself a rounding error.
* `nbval: {kind: trained, abs: 0.02}`: comes out of an optimiser, which amplifies rounding; each number within
  abs, or within rel times the stored one. `make paths` measures what that has to be.

All other text must be the same. Pixels of images are not compared, but an image must be where one was.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell

from tools.notebook import GLUED, NUMBER, is_image, joined, parts

KINDS = ("exact", "rounding", "trained")
ROUNDING = 1e-4


@dataclass(frozen=True)
class Tolerance:
    """How far a number may lie from the stored one.

    kind: exact, rounding or trained. abs, rel: the wider one counts; a trained number has one at least.
    """

    kind: str = "exact"
    abs: float = 0.0
    rel: float = 0.0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "Tolerance":
        """Return the tolerance in a cell's metadata. Raises ValueError for marks that are not one."""
        marks = metadata.get("nbval", {"kind": "exact"})
        sizes = {key: marks[key] for key in marks if key != "kind"} if isinstance(marks, dict) else {}
        if (
            not isinstance(marks, dict)
            or marks.get("kind") not in KINDS
            or not set(sizes) <= {"abs", "rel"}
            or not all(isinstance(size, int | float) and size > 0 for size in sizes.values())
            or (marks["kind"] == "trained" and not sizes)
            or (marks["kind"] == "exact" and sizes)
        ):
            raise ValueError(
                f"cell metadata nbval is {marks!r}; expected {{kind: exact}}, {{kind: rounding}} or, with "
                "abs and/or rel above 0, {kind: trained, abs: 0.02}"
            )
        return cls(marks["kind"], **sizes)

    def allowed(self, stored: str, *, glued: bool = False) -> float:
        """Return how far a number may lie from one that a text shows so; a glued one has all its digits."""
        size = abs(value(stored))
        room = max(self.abs, self.rel * size)
        if self.kind == "rounding":
            return max(room, ROUNDING * size + (1e-6 if glued else last_digit(stored)))
        return room

    def allows(self, stored: str, new: str, *, glued: bool = False) -> bool:
        """Return whether the new number is close enough."""
        room = self.allowed(stored, glued=glued) * (1 + 1e-9) + 1e-12
        return math.isclose(value(new), value(stored), rel_tol=0, abs_tol=room)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give every notebook cell our comparison in place of nbval's."""
    if isinstance(item, IPyNbCell):
        tolerance = Tolerance.of(item.cell.metadata)

        def compare_outputs(test: list[NotebookNode], ref: list[NotebookNode]) -> bool:
            item.comparison_traceback = list(differences(ref, test, tolerance))
            return not item.comparison_traceback

        item.compare_outputs = compare_outputs


def differences(stored: list[NotebookNode], new: list[NotebookNode], tolerance: Tolerance) -> Iterator[str]:
    """Sentences on how new outputs differ from stored ones; none if they agree."""
    stored, new = joined(stored), joined(new)
    kinds = [[sorted(parts(output)) for output in outputs] for outputs in (stored, new)]
    if kinds[0] != kinds[1]:
        yield f"the notebook holds outputs of the kinds {kinds[0]}, the cell now gives {kinds[1]}"
        for output in new:
            if output.output_type == "stream":
                yield f"now on {output.name}: {output.text.strip()[:500]!r}"
        return
    for number, (before, after) in enumerate(zip(stored, new, strict=True), start=1):
        for kind, text in parts(before).items():
            if is_image(kind):
                continue
            reason = _text_difference(text, parts(after)[kind], tolerance, glued=kind == GLUED)
            if reason:
                yield f"output {number}, {kind}: {reason}"


def _text_difference(stored: str, new: str, tolerance: Tolerance, *, glued: bool) -> str | None:
    if stored == new:
        return None
    before, after = NUMBER.findall(stored), NUMBER.findall(new)
    if tolerance.kind == "exact" or words(stored) != words(new) or len(before) != len(after):
        return f"expected\n{stored}\nbut got\n{new}"
    for old, number in zip(before, after, strict=True):
        if not tolerance.allows(old, number, glued=glued):
            room = tolerance.allowed(old, glued=glued)
            return f"{old} became {number}; a {tolerance.kind} number may differ by {room:.3g} here"
    return None


def words(text: str) -> str:
    """Return the text without its numbers; runs of spaces count as one, as a number's width may change."""
    return " ".join(NUMBER.sub("#", text).split())


def value(number: str) -> float:
    """Return the number that a text shows: "1,000", "−0.5", "1e-3"."""
    return float(number.replace(",", "").replace("−", "-"))


def last_digit(number: str) -> float:
    """Return one unit of the last digit shown: 0.01 for "0.91", 1 for "93"."""
    exponent: int | str = Decimal(number.replace(",", "").replace("−", "-")).as_tuple().exponent
    return 10.0 ** int(exponent)
