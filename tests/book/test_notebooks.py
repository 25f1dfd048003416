"""The committed notebooks: there, up to date, and within the rules."""

import re

import nbformat
import pytest
import yaml

from tools import generated, provenance
from tools.layout import REPOSITORY, Book
from tools.notebook import problems

BOOK = Book()
LISTED = re.findall(r"file: book/(\d\d_\w+)", (REPOSITORY / "_toc.yml").read_text("utf8"))


def test_contents_list_exactly_the_chapters() -> None:
    contents = yaml.safe_load((REPOSITORY / "_toc.yml").read_text("utf8"))
    assert contents["root"] == "book/intro"
    assert [source.stem for source in BOOK.sources()] == sorted(LISTED)


def test_no_notebook_without_a_chapter() -> None:
    assert {path.stem for path in BOOK.pages.glob("*.ipynb")} <= {source.stem for source in BOOK.sources()}


@pytest.mark.parametrize("name", LISTED)
def test_notebook_shows_what_the_tree_gives(name: str) -> None:
    source = REPOSITORY / "chapters" / f"{name}.md"
    assert source.is_file(), f"{name} is in _toc.yml, but chapters/{name}.md does not exist"
    reasons = provenance.stale(BOOK, source)
    assert not reasons, f"{'; '.join(reasons)}: run `make book CHAPTERS={name[:2]}` and commit the notebook"


@pytest.mark.parametrize("name", LISTED)
def test_notebook_keeps_the_rules(name: str) -> None:
    assert problems(nbformat.read(BOOK.pages / f"{name}.ipynb", as_version=4)) == []


@pytest.mark.parametrize("name", LISTED)
def test_every_figure_has_words(name: str) -> None:
    notebook = nbformat.read(BOOK.pages / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ())):
            words = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert words.strip(), f"{name}: this cell draws a figure without alt text:\n{cell.source}"


def test_readme_shows_the_figure_of_the_notebook() -> None:
    assert (REPOSITORY / generated.PICTURE).read_bytes() == generated.cover(BOOK)
    assert f"({generated.PICTURE})" in (REPOSITORY / "README.md").read_text("utf8")
