"""Executes chapters as other processors would, and with other seeds, and compares every number.

Libraries choose their code by the processor, and each code adds in an order of its own. Environment variables
make them choose as an older or another processor would. A path exists here if a small probe gives other bits
under it than by default; what a machine does not have, it cannot show.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from sae_lib import records
from tools import jobs, numbers, provenance, verdicts
from tools import notebook as pages
from tools.layout import Book, BookError, read_source
from tools.nbval_tolerance import Tolerance, differences

TABLE = "runs/paths/numbers.csv"
RECORD = "numerical_paths.json"

# what a chapter reads besides the library
READ = ("chapters", "sae_lib", "sae_experiments", "benchmarks", "_static")
# prints, as JSON, some bits of each kind of arithmetic that chapters use
PROBE = """
import hashlib, json, numba, numpy, torch
def bits(array): return hashlib.sha256(numpy.ascontiguousarray(array).tobytes()).hexdigest()
def stream(): return torch.Generator().manual_seed(0)
@numba.njit(fastmath=True)
def dot(a, b):
    total = a[0] * b[0]
    for i in range(1, len(a)): total += a[i] * b[i]
    return total
a, b = torch.rand(300, 576, generator=stream()) - 0.5, torch.rand(900, 576, generator=stream()) - 0.5
attend = torch.nn.functional.scaled_dot_product_attention
print(json.dumps({
    "products": bits(a @ b.T),
    "NumPy's products": bits(a.numpy() @ b.numpy().T),
    "bfloat16 products": bits((a.bfloat16() @ b.bfloat16().T).float()),
    "attention": bits(attend(a[None], a[None], a[None])),
    "decompositions": bits(torch.linalg.svdvals(a)),
    "normal draws": bits(torch.randn(5000, generator=stream())),
    "compiled loops": bits(numpy.array([dot(row, row) for row in b.numpy()])),
}))
"""


@dataclass(frozen=True)
class NumericalPath:
    """A way to execute the book.

    variables: environment variables that make libraries choose other code.
    threads: for every chapter; 0 leaves each its own. seed: what chapters run with; one that is not 0 makes
    it no path but another draw, to see paths beside.
    """

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    seed: int = 0

    def book(self, book: Book) -> Book:
        """Return the copy of a book in which this path executes, in `runs/paths/`."""
        return Book(book.root / "runs" / "paths" / self.name, self.seed, self.threads)


DEFAULT = NumericalPath("default")


def _processor(name: str, aten: str, mkl: str, onednn: str, openblas: str, **others: str) -> NumericalPath:
    variables = {"ATEN_CPU_CAPABILITY": aten, "MKL_ENABLE_INSTRUCTIONS": mkl, "ONEDNN_MAX_CPU_ISA": onednn}
    return NumericalPath(name, {**variables, "OPENBLAS_CORETYPE": openblas, **others})


PATHS = (
    DEFAULT,
    _processor("sse", "default", "SSE4_2", "SSE41", "Nehalem", NUMBA_CPU_NAME="generic"),
    _processor("avx2", "avx2", "AVX2", "AVX2", "Haswell", NUMBA_CPU_NAME="haswell"),
    _processor("avx512", "avx512", "AVX512", "AVX512_CORE", "SkylakeX"),  # without AMX
    # the only switch that moves products on a processor that is not Intel's; it doubles their time
    NumericalPath("compatible", {"MKL_CBWR": "COMPATIBLE"}),
    NumericalPath("threads", threads=2),
    NumericalPath("seed1", seed=1),
    NumericalPath("seed2", seed=2),
)


def chosen(names: Sequence[str]) -> tuple[NumericalPath, ...]:
    """Return the paths with these names, all if there are none."""
    by_name = {path.name: path for path in PATHS}
    for name in names:
        if name not in by_name:
            raise BookError(f"no numerical path {name!r}; expected some of {', '.join(by_name)}")
    return tuple(path for path in PATHS if not names or path.name in names)


def run(
    book: Book, sources: Sequence[Path], paths: Sequence[NumericalPath], cores: int, *, record: bool
) -> bool:
    """Execute what is not yet executed, write the table of all numbers, and say what does not hold.

    Other seeds are executed for the sake of the table: their numbers need not agree. Returns whether every
    chapter ran under every path, agrees with its notebook there, and all verdicts stand.

    record: keep a summary as a record of the book, a row a cell, for the status page.
    """
    effective = [path for path in paths if _described(path)]
    names = [path.name for path in effective]
    passed = True
    for path in effective:
        copy = path.book(book)
        stale = list(prepare(book, path, sources))
        print(f"{path.name}: {len(stale)} of {len(sources)} chapters to execute", flush=True)
        executing = jobs.executing(copy, stale, before=book, variables=path.variables)
        passed &= jobs.run_and_report(executing, cores, "executed") or bool(path.seed)
    copies = {path.name: path.book(book) for path in effective}
    rows = numbers.table(book, copies, sources)
    numbers.write_csv(rows, names, book.root / TABLE)
    print(f"every number under every path: {TABLE}")
    for path in (path for path in effective if not path.seed):
        failures = [line for source in sources for line in _failures(book, copies[path.name], source)]
        failures += _fallen(book, copies[path.name])
        print(f"{path.name}: {len(failures)} outputs or verdicts differ", *failures, sep="\n  ")
        passed &= not failures
    if record:
        runs = [provenance.recorded(copy.notebook(source)) for copy in copies.values() for source in sources]
        seconds = sum(float(notebook.get("seconds", 0)) for notebook in runs)
        target = book.pages / "records" / RECORD
        records.write(target, numbers.summary(rows, names), seconds=seconds)
        print(f"for the status page: {target.relative_to(book.root)}")
    return passed


def _described(path: NumericalPath) -> bool:
    """Say what a path changes on this processor; return whether it is one here."""
    if not path.variables:
        return True
    kinds = changed(path)
    told = f"other bits in {', '.join(kinds)}" if kinds else "the same bits on this processor: skipped"
    print(f"{path.name}: {told}")
    return bool(kinds)


def changed(path: NumericalPath) -> list[str]:
    """Return the kinds of arithmetic that give other bits under the path than by default, here."""
    usual, bits = _probe(DEFAULT), _probe(path)
    return [kind for kind in usual if bits[kind] != usual[kind]]


def _probe(path: NumericalPath) -> dict[str, str]:
    threads = dict.fromkeys(jobs.THREAD_VARIABLES, str(path.threads or 1))
    variables = {**os.environ, **threads, **path.variables}
    told = subprocess.run([sys.executable, "-c", PROBE], env=variables, capture_output=True, check=True)
    bits: dict[str, str] = json.loads(told.stdout)
    return bits


def prepare(book: Book, path: NumericalPath, sources: Sequence[Path]) -> Iterator[Path]:
    """Bring the path's copy of the book up to date; yield the sources that have to be executed there.

    What was executed from the same code stays, so a stopped run resumes and a change of prose costs nothing.
    """
    copy = path.book(book)
    for name in READ:
        if (book.root / name).is_dir():
            shutil.rmtree(copy.root / name, ignore_errors=True)
            shutil.copytree(book.root / name, copy.root / name)
    shutil.copytree(book.pages / "records", copy.pages / "records", dirs_exist_ok=True)
    for source in sources:
        copied = copy.root / "chapters" / source.name
        if not _executed(copy, copied):
            yield copied


def _executed(copy: Book, source: Path) -> bool:
    """Whether the copy has a notebook of the source's code, of this library, these records and parameters."""
    before = provenance.recorded(copy.notebook(source))
    now = provenance.inputs(copy, source, "quick")
    if any(before.get(key) != now[key] for key in ("library_modules", "records", "parameters", "threads")):
        return False
    stored = nbformat.read(copy.notebook(source), as_version=4)
    return pages.code_of_cells(stored) == pages.code_of_cells(read_source(source))


def _failures(book: Book, copy: Book, source: Path) -> Iterator[str]:
    """Yield sentences on outputs of a chapter that a path does not reproduce."""
    if not copy.notebook(source).is_file():
        yield f"{source.stem} did not execute"
        return
    stored, new = (nbformat.read(each.notebook(source), as_version=4) for each in (book, copy))
    if pages.code_of_cells(stored) != pages.code_of_cells(new):
        yield f"{source.stem}: the committed notebook is out of date"
        return
    pairs = zip(pages.code_cells(stored), pages.code_cells(new), strict=True)
    for number, (old, cell) in enumerate(pairs, start=1):
        if "nbval-ignore-output" not in old.metadata.get("tags", []):
            for line in differences(old.outputs, cell.outputs, Tolerance.of(old.metadata)):
                yield f"{source.stem}, code cell {number}: {line}"


def _fallen(book: Book, copy: Book) -> list[str]:
    """Return the statements of the text that do not hold under a path, or cannot be evaluated."""
    try:
        return [f"{v.where}: {v.says} ({v.holds})" for v in verdicts.fallen(book, copy)]
    except BookError as error:
        return [str(error)]
