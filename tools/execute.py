"""Executes one chapter in a process of its own: `python -m tools.execute ROOT SOURCE PROFILE SEED THREADS`.

Progress goes to standard output, one JSON object a line: {"done": 3, "cells": 12}. A process for each
chapter keeps thread settings and peak memory apart, and one crashing kernel harms no other chapter.
"""

import json
import logging
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from tools import exercises, provenance
from tools import notebook as pages
from tools.layout import Book, read_source

ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ChapterError(Exception):
    """A chapter that did not run, or whose notebook breaks a rule; the message is for its author."""


def execute(book: Book, source: Path, profile: str) -> NotebookNode:
    """Run a chapter and return its notebook, cleaned, with its provenance and what its stubs say."""
    notebook = read_source(source)
    if not any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        raise ChapterError(f'{source.name} has no cell tagged "parameters" that sets profile and seed')
    made_from = provenance.inputs(book, source, profile)
    try:
        found = exercises.exercises(notebook)
    except exercises.ExerciseError as error:
        raise ChapterError(str(error)) from error
    cells = sum(cell.cell_type == "code" for cell in notebook.cells) + 1  # papermill adds one
    notebook.cells += exercises.probes(found)
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
            parameters=provenance.parameters(profile, book.seed),
            kernel_name="python3",
            language="python",
            cwd=book.pages,
            progress_bar=False,
            on_cell_executed=report,
        )
    except PapermillExecutionError as error:
        raise ChapterError(_told(error, done, cells)) from error
    own = len(notebook.cells) - len(found)
    try:
        said = exercises.messages(found, notebook.cells[own:])
    except exercises.ExerciseError as error:
        raise ChapterError(str(error)) from error
    del notebook.cells[own:]
    pages.clean(notebook)
    notebook.metadata["exercises"] = said
    notebook.metadata["provenance"] = {
        **made_from,
        **provenance.surroundings(profile),
        "seconds": round(seconds, 1),
        "core_seconds": _core_seconds_of_kernel(),
        "peak_memory_mib": _peak_memory_of_kernel(),
    }
    pages.lighten(notebook)
    if broken := pages.problems(notebook):
        raise ChapterError("\n".join(broken))
    return notebook


def _told(error: PapermillExecutionError, done: int, cells: int) -> str:
    """Cell, source, error: what an author needs to see first."""
    source = "\n".join(f"    {line}" for line in error.source.splitlines())
    frames = ANSI_COLOUR.sub("", "\n".join(error.traceback))
    return f"code cell {done} of {cells}:\n{source}\n{error.ename}: {error.evalue}\n\n{frames}"


def _core_seconds_of_kernel() -> float:
    """Processor time of the kernel and of what it started, with the probes of the exercises' stubs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(used.ru_utime + used.ru_stime, 1)


def _peak_memory_of_kernel() -> int:
    """MiB of the largest finished child; the kernel is this process's only one."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def main(root: str, source: str, profile: str, seed: str, fixed_threads: str) -> int:
    """Execute, write the notebook, and return an exit status."""
    logging.getLogger("papermill").setLevel(logging.ERROR)
    book = Book(Path(root), int(seed), int(fixed_threads))
    # what records state that the kernel writes
    chapter = Path(source).name[:2]
    os.environ["SAE_LIB_COMMAND"] = f"python -m tools.book run --profile {profile} {chapter}"
    try:
        pages.write(execute(book, Path(source), profile), book.notebook(Path(source), profile))
    except ChapterError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
