"""The status page says what the notebooks and records say."""

import json
from pathlib import Path

from book_tree import call, small_book

from sae_lib import records
from tools import status
from tools.layout import Book


def test_committed_page_is_what_the_build_writes() -> None:
    book = Book()
    assert (book.pages / status.PAGE).read_text("utf8") == status.text(book)


def test_page_follows_notebooks_and_records(tmp_path: Path) -> None:
    book = small_book(tmp_path)
    assert "There are none." in status.text(book)  # nothing executed, no record
    assert call("run", "--root", str(tmp_path)).returncode == 0
    (source,) = book.sources()
    made = json.loads(book.notebook(source).read_text("utf8"))["metadata"]["provenance"]
    page = (book.pages / status.PAGE).read_text("utf8")
    for shown in (f"[90]({source.stem}.ipynb)", made["date"], made["source_sha256"][:8], "1 of 1 chapters"):
        assert shown in page

    (book.pages / "results").mkdir()
    records.write(book.pages / "results" / "90_runs.json", [{"x": 1}], seconds=1234)
    status.write(book)
    page = (book.pages / status.PAGE).read_text("utf8")
    assert "`90_runs`" in page
    assert "1,234" in page
    assert not list(book.pages.glob(".*.partial"))
