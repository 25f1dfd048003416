"""Exercises: their form, stubs that must fail with words, and the student's notebook run as a whole."""

import nbformat
import pytest
from book_tree import call, small_book
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import editions, exercises
from tools.layout import Book, BookError

PLAN = "Difficulty ●○○ · 5 minutes."
STUB = "```python\nanswer = None\ncheck_try(answer)\n```"
HEAD = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3}
---
# A chapter

```{code-cell}
:tags: [parameters]
profile = "quick"
seed = 0
```

```{code-cell}
answer, called = 42, []


def check_try(value):
    called.append(value)
    assert value == 42, f"{value} is not the answer: change the line above the check"
    print("right, after", called)
```
"""
EXERCISE = """
````{exercise} NAME
:label: ex-NAME
Difficulty ●●○ · 10 minutes. Find it.

```python
STUB
```
````

````{solution-start} ex-NAME
:class: dropdown
````

```{code-cell}
:nbval: {kind: exact}
check_try(42)
```

````{solution-end}
````
"""


def chapter(
    exercise: str = f"{PLAN} Try.\n\n{STUB}", solution: bool = True, cell: bool = True
) -> NotebookNode:
    cells = [new_markdown_cell(f"````{{exercise}} Try\n:label: ex-try\n{exercise}\n````")]
    if solution:
        cells.append(new_markdown_cell("````{solution-start} ex-try\n:class: dropdown\n````\n\nThe answer."))
        cells += [new_code_cell("check_try(42)")] if cell else []
        cells.append(new_markdown_cell("````{solution-end}\n````"))
    return new_notebook(cells=cells)


def test_form_of_a_good_exercise() -> None:
    (found,) = exercises.exercises(chapter())
    assert found == exercises.Exercise(
        "ex-try", "Try", "●○○", "5 minutes", "answer = None\ncheck_try(answer)"
    )


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (chapter(f"Try.\n\n{STUB}"), r"exercise ex-try begins 'Try\.'.*Difficulty ●○○ · 5 minutes"),
        (chapter(f"Difficulty ○●○ · 5 minutes. Try.\n\n{STUB}"), "begins 'Difficulty ○●○"),
        (chapter(f"Difficulty ●○○ · five minutes. Try.\n\n{STUB}"), "begins 'Difficulty ●○○ · five"),
        (chapter(f"{PLAN} Try."), "ex-try has 0 ```python fences"),
        (chapter(f"{PLAN} Try.\n\n{STUB}\n\n{STUB}"), "ex-try has 2 ```python fences"),
        (chapter(solution=False), "ex-try has no solution"),
        (chapter(cell=False), "ex-try has no code cell in its solution"),
        (
            new_notebook(
                cells=[
                    *chapter(solution=False).cells,
                    new_markdown_cell(":::{solution} ex-try\nIt is 42.\n:::"),
                    new_code_cell("check_try(42)"),
                ]
            ),
            "ex-try has no code cell in its solution",
        ),
        (new_notebook(cells=chapter().cells[1:]), "names 'ex-try', which is no exercise"),
        (new_notebook(cells=chapter().cells + chapter().cells), "ex-try comes twice"),
    ],
)
def test_form_that_is_refused(broken: NotebookNode, told: str) -> None:
    with pytest.raises(BookError, match=told):
        exercises.exercises(broken)


def run(book: Book, stubs: dict[str, str]) -> tuple[str, str]:
    """Standard output of the run, and the notebook's text, "" where none was written."""
    source = book.root / "chapters" / "90_sample.md"
    sections = (EXERCISE.replace("NAME", name).replace("STUB", stub) for name, stub in stubs.items())
    source.write_text(HEAD + "".join(sections), "utf8")
    result = call("run", "--root", str(book.root))
    path = book.notebook(source)
    assert path.is_file() == (result.returncode == 0), result.stdout
    return result.stdout, path.read_text("utf8") if path.is_file() else ""


@pytest.mark.slow
def test_what_stubs_say_is_recorded_and_nothing_else(tmp_path) -> None:
    """Each stub runs in the chapter's kernel on names of its own, and leaves no trace in them."""
    book = small_book(tmp_path)
    told, text = run(
        book, {"one": "answer = None\ncheck_try(answer)", "two": "check_try(answer - called[0])"}
    )
    notebook = nbformat.reads(text, as_version=4)
    help_ = "is not the answer: change the line above the check"
    # the second sees 42 for answer and for the chapter's first call: the first stub's None is gone
    assert dict(notebook.metadata.exercises) == {"ex-one": f"None {help_}", "ex-two": f"0 {help_}"}, told
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"][-1] == "check_try(42)"
    assert notebook.cells[-1].source.startswith("````{solution-end}")
    assert "right, after [42, 42]" in text
    assert "__outcome" not in text
    assert "chapters: 1 passed" in call("verify", "--root", str(book.root)).stdout
    assert call("editions", "--root", str(book.root)).returncode == 0
    kinds = {path.parent.name for path in (tmp_path / "_build" / "editions").glob("*/90_sample.ipynb")}
    assert kinds == set(editions.KINDS)


@pytest.mark.slow
def test_stubs_that_prove_nothing_fail_the_chapter(tmp_path) -> None:
    stubs = {
        "good": "check_try(0)",
        "passes": "check_try(answer)",
        "crashes": "check_try(1 + None)",
        "unknown": "no_such_check()",
        "mute": "assert False",
        "leaves": "raise SystemExit(3)",
        "broken": "check_try(",
    }
    told, _ = run(small_book(tmp_path), stubs)
    assert "exercise ex-passes: its stub, run as it is, passes" in told
    assert "exercise ex-crashes: its stub, run as it is, raises TypeError: unsupported operand" in told
    assert "exercise ex-unknown: its stub, run as it is, raises NameError: name 'no_such_check'" in told
    assert "exercise ex-mute: its stub, run as it is, fails without a message" in told
    assert "exercise ex-leaves: its stub, run as it is, raises SystemExit: 3" in told
    assert "exercise ex-broken: its stub, run as it is, raises SyntaxError" in told
    assert "ex-good" not in told


@pytest.mark.slow
def test_a_wrong_solution_fails_the_chapter(tmp_path) -> None:
    book = small_book(tmp_path)
    source = book.root / "chapters" / "90_sample.md"
    text = HEAD + EXERCISE.replace("NAME", "one").replace("STUB", "check_try(0)")
    source.write_text(text.replace("check_try(42)", "check_try(41)"), "utf8")
    result = call("run", "--root", str(book.root))
    assert result.returncode == 1
    assert "AssertionError: 41 is not the answer" in result.stdout


@pytest.mark.parametrize("source", Book().sources(), ids=lambda source: source.stem)
def test_chapters_have_two_to_five_exercises_each_proved(source) -> None:
    notebook = nbformat.read(Book().notebook(source), as_version=4)
    of_chapter = exercises.exercises(notebook)
    assert 2 <= len(of_chapter) <= 5
    recorded = notebook.metadata.get("exercises", {})
    assert set(recorded) == {exercise.label for exercise in of_chapter}
    assert all(message.strip() for message in recorded.values())
