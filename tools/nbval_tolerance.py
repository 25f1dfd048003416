"""Pytest plugin on top of nbval: outputs compared in full, numbers within a tolerance where asked.

Load it with `pytest -p tools.nbval_tolerance --nbval`. A cell without further marks must print exactly
what the notebook holds. A cell with `nbval: {abs: 0.02}` or `nbval: {rel: 0.1}` in its metadata may
differ in its numbers: each must lie within abs, or within rel times the stored number; all other text
must be the same. Images are not compared pixel by pixel, but must appear where the notebook has them.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell

from tools.notebook import GLUED, WIDGET, plain_number

# not inside a word or a version: "layer2" and the last part of "3.11.7" are text
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Tolerance:
    """How far a number may lie from the stored one; (0, 0) asks for identical text."""

    abs: float = 0.0
    rel: float = 0.0

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> "Tolerance":
        """The tolerance in a cell's metadata."""
        marks = metadata.get("nbval", {})
        valid = isinstance(marks, dict) and set(marks) <= {"abs", "rel"}
        if not valid or not all(isinstance(v, int | float) and v > 0 for v in marks.values()):
            raise ValueError(
                f"cell metadata nbval is {marks!r}; expected positive abs and/or rel, as {{abs: 0.02}}"
            )
        return cls(**marks)

    def allows(self, stored: float, new: float) -> bool:
        """Whether the new number is close enough."""
        return math.isclose(new, stored, rel_tol=0, abs_tol=max(self.abs, self.rel * abs(stored)) + 1e-12)


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
    # progress bars of other packages: kept out of the pages, and their ids are random
    stored, new = ([o for o in outputs if WIDGET not in o.get("data", {})] for outputs in (stored, new))
    kinds = [[sorted(_parts(output)) for output in outputs] for outputs in (stored, new)]
    if kinds[0] != kinds[1]:
        yield f"the notebook holds outputs of the kinds {kinds[0]}, the cell now gives {kinds[1]}"
        for output in new:
            if output.output_type == "stream":
                yield f"now on {output.name}: {output.text.strip()[:500]!r}"
        return
    for number, (before, after) in enumerate(zip(stored, new, strict=True), start=1):
        for kind, text in _parts(before).items():
            reason = _text_difference(text, _parts(after)[kind], tolerance)
            if reason and not kind.startswith(("image/", "application/papermill.record/image/")):
                yield f"output {number}, {kind}: {reason}"


def _parts(output: NotebookNode) -> dict[str, str]:
    """What an output shows, by kind: a stream's name, a MIME type (glued values too), or an error."""
    if output.output_type == "stream":
        return {output.name: output.text}
    if output.output_type == "error":
        return {"error": f"{output.ename}: {output.evalue}"}
    return {
        kind: plain_number(content) if kind == GLUED else str(content)
        for kind, content in output.data.items()
    }


def _text_difference(stored: str, new: str, tolerance: Tolerance) -> str | None:
    if stored == new:
        return None
    before, after = NUMBER.findall(stored), NUMBER.findall(new)
    if tolerance == Tolerance() or _words(stored) != _words(new) or len(before) != len(after):
        return f"expected\n{stored}\nbut got\n{new}"
    for one, other in zip(before, after, strict=True):
        if not tolerance.allows(_value(one), _value(other)):
            return f"{one} became {other}, which is outside abs {tolerance.abs:g}, rel {tolerance.rel:g}"
    return None


def _words(text: str) -> str:
    """The text without its numbers; runs of spaces count as one, because a number's width may change."""
    return " ".join(NUMBER.sub("#", text).split())


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))
