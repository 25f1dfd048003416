"""Where the book's files lie, relative to its root folder."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from nbformat import NotebookNode

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE_NAME = re.compile(r"\d\d_\w+\.md")
# how a chapter names the record of another one
RECORD = re.compile(r"\brecords/(\d\d_[\w-]+\.json)\b")


class BookError(Exception):
    """What an author of the book, or who builds it, can put right; the message says how."""


@dataclass(frozen=True)
class Book:
    """The folders of one book: `chapters/` (sources), `book/` (pages), `sae_lib/` (the library).

    seed: what its chapters run with; the pages show 0.
    fixed_threads: threads for every chapter's kernel; 0 leaves each its own.
    """

    root: Path = REPOSITORY
    seed: int = 0
    fixed_threads: int = 0

    @property
    def pages(self) -> Path:
        """The folder of the committed notebooks; cells run in it."""
        return self.root / "book"

    @property
    def packages(self) -> list[Path]:
        """The packages whose changes make a notebook stale: the library, and the experiments if there are."""
        library, experiments = self.root / "sae_lib", self.root / "sae_experiments"
        return [library, experiments] if experiments.is_dir() else [library]

    def threads(self, source: Path, profile: str = "quick") -> int:
        """Return the threads for a chapter's kernel: `book: {threads: 2}` in its front matter, else 1.

        The number is the chapter's and not the machine's, because it changes the order of floating-point
        sums and so the numbers that are compared later. A full run is not compared: it takes all cores.
        """
        own = (os.cpu_count() or 1) if profile == "full" else int(setting(source, "threads", 1))
        return self.fixed_threads or own

    def sources(self, wanted: Sequence[str] = ()) -> list[Path]:
        """Return the chapters' sources, in order; `wanted` picks some by number or by name ("07")."""
        paths = sorted(p for p in (self.root / "chapters").glob("*.md") if SOURCE_NAME.fullmatch(p.name))
        for name in wanted:
            if not any(p.stem.startswith(name) for p in paths):
                names = ", ".join(p.stem for p in paths) or "none"
                raise BookError(f"no chapter {name!r} in {self.root / 'chapters'}; the chapters are: {names}")
        return [p for p in paths if not wanted or p.stem.startswith(tuple(wanted))]

    def notebook(self, source: Path, profile: str = "quick") -> Path:
        """Return where a chapter's executed notebook goes: only quick runs are pages of the book."""
        folder = self.pages if profile == "quick" else self.root / "runs" / profile
        return folder / f"{source.stem}.ipynb"

    def notebooks(self) -> Iterator[tuple[Path, NotebookNode]]:
        """Yield (source, executed notebook) of all chapters that were executed."""
        for source in self.sources():
            if self.notebook(source).is_file():
                yield source, nbformat.read(self.notebook(source), as_version=4)

    def records(self, source: Path) -> list[Path]:
        """Return the records of long runs that a chapter shows: those with its number, and those it names."""
        folder = self.pages / "records"
        named = (folder / name for name in RECORD.findall(source.read_text("utf8")))
        return sorted({*folder.glob(f"{source.name[:2]}_*.json"), *filter(Path.is_file, named)})


def template(name: str) -> Template:
    """Return a file of `tools/templates`, to be filled in."""
    files = FileSystemLoader(Path(__file__).with_name("templates"))
    jinja = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return jinja.get_template(name)


def read_source(source: Path) -> NotebookNode:
    """Return a chapter's source as a notebook without outputs."""
    return jupytext.read(source, fmt={"extension": ".md", "format_name": "myst"})


def setting(source: Path, name: str, default: Any) -> Any:
    """Return what a chapter's front matter says under `book:`."""
    return read_source(source).metadata.get("book", {}).get(name, default)


def after(source: Path) -> str:
    """Return the number of the chapter whose files this one needs: `book: {after: "09"}`, or ""."""
    number = str(setting(source, "after", ""))
    if number and (not re.fullmatch(r"\d\d", number) or source.name.startswith(number)):
        raise BookError(f'{source.name} says after: {number!r}; expected the number of another, such as "09"')
    return number
