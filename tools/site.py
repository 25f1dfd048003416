"""Builds the offline site from the committed notebooks, without executing anything."""

import shutil
import subprocess
import sys
from pathlib import Path

from tools.layout import Book


class SiteError(Exception):
    """The site could not be built; the message holds the builder's warnings."""


def build(book: Book, output: Path | None = None) -> Path:
    """Build the site with every warning an error; return the folder of its pages."""
    target = output or book.root
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(book.root), "--path-output", str(target)]
    # --all: a page that is up to date would not repeat its warnings
    strict = ["--all", "-W", "-n", "--keep-going", "-q"]
    built = subprocess.run([*command, *strict], capture_output=True, text=True, check=False)
    if built.returncode:
        raise SiteError(f"the site was not built:\n{built.stderr}{built.stdout}")
    return target / "_build" / "html"


def archive(pages: Path) -> Path:
    """One file with the whole site, to be unpacked and opened anywhere: `_build/book.zip`."""
    partial = shutil.make_archive(str(pages.parent / ".book.partial"), "zip", pages.parent, pages.name)
    return Path(partial).replace(pages.parent / "book.zip")
