"""Numerical paths: ways of one machine to compute as others would, and copies of the book for them.

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

from tools import notebook as pages
from tools import provenance
from tools.layout import Book, read_source
from tools.parallel import THREAD_VARIABLES

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
        """The copy of a book in which this path executes, in `runs/paths/`."""
        return Book(book.root / "runs" / "paths" / self.name, self.seed, self.threads)


DEFAULT = NumericalPath("default")
PATHS = (
    DEFAULT,
    NumericalPath(
        "sse",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OPENBLAS_CORETYPE": "Nehalem",
            "NUMBA_CPU_NAME": "generic",
        },
    ),
    NumericalPath(
        "avx2",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
            "NUMBA_CPU_NAME": "haswell",
        },
    ),
    NumericalPath(
        "avx512",
        {
            "ATEN_CPU_CAPABILITY": "avx512",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",  # without AMX
            "OPENBLAS_CORETYPE": "SkylakeX",
        },
    ),
    # the only switch that moves products on a processor that is not Intel's; it doubles their time
    NumericalPath("compatible", {"MKL_CBWR": "COMPATIBLE"}),
    NumericalPath("threads", threads=2),
    NumericalPath("seed1", seed=1),
    NumericalPath("seed2", seed=2),
)


def chosen(names: Sequence[str]) -> tuple[NumericalPath, ...]:
    """The paths with these names, all if there are none. Raises ValueError for a name that is not there."""
    known = {path.name: path for path in PATHS}
    for name in names:
        if name not in known:
            raise ValueError(f"no numerical path {name!r}; expected some of {', '.join(known)}")
    return tuple(path for path in PATHS if not names or path.name in names)


def changed(path: NumericalPath) -> list[str]:
    """Kinds of arithmetic that give other bits under the path than by default, on this processor."""
    usual, found = _probe(DEFAULT), _probe(path)
    return [kind for kind, bits in usual.items() if found[kind] != bits]


def _probe(path: NumericalPath) -> dict[str, str]:
    threads = dict.fromkeys(THREAD_VARIABLES, str(path.threads or 1))
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, **threads, **path.variables},
        capture_output=True,
        text=True,
        check=True,
    )
    bits: dict[str, str] = json.loads(done.stdout)
    return bits


def prepare(book: Book, path: NumericalPath, sources: Sequence[Path]) -> Iterator[Path]:
    """Bring the path's copy of the book up to date; yields the sources that have to be executed there.

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
    return pages.code_of_cells(nbformat.read(copy.notebook(source), as_version=4)) == pages.code_of_cells(
        read_source(source)
    )
