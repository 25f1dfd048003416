"""A chapter as notebooks of its own, in plain Markdown: for students, with solutions, for instructors.

All come from the executed notebook of the book and open with how to run them and a cell that installs the
library. *student*: the exercises' stubs as cells, no solution, no outputs. *solution*: outputs, solutions
folded, stubs as text, so that it runs to its end. *instructor*: the same with solutions open, and in front a
list of the exercises with difficulty and minutes.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pybtex.database import Entry, parse_file

from tools import claims, exercises, opening
from tools.layout import Book
from tools.notebook import is_injected
from tools.notebook import write as write_notebook
from tools.plain import Block, Names, blocks, labels, plain

KINDS = ("student", "solution", "instructor")
# what a runner of the notebook goes by
KEPT_TAGS = {"parameters", "raises-exception"}
STUBS = (
    "\n\nAn exercise fails until it is filled in. A run goes on after it; papermill tells of it at the end."
)
SOLUTIONS: dict[str, Callable[[str], str]] = {
    "student": lambda text: "",
    "solution": lambda text: f"<details><summary>Solution</summary>\n\n{text}\n\n</details>",
    "instructor": lambda text: f"**Solution.** {text}",
}


def write(book: Book, target: Path, repository: str = "") -> None:
    """Write all editions of all executed chapters to ``target/KIND/NN_name.ipynb``.

    repository: the address that their first cell installs from, "" if there is none.
    """
    names = names_of(book)
    for source, notebook in book.notebooks():
        for kind in KINDS:
            copy = edition(notebook, kind, names, source.stem, repository)
            write_notebook(copy, target / kind / f"{source.stem}.ipynb")


def names_of(book: Book) -> Names:
    """Collect citations from the bibliography, labels from all chapters; equations count within a chapter."""
    bibliography = book.root / "references.bib"
    entries = parse_file(bibliography).entries if bibliography.is_file() else {}
    names = Names({key: _cited(entry) for key, entry in entries.items()})
    for _, notebook in book.notebooks():
        numbers = itertools.count(1)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                names.labels |= labels(cell.source, numbers)
    return names


def edition(notebook: NotebookNode, kind: str, names: Names, name: str, repository: str = "") -> NotebookNode:
    """Return one edition of an executed notebook, which itself stays as it is. name: of its file."""
    glued = dict(claims.glued_in(notebook))
    copy = new_notebook(metadata={key: notebook.metadata[key] for key in ("kernelspec", "language_info")})
    copy.cells = list(_cells(notebook, kind, lambda text: plain(text, names, glued)))
    before = [new_markdown_cell(opening.about(notebook, name) + (STUBS if kind == "student" else ""))]
    before.append(new_code_cell(opening.install(notebook, repository), metadata={"tags": ["install"]}))
    if kind == "instructor":
        before.insert(0, new_markdown_cell(_plan(notebook)))
    copy.cells[1:1] = before
    for number, cell in enumerate(copy.cells):
        cell["id"] = f"cell-{number:03d}"
    return copy


def _cells(notebook: NotebookNode, kind: str, convert: Callable[[str], str]) -> Iterator[NotebookNode]:
    solving = False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if not is_injected(cell) and not (solving and kind == "student"):
                yield _code(cell, kind, solving)
            continue
        text = ""
        for block in blocks(cell.source):
            if block.kind in ("solution-start", "solution-end"):
                yield from _text(text, kind, solving, convert)
                solving, text = block.kind == "solution-start", ""
            elif block.kind == "exercise":
                yield from _text(text, kind, False, convert)
                yield from _exercise(block, kind, convert)
                text = ""
            else:
                text += f"{_source(block)}\n"
        yield from _text(text, kind, solving, convert)


def _code(cell: NotebookNode, kind: str, solving: bool) -> NotebookNode:
    """A cell of the chapter, folded where the page folds it; for readers a solution's is folded too."""
    tags = cell.metadata.get("tags", [])
    copy = new_code_cell(cell.source)
    if kind != "student":
        # what only carries a number to the text, which the text has by now, is left out
        copy.outputs = [o for o in cell.outputs if not o.get("metadata", {}).get("scrapbook")]
    if kept := [tag for tag in tags if tag in KEPT_TAGS]:
        copy.metadata["tags"] = kept
    folded = solving and kind == "solution"
    if folded or "hide-input" in tags:
        copy.metadata["jupyter"] = {"source_hidden": True, **({"outputs_hidden": True} if folded else {})}
    return copy


def _text(text: str, kind: str, solving: bool, convert: Callable[[str], str]) -> Iterator[NotebookNode]:
    """Yield Markdown of a chapter; inside a solution left out, folded or marked, as the edition wants it."""
    plain_text = convert(text).strip()
    if shown := SOLUTIONS[kind](plain_text) if solving and plain_text else plain_text:
        yield new_markdown_cell(shown)


def _exercise(block: Block, kind: str, convert: Callable[[str], str]) -> Iterator[NotebookNode]:
    """Text as Markdown; for students what is to be filled in as a cell."""
    text = f"### Exercise: {block.title}\n\n"
    for part in blocks(block.text):
        if kind == "student" and (stub := exercises.stub_of(part)) is not None:
            yield from _text(text, kind, False, convert)
            # it fails until it is filled in: a run of the whole notebook goes on after it
            yield new_code_cell(stub, metadata={"tags": ["exercise", "raises-exception"]})
            text = ""
        else:
            text += f"{_source(part)}\n"
    yield from _text(text, kind, False, convert)


def _source(block: Block) -> str:
    """A block as it stood in the chapter."""
    if block.kind in ("prose", "code"):
        return block.text
    options = "".join(f":{name}: {value}\n" for name, value in block.options.items())
    return f"``````{{{block.kind}}} {block.title}\n{options}{block.text}\n``````"


def _plan(notebook: NotebookNode) -> str:
    """The exercises of a chapter with difficulty and minutes, as a table."""
    rows = ["| exercise | difficulty | time |", "|---|---|---|"]
    rows += [f"| {e.title} | {e.difficulty} | {e.minutes} |" for e in exercises.exercises(notebook)]
    return "For instructors: the exercises of this chapter.\n\n" + "\n".join(rows)


def _cited(entry: Entry) -> str:
    """(First author et al., year), as in a text."""
    people = [
        " ".join(person.prelast_names + person.last_names) for person in entry.persons.get("author", ())
    ]
    who = people[0] + (" et al." if len(people) > 2 else f" and {people[1]}" if len(people) == 2 else "")
    return f"{who}, {entry.fields.get('year', 'n.d.')}"
