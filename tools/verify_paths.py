"""Executes chapters under several numerical paths and compares them with the committed notebooks."""

from collections.abc import Sequence
from pathlib import Path

import nbformat

from sae_lib import records
from tools import jobs, numbers, numerical_paths, provenance, verdicts
from tools import notebook as pages
from tools.layout import Book
from tools.nbval_tolerance import Tolerance, differences
from tools.numerical_paths import NumericalPath

TABLE = "runs/paths/numbers.csv"
RECORD = "numerical_paths.json"


def run(
    book: Book, sources: Sequence[Path], paths: Sequence[NumericalPath], cores: int, *, record: bool
) -> bool:
    """Execute what is not yet executed, write the table of all numbers, and say what does not hold.

    Other seeds are executed for the sake of the table: their numbers need not agree. Returns whether every
    chapter ran under every path, agrees with its notebook there, and all verdicts stand.

    record: keep a summary as a record of the book, for the status page.
    """
    here = [path for path in paths if _described(path)]
    passed = True
    for path in here:
        copy = path.book(book)
        stale = list(numerical_paths.prepare(book, path, sources))
        print(f"{path.name}: {len(stale)} of {len(sources)} chapters to execute", flush=True)
        jobs_of_path = jobs.executing(copy, stale, before=book, variables=path.variables)
        if not jobs.run_and_report(jobs_of_path, cores, "executed") and not path.seed:
            passed = False
    rows = numbers.table(book, here, sources)
    numbers.write_csv(rows, [path.name for path in here], book.root / TABLE)
    print(f"every number under every path: {TABLE}")
    for path in (path for path in here if not path.seed):
        failures = [line for source in sources for line in _failures(book, path, source)]
        failures += _fallen(book, path)
        print(f"{path.name}: {len(failures)} outputs or verdicts differ", *failures, sep="\n  ")
        passed = passed and not failures
    if record:
        _record(book, sources, here, rows)
    return passed


def _fallen(book: Book, path: NumericalPath) -> list[str]:
    """Statements of the text that do not hold under a path, or cannot be evaluated."""
    try:
        return [f"{v.where}: {v.says} ({v.holds})" for v in verdicts.fallen(book, path.book(book))]
    except verdicts.VerdictError as error:
        return [str(error)]


def _record(
    book: Book, sources: Sequence[Path], paths: Sequence[NumericalPath], rows: Sequence[numbers.Number]
) -> None:
    """Keep how far the paths moved the numbers, a row a cell."""
    made = [provenance.recorded(path.book(book).notebook(source)) for path in paths for source in sources]
    seconds = sum(float(notebook.get("seconds", 0)) for notebook in made)
    target = book.pages / "records" / RECORD
    records.write(target, numbers.summary(rows, [path.name for path in paths]), seconds=seconds)
    print(f"for the status page: {target.relative_to(book.root)}")


def _described(path: NumericalPath) -> bool:
    """Say what a path changes on this processor; returns whether it is one here."""
    if not path.variables:
        return True
    kinds = numerical_paths.changed(path)
    told = f"other bits in {', '.join(kinds)}" if kinds else "the same bits on this processor: skipped"
    print(f"{path.name}: {told}")
    return bool(kinds)


def _failures(book: Book, path: NumericalPath, source: Path) -> list[str]:
    """Sentences on outputs of a chapter that a path does not reproduce."""
    again = path.book(book).notebook(source)
    if not again.is_file():
        return [f"{source.stem} did not execute"]
    pair = [nbformat.read(file, as_version=4) for file in (book.notebook(source), again)]
    if pages.code_of_cells(pair[0]) != pages.code_of_cells(pair[1]):
        return [f"{source.stem}: the committed notebook is out of date"]
    code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in pair]
    found = []
    for number, (stored, new) in enumerate(zip(*code, strict=True), start=1):
        if "nbval-ignore-output" not in stored.metadata.get("tags", []):
            for line in differences(stored.outputs, new.outputs, Tolerance.of(stored.metadata)):
                found.append(f"{source.stem}, code cell {number}: {line}")
    return found
