"""A chapter as notebooks of its own, in plain Markdown: for students, with solutions, for instructors.

All come from the executed notebook of the book. *student*: exercises with their stubs as cells, no solution,
no outputs. *solution*: outputs, solutions folded. *instructor*: solutions open, and a list of the exercises
with difficulty and minutes in front.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from pybtex.database import Entry, parse_file

from tools import claims
from tools.layout import Book
from tools.notebook import write as write_notebook
from tools.plain import Block, Names, blocks, labels, plain

KINDS = ("student", "solution", "instructor")
PLAN = re.compile(r"(Difficulty [●○]+) · (\d+ minutes)")
SOLUTIONS: dict[str, Callable[[str], str]] = {
    "student": lambda text: "",
    "solution": lambda text: f"<details><summary>Solution</summary>\n\n{text.strip()}\n\n</details>",
    "instructor": lambda text: f"**Solution.** {text.strip()}",
}


def write(book: Book, target: Path) -> None:
    """Write all editions of all executed chapters to ``target/KIND/NN_name.ipynb``."""
    names = names_of(book)
    for source in book.sources():
        if book.notebook(source).is_file():
            notebook = nbformat.read(book.notebook(source), as_version=4)
            for kind in KINDS:
                write_notebook(edition(notebook, kind, names), target / kind / f"{source.stem}.ipynb")


def names_of(book: Book) -> Names:
    """Citations from the bibliography, labels from all chapters; equations count within a chapter."""
    bibliography = book.root / "references.bib"
    entries = parse_file(bibliography).entries if bibliography.is_file() else {}
    names = Names({key: _cited(entry) for key, entry in entries.items()})
    for source in book.sources():
        if book.notebook(source).is_file():
            notebook = nbformat.read(book.notebook(source), as_version=4)
            numbers = itertools.count(1)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    names.labels |= labels(cell.source, numbers)
    return names


def edition(notebook: NotebookNode, kind: str, names: Names) -> NotebookNode:
    """One edition of an executed notebook; the notebook itself stays as it is."""
    glued = dict(claims.glued_in(notebook))
    made = nbformat.v4.new_notebook(
        metadata={k: notebook.metadata[k] for k in ("kernelspec", "language_info")}
    )
    made.cells = list(_cells(notebook, kind, lambda text: plain(text, names, glued, SOLUTIONS[kind])))
    if kind == "instructor":
        made.cells.insert(1, new_markdown_cell(_plan(notebook)))
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number:03d}"
    return made


def _cells(notebook: NotebookNode, kind: str, convert: Callable[[str], str]) -> Iterator[NotebookNode]:
    solving = False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            hidden = solving and kind == "student"
            if not hidden and "injected-parameters" not in cell.metadata.get("tags", ()):
                outputs = [] if kind == "student" else [o for o in cell.outputs if not _glue_only(o)]
                yield new_code_cell(cell.source, outputs=outputs)
            continue
        text = ""
        for block in blocks(cell.source):
            if block.kind == "solution-start":
                solving = True
                text += "" if kind == "student" else "\n\n**Solution.**\n\n"
            elif block.kind == "solution-end":
                solving = False
            elif solving and kind == "student":
                continue
            elif block.kind == "exercise":
                yield from _markdown(text, convert)
                yield from _exercise(block, convert)
                text = ""
            else:
                text += f"{_source(block)}\n"
        yield from _markdown(text, convert)


def _exercise(block: Block, convert: Callable[[str], str]) -> Iterator[NotebookNode]:
    """Text as Markdown, what is to be filled in as cells."""
    text = f"### Exercise: {block.title}\n\n"
    for part in blocks(block.text):
        if part.kind == "code" and part.text.startswith("```python"):
            yield from _markdown(text, convert)
            yield new_code_cell("\n".join(part.text.split("\n")[1:-1]), metadata={"tags": ["exercise"]})
            text = ""
        else:
            text += f"{_source(part)}\n"
    yield from _markdown(text, convert)


def _markdown(text: str, convert: Callable[[str], str]) -> Iterator[NotebookNode]:
    if made := convert(text).strip():
        yield new_markdown_cell(made)


def _source(block: Block) -> str:
    """A block as it stood in the chapter."""
    if block.kind in ("prose", "code"):
        return block.text
    options = "".join(f":{name}: {value}\n" for name, value in block.options.items())
    return f"``````{{{block.kind}}} {block.title}\n{options}{block.text}\n``````"


def _glue_only(output: NotebookNode) -> bool:
    """Whether an output only carries a number to the text, which the text has by now."""
    return bool(output.get("metadata", {}).get("scrapbook"))


def _plan(notebook: NotebookNode) -> str:
    """The exercises of a chapter with difficulty and minutes, as a table."""
    rows = ["| exercise | difficulty | time |", "|---|---|---|"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for block in blocks(cell.source):
                if block.kind == "exercise" and (plan := PLAN.search(block.text)):
                    rows.append(f"| {block.title} | {plan[1].removeprefix('Difficulty ')} | {plan[2]} |")
    return "For instructors: the exercises of this chapter.\n\n" + "\n".join(rows)


def _cited(entry: Entry) -> str:
    """(First author et al., year), as in a text."""
    people = [
        " ".join(person.prelast_names + person.last_names) for person in entry.persons.get("author", ())
    ]
    who = people[0] + (" et al." if len(people) > 2 else f" and {people[1]}" if len(people) == 2 else "")
    return f"{who}, {entry.fields.get('year', 'n.d.')}"
