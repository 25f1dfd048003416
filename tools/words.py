"""Carries changes of prose and of cells' metadata into executed notebooks, where no code has changed."""

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools import exercises, provenance
from tools import notebook as pages
from tools.layout import Book, read_source


class WordsError(Exception):
    """A chapter whose code has changed, so that it has to be executed; the message says what did."""


def carry(book: Book, source: Path) -> bool:
    """Bring a chapter's notebook up to its source without executing; returns whether that changed it.

    Outputs, hardware and times stay as they were. Raises WordsError where code, library, records, parameters
    or the stub of an exercise changed.
    """
    path = book.notebook(source)
    if not (reasons := provenance.stale(book, source)):
        return False
    if reasons != [f"{source.name} has changed"]:
        raise WordsError(f"{source.stem}: {'; '.join(reasons)}")
    old, new = nbformat.read(path, as_version=4), read_source(source)
    stubs = [[exercise.stub for exercise in exercises.exercises(notebook)] for notebook in (old, new)]
    if pages.code_of_cells(old) != pages.code_of_cells(new) or stubs[0] != stubs[1]:
        raise WordsError(f"{source.stem}: its code has changed")
    new.cells = list(_with_outputs(old, new))
    metadata = old.metadata
    metadata["provenance"]["source_sha256"] = provenance.inputs(book, source, "quick")["source_sha256"]
    kept = {key: new.metadata[key] for key in new.metadata if key not in metadata}
    new.metadata = nbformat.from_dict({**kept, **metadata})
    pages.clean(new)
    pages.write(new, path)
    return True


def _with_outputs(old: NotebookNode, new: NotebookNode) -> list[NotebookNode]:
    """The new cells with the old outputs, and the cell that papermill put in where it stood."""
    executed = [cell for cell in old.cells if cell.cell_type == "code"]
    cells = []
    for cell in new.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            continue
        before = executed.pop(0)
        cell["outputs"], cell["execution_count"] = before.outputs, before.execution_count
        if executed and pages.is_injected(executed[0]):
            cells.append(executed.pop(0))
    return cells
