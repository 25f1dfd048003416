"""The claims page: `chapters/claims.md` with numbers of the notebooks and of the records that they show.

``{c04.frr_inside:.2f}`` in the source is what chapter 04 glued as ``frr_inside``.
``{r10_ablation[groups=3,htf=0.3].nmse:.3f}`` is the mean of ``nmse`` over the runs with such settings in the
record `10_ablation.json`.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import nbformat

from sae_lib import records
from tools.layout import Book, BookError
from tools.notebook import GLUED

PAGE = "claims.md"


@dataclass(frozen=True)
class Runs:
    """Runs of a record: ``[name=value,…]`` picks some of them, an attribute is a mean over them."""

    rows: Sequence[Mapping[str, Any]]

    def __getitem__(self, wanted: str) -> "Runs":
        pairs = [pair.split("=") for pair in wanted.split(",")]
        kept = [row for row in self.rows if all(str(row.get(name)) == value for name, value in pairs)]
        if not kept:
            raise KeyError(f"no run with {wanted}")
        return Runs(kept)

    def __getattr__(self, name: str) -> float:
        if not all(name in row for row in self.rows):
            raise AttributeError(f"not every run has {name!r}")
        return fmean(row[name] for row in self.rows)


class Glued(SimpleNamespace):
    """What a chapter has glued, as attributes; by index where a name is no identifier."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def names(book: Book) -> dict[str, Any]:
    """Return all that a claim can ask for: what notebooks have glued ("c04"), and records ("r04_name")."""
    glued = {f"c{path.name[:2]}": Glued(**dict(glued_in(notebook))) for path, notebook in book.notebooks()}
    files = (book.pages / "records").glob("*.json")
    return glued | {f"r{file.stem}": Runs(records.read(file).rows) for file in files}


def glued_in(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, Any]]:
    """Yield name and value of every number that a notebook glues."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name and (value := output.data.get(GLUED)) is not None:
                yield name, ast.literal_eval(value)


def text(book: Book) -> str:
    """Return the page as Markdown, empty without a source."""
    path = book.root / "chapters" / PAGE
    if not path.is_file():
        return ""
    try:
        return path.read_text("utf8").format(**names(book))
    except (AttributeError, KeyError, ValueError) as error:
        raise BookError(
            f"chapters/{PAGE} asks for a number that no notebook and no record has: {error}"
        ) from error
