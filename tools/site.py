"""Builds the offline site from the committed notebooks, without executing anything."""

import shutil
import subprocess
import sys
from pathlib import Path

from tools import editions, quizzes, slides
from tools.layout import Book


class SiteError(Exception):
    """The site could not be built; the message holds the builder's warnings."""


def build(book: Book, output: Path | None = None) -> Path:
    """Build the site, every warning an error, and the editions; return the folder of the pages."""
    target = output or book.root
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(book.root), "--path-output", str(target)]
    # --all: a page that is up to date would not repeat its warnings
    strict = ["--all", "-W", "-n", "--keep-going", "-q"]
    built = subprocess.run([*command, *strict], capture_output=True, text=True, check=False)
    if built.returncode:
        raise SiteError(f"the site was not built:\n{built.stderr}{built.stdout}")
    pages = target / "_build" / "html"
    _add_editions(book, pages)
    quizzes.write_answers(book, pages.parent / "editions" / "instructor")
    slides.write(pages)
    return pages


def _add_editions(book: Book, pages: Path) -> None:
    """Notebooks that read well outside the site: the download of a page is the edition with solutions folded,
    the one for students lies beside it; instructors find theirs in `_build/editions`, not on the site."""
    made = pages.parent / "editions"
    editions.write(book, made)
    for notebook in (made / "solution").glob("*.ipynb"):
        shutil.copy(notebook, pages / "_sources" / "book")
    shutil.copytree(made / "student", pages / "student", dirs_exist_ok=True)


def archive(pages: Path) -> Path:
    """One file with the whole site, to be unpacked and opened anywhere: `_build/book.zip`."""
    partial = shutil.make_archive(str(pages.parent / ".book.partial"), "zip", pages.parent, pages.name)
    return Path(partial).replace(pages.parent / "book.zip")
