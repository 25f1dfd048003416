"""Executes one chapter in a process of its own: `python -m tools.execute ROOT SOURCE PROFILE SEED THREADS`.

Progress goes to standard output, one JSON object a line: {"done": 3, "cells": 12}. A process for each
chapter keeps thread settings and peak memory apart, and one crashing kernel harms no other chapter.
"""

import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from tools import exercises, provenance
from tools import notebook as pages
from tools.layout import Book, BookError, read_source

ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def execute(book: Book, source: Path, profile: str) -> NotebookNode:
    """Run a chapter and return its notebook, cleaned, with its provenance and what its stubs say."""
    notebook = read_source(source)
    if not any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        raise BookError(f'{source.name} has no cell tagged "parameters" that sets profile and seed')
    made_from = provenance.inputs(book, source, profile)
    tasks = exercises.exercises(notebook)
    cells = len(pages.code_cells(notebook)) + 1  # papermill adds one
    notebook.cells += exercises.probes(tasks)
    done, seconds = 0, 0.0
    start = time.perf_counter()

    def report(**_: Any) -> None:
        nonlocal done, seconds
        if done < cells:  # then come the probes
            done, seconds = done + 1, time.perf_counter() - start
            print(json.dumps({"done": done, "cells": cells}), flush=True)

    try:
        notebook = papermill.execute_notebook(
            notebook,
            None,
            parameters=made_from["parameters"],
            kernel_name="python3",
            language="python",
            cwd=book.pages,
            progress_bar=False,
            on_cell_executed=report,
        )
    except PapermillExecutionError as error:
        # what an author needs to see first: cell, source, error
        text = "\n".join(f"    {line}" for line in error.source.splitlines())
        frames = ANSI_COLOUR.sub("", "\n".join(error.traceback))
        told = f"code cell {done} of {cells}:\n{text}\n{error.ename}: {error.evalue}\n\n{frames}"
        raise BookError(told) from error
    end = len(notebook.cells) - len(tasks)
    said = exercises.messages(tasks, notebook.cells[end:])
    del notebook.cells[end:]
    pages.clean(notebook)
    notebook.metadata["exercises"] = said
    notebook.metadata["provenance"] = {
        **made_from,
        **provenance.surroundings(profile),
        "seconds": round(seconds, 1),
        **_used(),
    }
    pages.lighten(notebook)
    if broken := pages.problems(notebook):
        raise BookError("\n".join(broken))
    return notebook


def _used() -> dict[str, float]:
    """What the kernel, this process's only child, and what it started have used; Windows does not say."""
    if sys.platform == "win32":
        return {}
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "core_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mib": round(used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)),
    }


def main(root: str, source: str, profile: str, seed: str, fixed_threads: str) -> int:
    """Execute, write the notebook, and return an exit status."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    book = Book(Path(root), int(seed), int(fixed_threads))
    # what records state that the kernel writes
    chapter = Path(source).name[:2]
    os.environ["SAE_LIB_COMMAND"] = f"python -m tools.book run --profile {profile} {chapter}"
    try:
        pages.write(execute(book, Path(source), profile), book.notebook(Path(source), profile))
    except BookError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
