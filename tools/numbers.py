"""Every compared number of the book: what the page holds, what each path gives, how far it may differ."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from sae_lib.files.atomic import replacing
from tools.layout import Book
from tools.nbval_tolerance import Tolerance, value, words
from tools.notebook import GLUED, NUMBER, code_cells, is_image, joined, parts


@dataclass
class Number:
    """One number of a committed notebook.

    chapter: "07". cell: its place among the code cells, from 1. label: what glues it, or the words before it.
    kind, allowed: how it is compared. stored: as it stands in the notebook. found: as each path that executed
    the chapter gives it, by the path's name; None where the output has other words there.
    """

    chapter: str
    cell: int
    label: str
    kind: str
    allowed: float
    stored: str
    found: dict[str, str | None] = field(default_factory=dict)

    def distance(self, name: str) -> float:
        """Return how far a path's number lies from the stored one; NaN where it has none."""
        other = self.found.get(name)
        return math.nan if other is None else abs(value(other) - value(self.stored))


def table(book: Book, copies: Mapping[str, Book], sources: Sequence[Path]) -> list[Number]:
    """Return the compared numbers of some chapters, in order, also as copies that executed them have them."""
    rows: list[Number] = []
    for source in sources:
        stored = _code_cells(book.notebook(source))
        others = {
            name: _code_cells(copy.notebook(source))
            for name, copy in copies.items()
            if copy.notebook(source).is_file()
        }
        for place, cell in enumerate(stored):
            if "nbval-ignore-output" not in cell.metadata.get("tags", []):
                again = {name: cells[place] for name, cells in others.items() if len(cells) == len(stored)}
                rows += _numbers_of_cell(source.name[:2], place + 1, cell, again)
    return rows


def _code_cells(path: Path) -> list[NotebookNode]:
    return code_cells(nbformat.read(path, as_version=4))


def _numbers_of_cell(
    chapter: str, place: int, cell: NotebookNode, again: Mapping[str, NotebookNode]
) -> Iterator[Number]:
    tolerance = Tolerance.of(cell.metadata)
    texts = {name: _texts(other) for name, other in again.items()}
    for (order, mime), text in _texts(cell).items():
        matches = list(NUMBER.finditer(text))
        same = {}
        for name in texts:
            other = texts[name].get((order, mime), "")
            if words(other) == words(text) and len(digits := NUMBER.findall(other)) == len(matches):
                same[name] = digits
        for i, match in enumerate(matches):
            label = _label(cell, order, text, match.start())
            allowed = tolerance.allowed(match[0], glued=mime == GLUED)
            values = {name: same[name][i] if name in same else None for name in texts}
            yield Number(chapter, place, label, tolerance.kind, allowed, match[0], values)


def _texts(cell: NotebookNode) -> dict[tuple[int, str], str]:
    return {
        (order, mime): text
        for order, output in enumerate(joined(cell.get("outputs", [])))
        for mime, text in parts(output).items()
        if not is_image(mime) and "<Figure" not in text
    }


def _label(cell: NotebookNode, order: int, text: str, start: int) -> str:
    name = joined(cell.outputs)[order].get("metadata", {}).get("scrapbook", {}).get("name")
    before = " ".join(NUMBER.sub("", text[max(0, start - 60) : start]).split())
    return name or before[-30:]


def write_csv(rows: Sequence[Number], names: Sequence[str], target: Path) -> None:
    """Write the table: a row for each number, a column for each path."""
    head = ["chapter", "cell", "label", "kind", "allowed", "stored"]
    with replacing(target) as temporary, temporary.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, [*head, *names], restval="", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow(vars(row) | row.found | {"allowed": f"{row.allowed:.4g}"})


def summary(rows: Sequence[Number], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each cell: its kind, how many numbers it has, how far each path or seed moves them.

    ``moved`` has the largest distance by name: as a share of what is allowed, of exact numbers the distance.
    """
    cells: dict[tuple[str, int], list[Number]] = defaultdict(list)
    for row in rows:
        cells[row.chapter, row.cell].append(row)
    return [
        {
            "chapter": chapter,
            "cell": cell,
            "kind": numbers[0].kind,
            "n_numbers": len(numbers),
            "moved": {name: _largest_share(numbers, name) for name in names},
        }
        for (chapter, cell), numbers in cells.items()
    ]


def _largest_share(numbers: Sequence[Number], name: str) -> float:
    shares = (number.distance(name) / (number.allowed or 1.0) for number in numbers)
    return round(max((share for share in shares if not math.isnan(share)), default=0.0), 4)
