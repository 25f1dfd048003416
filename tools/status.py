"""The status page: what each page and each record was made from, when, on what, and at what cost."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from sae_lib import records
from tools import numerical_paths, provenance
from tools.layout import Book, template
from tools.nbval_tolerance import KINDS


def text(book: Book) -> str:
    """Return the page as Markdown, from the committed notebooks and records."""
    chapters = {source.stem: provenance.recorded(book.notebook(source)) for source in book.sources()}
    chapters = {name: made_from for name, made_from in chapters.items() if made_from}
    # as a rule there is one kind of machine with one set of versions
    machines = Counter(
        json.dumps([made_from["hardware"], made_from["versions"]]) for made_from in chapters.values()
    )
    # what other processors make of each cell, by `make paths`
    path = book.pages / "records" / numerical_paths.RECORD
    cells = records.read(path).rows if path.is_file() else []
    return template("status.md").render(
        chapters=chapters,
        machines=[
            dict(zip(("hardware", "versions"), json.loads(kind), strict=True), chapters=number)
            for kind, number in machines.most_common()
        ],
        paths=", ".join(f"`{name}`" for name in cells[0]["moved"]) if cells else "",
        reproduction=list(_reproduction(cells)),
        records={
            path.stem: records.read(path).made for path in sorted((book.pages / "records").glob("*.json"))
        },
    )


def _reproduction(cells: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield for each chapter how many numbers of each kind it has, and the largest share of a tolerance."""
    by_chapter: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        by_chapter[cell["chapter"]].append(cell)
    for chapter, rows in by_chapter.items():
        numbers = [sum(row["n_numbers"] for row in rows if row["kind"] == kind) for kind in KINDS]
        trained = [row["moved"] for row in rows if row["kind"] == "trained"]
        shares = [share for moved in trained for name, share in moved.items() if not name.startswith("seed")]
        yield chapter, *numbers, f"{max(shares, default=0.0):.0%}" if trained else "–"
