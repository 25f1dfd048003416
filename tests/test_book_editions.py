"""Notebooks for outside the book: no MyST left, no solution for students, code untouched."""

import itertools
import re

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import editions
from tools.layout import Book
from tools.plain import Names, PlainError, blocks, labels, plain

NAMES = Names(
    {"chen": "Chen et al., 2025", "gao": "Gao, 2024"}, {"eq-a": "(1)", "def-b": "definition “Rate”"}
)
GLUED = {"rate": 0.9141, "n": 3}
MYST = re.compile(r"\{[a-z:-]+\}`[^`]*`|^[>\s]*(?:`{3,}|:{3,})\{|^\([\w-]+\)=$|\.md\)", re.MULTILINE)


def convert(text: str, solution: str = "solution") -> str:
    return plain(text, NAMES, GLUED, editions.SOLUTIONS[solution])


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("{glue:text}`rate:.2f` of {glue:text}`n`", "0.91 of 3"),
        ("found {cite}`chen,gao`.", "found (Chen et al., 2025; Gao, 2024)."),
        ("by {prf:ref}`def-b` and {eq}`eq-a`", "by definition “Rate” and (1)"),
        ("see {ref}`chapter 3 <def-b>`", "see chapter 3"),
        ("see [all](questions.md#x) and [it](05_x.ipynb)", "see all and [it](05_x.ipynb)"),
        ("`{cite}` and ``a `b` {glue:text}`` stay", "`{cite}` and ``a `b` {glue:text}`` stay"),
        ("$$ a = b $$ (eq-a)", "$$ a = b \\tag{1} $$"),
        ("(def-b)=\n## Rates", "## Rates"),
        (":::{admonition} Take {glue:text}`n`\nall\n\n- of it\n:::", "> **Take 3**\n>\n> all\n>\n> - of it"),
        ("```{prf:definition} Rate\n:label: def-b\n$x$ is it.\n```", "> **Definition** (Rate). $x$ is it."),
        (":::{prf:proof}\nClear.\n:::", "*Proof.* Clear. ∎"),
        ("```{math}\n:label: eq-a\na\n```", "$$a \\tag{1} $$"),
        ("````{exercise} Try\n:label: e\nDo\n```python\nf({cite})\n```\n````",
         "### Exercise: Try\n\nDo\n```python\nf({cite})\n```"),
    ],
)  # fmt: skip
def test_plain_form(myst: str, expected: str) -> None:
    assert convert(myst).strip() == expected


def test_solutions_go_where_the_edition_wants_them() -> None:
    myst = "Before\n\n:::{solution} e\n:class: dropdown\nIt is 42.\n:::\n\nAfter"
    assert "42" not in convert(myst, "student")
    assert "<details><summary>Solution</summary>\n\nIt is 42." in convert(myst, "solution")
    assert "**Solution.** It is 42." in convert(myst, "instructor")
    assert all("After" in convert(myst, kind) for kind in editions.KINDS)


@pytest.mark.parametrize("myst", ["```{tableofcontents}\n```", "{term}`GBA`", "{glue:text}`nothing`"])
def test_what_has_no_plain_form_is_refused_by_name(myst: str) -> None:
    with pytest.raises(PlainError, match=r"tableofcontents|term|nothing"):
        convert(myst)


def test_labels_number_equations_and_name_theorems() -> None:
    text = "$$ a $$ (one)\n\n:::{prf:lemma} Small\n:label: lem\n$$ b $$ (two)\n:::\n\n(here)=\n## A place"
    found = labels(text, itertools.count(1))
    assert found == {"one": "(1)", "lem": "lemma “Small”", "two": "(2)", "here": "“A place”"}


def gated() -> NotebookNode:
    """A chapter whose solution runs over cells."""
    cells = [
        new_markdown_cell("# Title\n"),
        new_markdown_cell(
            "````{exercise} Try\n:label: e\nDifficulty ●○○ · 5 minutes. Now:\n```python\nstub()\n```\n````"
        ),
        new_markdown_cell("````{solution-start} e\n````\n\nThe secret."),
        new_code_cell("secret()", outputs=[]),
        new_markdown_cell("````{solution-end}\n````\n\nThe end."),
    ]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    return new_notebook(cells=cells, metadata=metadata)


def test_a_solution_over_several_cells() -> None:
    made = {kind: editions.edition(gated(), kind, NAMES) for kind in editions.KINDS}
    texts = {kind: "\n".join(cell.source for cell in notebook.cells) for kind, notebook in made.items()}
    assert "secret" not in texts["student"]
    assert "stub()" in texts["student"]
    assert "The end." in texts["student"]
    assert texts["solution"].index("The secret.") < texts["solution"].index("secret()")
    assert "| Try | ●○○ | 5 minutes |" in texts["instructor"]


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[NotebookNode, dict[str, NotebookNode]]]:
    """All committed chapters with their editions."""
    book = Book()
    names, found = editions.names_of(book), {}
    for source in book.sources():
        notebook = nbformat.read(book.notebook(source), as_version=4)
        found[source.stem] = notebook, {k: editions.edition(notebook, k, names) for k in editions.KINDS}
    return found


def test_no_myst_is_left_in_any_chapter(made: dict) -> None:
    for name, (_, kinds) in made.items():
        for kind, notebook in kinds.items():
            nbformat.validate(notebook)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
                    assert not MYST.search(prose), f"{name}, {kind}: {MYST.search(prose)}"


def test_students_get_every_exercise_and_no_solution(made: dict) -> None:
    for name, (notebook, kinds) in made.items():
        student = "\n".join(cell.source for cell in kinds["student"].cells)
        solution = "\n".join(cell.source for cell in kinds["solution"].cells)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        titles = [block.title for block in blocks(text) if block.kind == "exercise"]
        assert titles, f"{name} has no exercise"
        assert student.count("### Exercise: ") == len(titles)
        # what stands in the one and not in the other is the solution; none of its lines is left
        for block in blocks(text):
            if block.kind == "solution":
                for line in block.text.split("\n"):
                    if len(line) > 40 and not re.search(r"[`{$]|^def ", line):  # a stub has the first line
                        assert line not in student, f"{name}: {line}"
                        assert line in solution, f"{name}: {line}"
        assert not any(cell.get("outputs") for cell in kinds["student"].cells)


def test_code_of_a_chapter_is_untouched(made: dict) -> None:
    for name, (notebook, kinds) in made.items():
        kept = [
            c.source for c in kinds["solution"].cells if c.cell_type == "code" and not c.metadata.get("tags")
        ]
        own = [
            c.source for c in notebook.cells
            if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", ())
        ]  # fmt: skip
        assert kept == own, name
