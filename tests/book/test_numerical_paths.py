"""The book under several numerical paths: copies, resumption, table, verdicts; words carried over."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from book_tree import SAMPLE, call, small_book

from tools import claims, numbers, numerical_paths, provenance, status, verdicts, words
from tools.layout import REPOSITORY, Book, BookError
from tools.numerical_paths import DEFAULT, PATHS, NumericalPath, chosen

VERDICTS = """
[[verdict]]
where = "chapter 90"
says = "The rate is high."
holds = "c90.rate > 0.9"
"""
OTHER_SEED = NumericalPath("seed1", seed=1)
TRIED = (DEFAULT, next(path for path in PATHS if path.threads), OTHER_SEED)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """The small book, its committed notebook and copies of it under two paths and another seed."""
    book = small_book(tmp_path_factory.mktemp("book") / "")
    (book.pages / "records").mkdir()
    (book.root / "chapters" / verdicts.FILE).write_text(VERDICTS)
    assert call("run", "--root", str(book.root)).returncode == 0
    told = call(
        "verify", "--paths", "--root", str(book.root), *(x for p in TRIED for x in ("--only", p.name))
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "default: 0 outputs or verdicts differ" in told.stdout
    return book


@pytest.fixture
def book(executed: Book, tmp_path: Path) -> Book:
    shutil.copytree(executed.root, tmp_path / "copy")
    return Book(tmp_path / "copy")


def source(book: Book) -> Path:
    return book.root / "chapters" / SAMPLE.name


def edit(book: Book, old: str, new: str) -> None:
    text = source(book).read_text("utf8")
    assert old in text
    source(book).write_text(text.replace(old, new), "utf8")


@pytest.mark.slow
def test_table_has_every_compared_number_under_every_path(executed: Book) -> None:
    with (executed.root / "runs" / "paths" / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"default", "threads", "seed1"} <= rows[0].keys()
    rate = next(row for row in rows if row["kind"] == "trained" and row["label"] == "rate")
    seen = [float(rate[key]) for key in ("stored", "threads", "seed1", "allowed")]
    assert seen == pytest.approx([0.91, 0.91, 1.91, 0.02])
    assert not any(float(row["stored"]) > 1000 for row in rows)  # what the chapter does not compare


@pytest.mark.slow
def test_threads_and_seed_reach_the_copies(executed: Book) -> None:
    for path in TRIED:
        origin = provenance.recorded(path.book(executed).notebook(source(executed)))
        assert (origin["threads"], origin["parameters"]["seed"]) == (path.threads or 1, path.seed)


@pytest.mark.slow
def test_a_number_that_a_path_moves_is_named_and_fails(book: Book) -> None:
    again = DEFAULT.book(book).notebook(source(book))
    again.write_text(again.read_text("utf8").replace("rate  0.91", "rate  0.95"), "utf8")
    told = call("verify", "--paths", "--root", str(book.root), "--only", "default")
    assert told.returncode == 1
    assert "0.91 became 0.95; a trained number may differ by 0.02 here" in told.stdout
    assert "default: 0 of 1 chapters to execute" in told.stdout  # nothing was executed a second time


@pytest.mark.slow
def test_a_chapter_that_a_path_did_not_execute_fails(book: Book) -> None:
    edit(book, "rate = 0.91 + seed", "rate = 0.91 / seed")
    told = call("verify", "--paths", "--root", str(book.root), "--only", "default")
    assert told.returncode == 1
    assert "ZeroDivisionError" in told.stdout


@pytest.mark.slow
def test_a_verdict_that_falls_under_a_path_fails(book: Book) -> None:
    (book.root / "chapters" / verdicts.FILE).write_text(VERDICTS.replace("> 0.9", "> 0.92"))
    told = call("verify", "--paths", "--root", str(book.root), "--only", "default")
    assert told.returncode == 1
    assert "chapter 90: The rate is high. (c90.rate > 0.92)" in told.stdout


@pytest.mark.slow
def test_prose_costs_no_execution_and_code_does(book: Book) -> None:
    def stale() -> int:
        return len(list(numerical_paths.prepare(book, DEFAULT, book.sources())))

    edit(book, "It exercises what", "It tries what")
    assert stale() == 0
    edit(book, "rate = 0.91 + seed", "rate = 0.92 + seed")
    assert stale() == 1


@pytest.mark.slow
def test_unknown_path_names_those_that_are_there() -> None:
    with pytest.raises(BookError, match="no numerical path 'avx3'; expected some of default, sse"):
        chosen(["avx3"])
    told = call("verify", "--paths", "--only", "avx3")
    assert told.returncode == 1
    assert "avx3" in told.stdout


def test_a_path_without_effect_on_this_processor_does_not_exist() -> None:
    assert numerical_paths.changed(NumericalPath("nothing", {"SOME_VARIABLE": "1"})) == []
    # the slowest code of each library is there on every x86 processor, and adds in another order
    assert numerical_paths.changed(next(path for path in PATHS if path.name == "sse"))


def test_summary_has_the_largest_share_of_each_path() -> None:
    rate = numbers.Number("01", 3, "rate", "trained", 0.02, "0.91", {"a": "0.92", "b": "0.87", "c": None})
    count = numbers.Number("01", 4, "rows", "exact", 0.0, "7", {"a": "7", "b": "9", "c": "7"})
    (first, second) = numbers.summary([rate, replace(rate, found=dict.fromkeys("abc", "0.91")), count], "abc")
    assert (first["n_numbers"], first["moved"]) == (2, {"a": 0.5, "b": 2.0, "c": 0.0})
    assert (second["kind"], second["moved"]) == ("exact", {"a": 0.0, "b": 2.0, "c": 0.0})


def test_the_status_page_shows_the_record(book: Book) -> None:
    chosen = ("--only", "default", "--only", "seed1")
    assert call("verify", "--paths", "--record", "--root", str(book.root), *chosen).returncode == 0
    shown = status.text(book)
    assert "cell by cell, for `default`, `seed1`;" in shown
    # the seed moves the rate by fifty times its tolerance and is no path
    assert re.search(r"\| 90 \| \d+ \| 0 \| \d+ \| 0% \|", shown)


def test_verdicts_of_this_book_hold() -> None:
    assert [f"{v.where}: {v.says}" for v in verdicts.fallen(Book(REPOSITORY))] == []


@pytest.mark.slow
def test_a_verdict_on_a_number_that_is_not_there_is_an_error_that_names_it(book: Book) -> None:
    (book.root / "chapters" / verdicts.FILE).write_text(VERDICTS.replace("c90.rate", "c90.ratio"))
    with pytest.raises(BookError, match=r"chapter 90, 'c90\.ratio > 0\.9'.*ratio"):
        verdicts.fallen(book)


@pytest.mark.parametrize(
    "holds", ["__import__('os').getcwd()", "open('x')", "c90.rate >", "c90['rate'] + 'a' > 0"]
)
def test_a_condition_runs_no_code_and_one_that_is_none_is_an_error(book: Book, holds: str) -> None:
    with pytest.raises(BookError, match="chapter 90"):
        verdicts.Verdict("chapter 90", "It is so.", holds).stands(claims.names(book))


@pytest.mark.slow
def test_words_are_carried_and_outputs_stay(book: Book) -> None:
    before = nbformat.read(book.notebook(source(book)), as_version=4)
    edit(book, "It exercises what", "It tries what")
    edit(book, "kind: trained, abs: 0.02", "kind: trained, abs: 0.03")
    assert words.carry(book, source(book))
    assert not provenance.stale(book, source(book))
    after = nbformat.read(book.notebook(source(book)), as_version=4)
    assert "It tries what" in after.cells[0].source
    marked = [dict(cell.metadata.nbval) for cell in after.cells if "nbval" in cell.metadata]
    assert marked == [{"kind": "exact"}, {"kind": "trained", "abs": 0.03}]
    kept = [[cell.get("outputs") for cell in n.cells if cell.cell_type == "code"] for n in (before, after)]
    assert kept[0] == kept[1]
    assert not words.carry(book, source(book))


@pytest.mark.slow
def test_words_refuse_a_change_of_code(book: Book) -> None:
    edit(book, "rate = 0.91 + seed", "rate = 0.92 + seed")
    with pytest.raises(BookError, match="its code has changed"):
        words.carry(book, source(book))
    told = call("words", "--root", str(book.root))
    assert (told.returncode, "its code has changed; execute it" in told.stdout) == (1, True)
