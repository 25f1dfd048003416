"""A small book in a temporary folder, for the tests of the book's tools."""

import subprocess
import sys
from pathlib import Path

from tools.layout import REPOSITORY, Book

SAMPLE = Path(__file__).parent / "book_sample" / "90_sample.md"

USES_LIBRARY = """
```{code-cell}
if False:
    import sae_lib
    sae_lib.alpha()
```
"""


def small_book(root: Path) -> Book:
    """A book with one chapter, which names one of the two modules of a small library."""
    for folder in ("chapters", "book", "sae_lib"):
        (root / folder).mkdir()
    (root / "sae_lib" / "__init__.py").write_text('_EXPORTS = {"alpha": "one", "beta": "two"}\n')
    (root / "sae_lib" / "one.py").write_text("def alpha(): pass\n")
    (root / "sae_lib" / "two.py").write_text("def beta(): pass\n")
    (root / "chapters" / SAMPLE.name).write_text(SAMPLE.read_text("utf8") + USES_LIBRARY, "utf8")
    return Book(root)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m tools.book …` in a process of its own."""
    command = [sys.executable, "-m", "tools.book", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
