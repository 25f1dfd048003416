"""Carries changes of prose and of cells' metadata into executed notebooks, where no code has changed."""

from pathlib import Path

import nbformat

from tools import exercises, provenance
from tools import notebook as pages
from tools.layout import Book, BookError, read_source


def carry(book: Book, source: Path) -> bool:
    """Bring a chapter's notebook up to its source without executing; return whether that changed it.

    Outputs, hardware and times stay as they were. Where code, library, records, parameters or the stub of an
    exercise changed, the error says which.
    """
    path = book.notebook(source)
    if not (reasons := provenance.stale(book, source)):
        return False
    if reasons != [f"{source.name} has changed"]:
        raise BookError(f"{source.stem}: {'; '.join(reasons)}")
    old, new = nbformat.read(path, as_version=4), read_source(source)
    stubs = [[exercise.stub for exercise in exercises.exercises(notebook)] for notebook in (old, new)]
    if pages.code_of_cells(old) != pages.code_of_cells(new) or stubs[0] != stubs[1]:
        raise BookError(f"{source.stem}: its code has changed")
    executed, cells = pages.code_cells(old), []
    for cell in new.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            before = executed.pop(0)
            cell["outputs"], cell["execution_count"] = before.outputs, before.execution_count
            if executed and pages.is_injected(executed[0]):
                cells.append(executed.pop(0))
    new.cells = cells
    old.metadata["provenance"]["source_sha256"] = provenance.sha256(source.read_bytes())
    new.metadata = nbformat.from_dict({**new.metadata, **old.metadata})
    pages.clean(new)
    pages.write(new, path)
    return True
