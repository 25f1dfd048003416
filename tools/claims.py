"""The claims page: `chapters/claims.md` with the numbers that cells of the notebooks have glued.

``{c04.frr_inside:.2f}`` in the source is what chapter 04 glued as ``frr_inside``.
"""

import ast
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import nbformat

from tools.layout import Book
from tools.notebook import GLUED

PAGE = "claims.md"


class ClaimsError(Exception):
    """A number that no cell has glued; the message says which."""


def glued(book: Book) -> dict[str, SimpleNamespace]:
    """What each committed notebook has glued, by ``c`` and the chapter's number."""
    found = {}
    for source in book.sources():
        if book.notebook(source).is_file():
            notebook = nbformat.read(book.notebook(source), as_version=4)
            found[f"c{source.name[:2]}"] = SimpleNamespace(**dict(glued_in(notebook)))
    return found


def glued_in(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, Any]]:
    """Name and value of every number that a notebook glues."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name and (value := output.data.get(GLUED)) is not None:
                yield name, ast.literal_eval(value)


def text(book: Book) -> str:
    """The page as Markdown, empty without a source. Raises ClaimsError for a number that is not there."""
    path = book.root / "chapters" / PAGE
    if not path.is_file():
        return ""
    source = path.read_text("utf8")
    try:
        return source.format(**glued(book))
    except (AttributeError, KeyError, ValueError) as error:
        raise ClaimsError(f"chapters/{PAGE} asks for a number that no notebook has: {error}") from error
