"""Chapters become notebooks: execution, provenance, staleness, failures, comparison by nbval."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from book_tree import SAMPLE, call, small_book
from nbformat import NotebookNode

from tools import execute, provenance, status
from tools import notebook as pages
from tools.jobs import Job, Outcome, environment
from tools.jobs import jobs as jobs_of
from tools.jobs import run as run_jobs
from tools.layout import Book, BookError, after
from tools.notebook import problems

SOURCE = SAMPLE.name
FRONT = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3}
---
# A chapter
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """The small book after one run; tests copy it before they change it."""
    book = small_book(tmp_path_factory.mktemp("book") / "")
    result = call("run", "--root", str(book.root))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "chapters: 1 passed, 0 failed" in result.stdout
    return book


@pytest.fixture
def book(executed: Book, tmp_path: Path) -> Book:
    shutil.copytree(executed.root, tmp_path / "copy")
    return Book(tmp_path / "copy")


def read(book: Book) -> NotebookNode:
    return nbformat.read(book.pages / "90_sample.ipynb", as_version=4)


@pytest.mark.slow
def test_notebook_carries_outputs_and_provenance(executed: Book) -> None:
    notebook = read(executed)
    record = notebook.metadata.provenance
    assert record.profile == "quick"
    assert record.parameters == {"profile": "quick", "seed": 0}
    assert set(record.library_modules) == {"sae_lib.one"}
    assert set(record.versions) == {"python", "torch", "numpy", "transformers", "sae_lib"}
    assert set(record.hardware) == {"cpu", "cores", "gpu", "ram_gib"}
    assert record.seconds > 0
    assert record.peak_memory_mib > 20
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record.date)
    assert problems(notebook) == []
    assert any(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())
    )


@pytest.mark.slow
def test_a_notebook_made_where_the_system_does_not_tell_what_was_used(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows does not: the status page shows dashes."""
    (source,) = book.sources()
    monkeypatch.setattr(execute, "_used", dict)
    pages.write(execute.execute(book, source, "quick"), book.notebook(source))
    assert "peak_memory_mib" not in provenance.recorded(book.notebook(source))
    assert "| – | – |" in status.text(book)


@pytest.mark.slow
def test_a_kernel_knows_the_command_that_its_records_state(book: Book) -> None:
    source = book.root / "chapters" / SOURCE
    stated = "python -m tools.book run --profile full 90"
    cell = f'import os\nassert os.environ["SAE_LIB_COMMAND"] == "{stated}"'
    source.write_text(f"{source.read_text('utf8')}\n```{{code-cell}}\n{cell}\n```\n", "utf8")
    result = call("run", "--profile", "full", "--root", str(book.root))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_nothing_but_provenance_changes_from_run_to_run(executed: Book) -> None:
    text = json.dumps(read(executed))
    assert "papermill.record" in text  # glued values stay
    for noise in ('"papermill":', "start_time", "iopub", "input_path"):
        assert noise not in text


@pytest.mark.slow
def test_stale_names_what_changed(book: Book) -> None:
    source = book.root / "chapters" / SOURCE
    assert provenance.stale(book, source) == []

    (book.packages[0] / "two.py").write_text("# a module the chapter does not reach\n")
    assert provenance.stale(book, source) == []

    (book.packages[0] / "one.py").write_text("def alpha(): return 1\n")
    source.write_text(source.read_text("utf8") + "\nMore.\n", "utf8")
    assert provenance.stale(book, source) == ["90_sample.md has changed", "sae_lib.one has changed"]
    (book.pages / "records").mkdir()
    (book.pages / "records" / "91_other.json").write_text("{}")
    assert len(provenance.stale(book, source)) == 2
    (book.pages / "records" / "90_long_run.json").write_text("{}")
    assert "a record of it in book/records has changed" in provenance.stale(book, source)
    (book.pages / "records" / "90_long_run.json").unlink()
    assert len(provenance.stale(book, source)) == 2
    assert "sae_lib.one has changed" in call("check", "--root", str(book.root)).stdout

    (book.pages / "90_sample.ipynb").unlink()
    assert provenance.stale(book, source) == ["90_sample.ipynb is missing"]


@pytest.mark.slow
def test_a_record_of_another_chapter_counts_where_it_is_named(book: Book) -> None:
    source = book.root / "chapters" / SOURCE
    stored = book.pages / "records"
    stored.mkdir()
    for name in ("10_search.json", "10_other.json", "90_own.json", "x10_search.json"):
        (stored / name).write_text("{}")
    assert [path.name for path in book.records(source)] == ["90_own.json"]
    # one of them exists nowhere
    source.write_text(
        source.read_text("utf8") + '\nrecords.read("records/10_search.json")\n`records/11_none.json`\n',
        "utf8",
    )
    assert [path.name for path in book.records(source)] == ["10_search.json", "90_own.json"]
    before = provenance.inputs(book, source, "quick")["records"]
    (stored / "10_other.json").write_text("[1]")
    assert provenance.inputs(book, source, "quick")["records"] == before
    (stored / "10_search.json").write_text("[1]")
    assert provenance.inputs(book, source, "quick")["records"] != before


@pytest.mark.slow
def test_failed_chapter_is_reported_and_keeps_its_old_notebook(book: Book) -> None:
    source = book.root / "chapters" / SOURCE
    before = (book.pages / "90_sample.ipynb").read_bytes()
    good = source.with_name("91_good.md")
    shutil.copy(source, good)
    source.write_text(
        source.read_text("utf8").replace('print("features", 128', "print(1 / seed, 128"), "utf8"
    )
    result = call("run", "--root", str(book.root))
    assert result.returncode == 1
    assert "code cell 4 of 10" in result.stdout
    assert 'print(1 / seed, 128, "rate", 0.25)' in result.stdout
    assert "ZeroDivisionError: division by zero" in result.stdout
    assert "chapters: 1 passed, 1 failed" in result.stdout
    assert (book.pages / "90_sample.ipynb").read_bytes() == before
    assert book.notebook(good).is_file()


@pytest.mark.slow
def test_only_stale_and_only_existing_chapters(book: Book) -> None:
    assert "chapters: 0 passed" in call("run", "--stale", "--root", str(book.root)).stdout
    result = call("run", "--root", str(book.root), "07")
    assert result.returncode == 1
    assert "no chapter '07'" in result.stdout


def test_rules_for_notebooks_name_the_cell() -> None:
    cell = nbformat.v4.new_code_cell("x", execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), cell])
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="UserWarning: odd"),
        nbformat.v4.new_output("stream", name="stdout", text="saved in /home/somebody/data.pt"),
        nbformat.v4.new_output("display_data", {"image/png": "A" * 600_000}),
    ]
    weight, warning, path = problems(notebook)
    assert "cell 1, image/png with 600 KB" in weight
    assert "cell 1 wrote to stderr: 'UserWarning: odd'" in warning
    assert "/home/somebody/data.pt" in path


def edit_output(notebook: NotebookNode, cell_text: str, old: str, new: str) -> None:
    """Replace text in the stored outputs of the one cell whose source contains `cell_text`."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and cell_text in c.source]
    outputs = json.dumps(cell.outputs)
    assert old in outputs
    cell.outputs = [nbformat.from_dict(output) for output in json.loads(outputs.replace(old, new))]


def broken_cells(book: Book, notebook: NotebookNode) -> set[str]:
    """The code cells that nbval finds different, numbered from 0."""
    nbformat.write(notebook, book.pages / "90_sample.ipynb")
    result = call("verify", "--root", str(book.root))
    cells = set(re.findall(r"^FAILED .*::Cell (\d+)", result.stdout, re.MULTILINE))
    assert result.returncode == (1 if cells else 0), result.stdout
    return cells


@pytest.mark.slow
def test_nbval_accepts_equal_outputs_and_changes_within_tolerance(book: Book) -> None:
    notebook = read(book)
    edit_output(notebook, "glue(", "rate  0.91", "rate  0.925")
    assert broken_cells(book, notebook) == set()


@pytest.mark.slow
def test_nbval_finds_each_kind_of_difference(book: Book) -> None:
    notebook = read(book)
    edit_output(notebook, "features", "0.25", "0.26")  # cell 3 is exact
    edit_output(notebook, "glue(", '/text/plain": "0.91"', '/text/plain": "0.95"')  # cell 4 allows 0.02
    (figure,) = [c for c in notebook.cells if c.source.startswith("plt.plot")]
    figure.outputs = []  # cell 6
    assert broken_cells(book, notebook) == {"3", "4", "6"}


def test_quick_runs_see_neither_gpu_nor_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")  # would keep figures out of the notebook
    quick = environment(Job("01", [], threads=2))
    assert (quick["CUDA_VISIBLE_DEVICES"], quick["HF_HUB_OFFLINE"], quick["OMP_NUM_THREADS"]) == (
        "",
        "1",
        "2",
    )
    assert "MPLBACKEND" not in quick
    assert "HF_HUB_OFFLINE" not in environment(Job("01", [], profile="full")).keys() - os.environ.keys()


def ends_of(jobs: list[Job], cores: int) -> list[str]:
    """Names of the jobs in the order in which they end."""
    ends: list[str] = []

    def note(job: Job, outcome: Outcome) -> None:
        ends.append(job.name)

    run_jobs(jobs, cores, lambda job, line: False, note)
    return ends


@pytest.mark.slow
def test_a_chapter_starts_when_the_one_it_needs_has_ended(tmp_path: Path) -> None:
    ready, seen = tmp_path / "ready", tmp_path / "seen"
    # the needed one comes last, takes a while and fails
    slow = f"import time, pathlib; time.sleep(0.5); pathlib.Path({str(ready)!r}).touch(); raise SystemExit(1)"
    look = (
        f"from pathlib import Path; Path({str(seen)!r} + NAME).write_text(str(Path({str(ready)!r}).exists()))"
    )
    command = [sys.executable, "-c"]
    needing = [Job(f"1{i}_b", [*command, f"NAME = '{i}'; {look}"], after="09") for i in range(2)]
    free = Job("14_c", [*command, "pass"], after="13")
    ends = ends_of([*needing, free, Job("09_a", [*command, slow])], cores=4)
    assert [(tmp_path / f"seen{i}").read_text() for i in range(2)] == ["True", "True"]
    # what is no part of the run is not waited for
    assert ends[:2] == ["14_c", "09_a"]
    assert set(ends) == {"09_a", "10_b", "11_b", "14_c"}
    # one core is enough
    assert ends_of([Job("10_b", [*command, "pass"], after="09"), Job("09_a", [*command, "pass"])], 1) == [
        "09_a",
        "10_b",
    ]


def most_at_once(tmp_path: Path, jobs: list[Job], cores: int) -> dict[str, int]:
    """By job, how many ran when it started, itself included."""
    look = (
        "import pathlib, sys, time; here = pathlib.Path(sys.argv[1]) / sys.argv[2]; here.touch(); "
        "time.sleep(0.4); print(len(list(here.parent.iterdir()))); time.sleep(0.4); here.unlink()"
    )
    tmp_path.mkdir()
    told = [replace(job, command=[sys.executable, "-c", look, str(tmp_path), job.name]) for job in jobs]
    ended = run_jobs(told, cores, lambda job, line: False, lambda job, outcome: None)
    assert not any(outcome.status for outcome in ended.values())
    return {name: int(outcome.lines[0]) for name, outcome in ended.items()}


@pytest.mark.slow
def test_chapters_run_side_by_side_as_cores_and_memory_allow(tmp_path: Path) -> None:
    two = [Job(f"0{i}_a", []) for i in range(2)]
    assert max(most_at_once(tmp_path / "cores", two, 2).values()) == 2
    assert max(most_at_once(tmp_path / "one core", two, 1).values()) == 1
    many = [replace(job, threads=9) for job in two]
    assert max(most_at_once(tmp_path / "threads", many, 2).values()) == 1
    large = [replace(job, memory_mib=10**9) for job in two]
    assert max(most_at_once(tmp_path / "memory", large, 2).values()) == 1


def test_what_others_wait_for_starts_before_what_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"02": 60, "08": 150, "09": 100, "10": 90}  # chapter 10 waits for chapter 9
    monkeypatch.setattr(provenance, "recorded", lambda notebook: {"seconds": seconds[notebook.name[:2]]})
    jobs = jobs_of(Book(), Book().sources(list(seconds)), lambda source: [])
    assert [job.name[:2] for job in jobs] == ["09", "08", "10", "02"]


@pytest.mark.slow
def test_a_chapter_that_measures_speed_runs_alone(tmp_path: Path) -> None:
    jobs = [Job("01_a", []), Job("02_b", [], alone=True), Job("03_c", []), Job("04_d", [])]
    most = most_at_once(tmp_path / "alone", jobs, 4)
    assert most["02_b"] == 1
    assert max(most.values()) == 3


@pytest.mark.slow
def test_chapters_that_wait_for_each_other_are_refused() -> None:
    jobs = [Job("08_a", [], after="09"), Job("09_b", [], after="08"), Job("01_c", [])]
    with pytest.raises(BookError, match="wait for each other: 08_a, 09_b"):
        ends_of(jobs, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "number"), [('after: "09"', "09"), ("threads: 2, after: 09", "09"), ("threads: 2", "")]
)
def test_after_is_read_from_the_front_matter(book: Book, said: str, number: str) -> None:
    source = book.root / "chapters" / SOURCE
    source.write_text(re.sub(r"^(kernelspec:.*)$", rf"\1\nbook: {{{said}}}", FRONT, flags=re.M), "utf8")
    assert after(source) == number


@pytest.mark.slow
@pytest.mark.parametrize("said", ["nine", "90"])
def test_an_after_that_is_no_other_chapter_is_refused(book: Book, said: str) -> None:
    source = book.root / "chapters" / SOURCE
    source.write_text(FRONT.replace("kernelspec", f"book: {{after: {said}}}\nkernelspec"), "utf8")
    with pytest.raises(
        BookError, match=rf"90_sample.md says after: '{said}'; expected the number of another"
    ):
        after(source)
