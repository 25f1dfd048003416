"""Pages that the build writes itself say what the notebooks and records say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from book_tree import call, small_book

from sae_lib import records
from tools import claims, generated, status
from tools.layout import Book, BookError


def test_front_picture_shows_the_measured_points() -> None:
    """Against the record itself: the mean of three seeds at the place where the sliders start."""
    rows = records.read(Book().pages / "records" / "04_resonance.json").rows
    at = {"n": 256, "d": 128, "s": 3, "ratio": 0.5}
    frr = [row["frr"] for row in rows if at.items() <= row.items() and "hold" not in row]
    (data,) = re.findall(r"const data = (.*);", generated.front(Book()))
    shown = json.loads(data)
    mean, sd, _ = shown["found"][shown["d"].index(128)][shown["p"].index(0.5)]
    assert len(frr) == 3
    assert mean == pytest.approx(np.mean(frr), abs=1e-3)
    assert sd == pytest.approx(np.std(frr, ddof=1), abs=1e-3)
    assert "://" not in generated.front(Book()).replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
def test_page_follows_notebooks_and_records(tmp_path: Path) -> None:
    book = small_book(tmp_path)
    assert "There are none." in status.text(book)  # nothing executed, no record
    assert call("run", "--root", str(tmp_path)).returncode == 0
    generated.write(book)
    (source,) = book.sources()
    provenance = json.loads(book.notebook(source).read_text("utf8"))["metadata"]["provenance"]
    page = (book.pages / "status.md").read_text("utf8")
    for shown in (
        f"[90]({source.stem}.ipynb)",
        provenance["date"],
        provenance["source_sha256"][:8],
        "1 of 1 chapters",
    ):
        assert shown in page

    (book.pages / "records").mkdir()
    records.write(book.pages / "records" / "90_runs.json", [{"x": 1}], seconds=1234)
    generated.write(book)
    page = (book.pages / "status.md").read_text("utf8")
    assert "`90_runs`" in page
    assert "1,234" in page
    assert not list(book.pages.glob(".*.partial"))


@pytest.mark.slow
def test_claims_take_their_numbers_from_the_notebooks(tmp_path: Path) -> None:
    book = small_book(tmp_path)
    assert call("run", "--root", str(tmp_path)).returncode == 0
    source = tmp_path / "chapters" / claims.PAGE
    source.write_text("rate {c90.rate:.1f}", "utf8")
    assert claims.text(book) == "rate 0.9"
    source.write_text("rate {c90.no_such_number:.1f}", "utf8")
    failed = call("site", "--root", str(tmp_path))
    assert failed.returncode == 1
    assert "no_such_number" in failed.stdout


def test_claims_take_means_from_records(tmp_path: Path) -> None:
    book = small_book(tmp_path)
    source = tmp_path / "chapters" / claims.PAGE
    (book.pages / "records").mkdir()
    rows = [{"groups": g, "top": 0.3, "error": e} for g, e in ((3, 1.0), (3, 2.0), (10, 5.0))]
    records.write(book.pages / "records" / "90_runs.json", rows, seconds=1)
    source.write_text(
        "{r90_runs[groups=3,top=0.3].error:.2f} against {r90_runs[groups=10].error:.2f}", "utf8"
    )
    assert claims.text(book) == "1.50 against 5.00"
    for wrong, named in (("[groups=4].error", "groups=4"), ("[groups=3].loss", "loss")):
        source.write_text(f"{{r90_runs{wrong}}}", "utf8")
        with pytest.raises(BookError, match=named):
            claims.text(book)
