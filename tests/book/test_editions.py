"""Notebooks for outside the book: no MyST left, no solution for students, code untouched."""

import ast
import itertools
import json
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import sae_lib
from tools import editions, opening
from tools.layout import REPOSITORY, Book, BookError
from tools.plain import Names, blocks, labels, plain

NAMES = Names(
    {"chen": "Chen et al., 2025", "gao": "Gao, 2024"}, {"eq-a": "(1)", "def-b": "definition “Rate”"}
)
GLUED = {"rate": 0.9141, "n": 3}
MYST = re.compile(r"\{[a-z:-]+\}`[^`]*`|^[>\s]*(?:`{3,}|:{3,})\{|^\([\w-]+\)=$|\.md\)", re.MULTILINE)


def convert(text: str) -> str:
    return plain(text, NAMES, GLUED)


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("{glue:text}`rate:.2f` of {glue:text}`n`", "0.91 of 3"),
        ("found {cite}`chen,gao`.", "found (Chen et al., 2025; Gao, 2024)."),
        ("by {prf:ref}`def-b` and {eq}`eq-a`", "by definition “Rate” and (1)"),
        ("{term}`GBA` has {term}`latents <latent>`", "GBA has latents"),
        ("see {ref}`chapter 3 <def-b>`", "see chapter 3"),
        ("a {index}`gate` is {index}`tied <tied weights>`", "a gate is tied"),
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


@pytest.mark.parametrize(
    "myst", ["```{tableofcontents}\n```", "{doc}`GBA`", "{glue:text}`nothing`", ":::{solution} e\n42\n:::"]
)
def test_what_has_no_plain_form_is_refused_by_name(myst: str) -> None:
    with pytest.raises(BookError, match=r"tableofcontents|doc|nothing|solution"):
        convert(myst)


def test_labels_number_equations_and_name_theorems() -> None:
    text = "$$ a $$ (one)\n\n:::{prf:lemma} Small\n:label: lem\n$$ b $$ (two)\n:::\n\n(here)=\n## A place"
    found = labels(text, itertools.count(1))
    assert found == {"one": "(1)", "lem": "lemma “Small”", "two": "(2)", "here": "“A place”"}


def gated() -> NotebookNode:
    """A chapter whose solution runs over cells."""
    printed = new_output("stream", name="stdout", text="hidden 42")
    cells = [
        new_markdown_cell(
            "# Title\n\n:::{admonition} In this chapter\nAll.\n\n**You need** wit. **Time** 5 minutes "
            "to read,\na second to run. Memory 3 GB.\n**Exercises** 1.\n:::"
        ),
        new_code_cell(
            'profile = "quick"\nseed = 0\nlayers = [1, 2]  # blocks to look at\n'
            'model = "smol"  # hub id, or folder',
            metadata={"tags": ["parameters"]},
        ),
        new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("def check(x): ...", metadata={"tags": ["hide-input"]}),
        new_markdown_cell(
            "````{exercise} Try\n:label: e\nDifficulty ●○○ · 5 minutes. Now:\n\n```python\nstub()\n```\n````"
        ),
        new_markdown_cell("````{solution-start} e\n:class: dropdown\n````\n\nThe secret."),
        new_code_cell("secret()", outputs=[printed]),
        new_markdown_cell("More of it.\n\n````{solution-end}\n````\n\nThe end."),
    ]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    return new_notebook(cells=cells, metadata=metadata)


def text_of(notebook: NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells)


def cell_with(notebook: NotebookNode, text: str) -> NotebookNode:
    (cell,) = [cell for cell in notebook.cells if text in cell.source]
    return cell


def test_a_solution_goes_where_the_edition_wants_it() -> None:
    by_kind = {kind: editions.edition(gated(), kind, NAMES, "01_title") for kind in editions.KINDS}
    student, solution, instructor = by_kind.values()
    assert not re.search("secret|More of it|hidden 42|Solution", json.dumps(student))
    assert "The end." in text_of(student)
    assert cell_with(student, "stub()").metadata.tags == ["exercise", "raises-exception"]
    texts = [text_of(solution), text_of(instructor)]
    assert "<details><summary>Solution</summary>\n\nThe secret.\n\n</details>" in texts[0]
    assert "**Solution.** The secret." in texts[1]
    for notebook, text in zip((solution, instructor), texts, strict=True):
        assert text.index("The secret.") < text.index("secret()") < text.index("More of it.")
        assert "```python\nstub()\n```" in text  # as text: the notebook runs to its end
        assert "hidden 42" in json.dumps(cell_with(notebook, "secret()").outputs)
        assert cell_with(notebook, "The end.").source == "The end."
    folded = {"source_hidden": True, "outputs_hidden": True}
    assert cell_with(solution, "secret()").metadata.jupyter == folded
    assert "jupyter" not in cell_with(instructor, "secret()").metadata
    assert cell_with(student, "def check").metadata.jupyter == {"source_hidden": True}
    assert "| Try | ●○○ | 5 minutes |" in texts[1]


@pytest.mark.parametrize("kind", editions.KINDS)
def test_an_edition_says_how_to_run_it(kind: str) -> None:
    notebook = editions.edition(gated(), kind, NAMES, "01_title")
    about = cell_with(notebook, "## To run this notebook").source
    assert "| `layers` | `[1, 2]` | blocks to look at |" in about
    assert '| `model` | `"smol"` | hub id, or folder |' in about
    assert re.search(r"\| `profile` \| `\"quick\"` \| .*full", about)
    assert "papermill 01_title.ipynb out.ipynb -p seed 1" in about
    assert about.count("**Time** 5 minutes to read, a second to run. Memory 3 GB.") == 1
    assert "Exercises**" not in about
    assert f"`sae_lib` {sae_lib.__version__}" in about
    # papermill sets parameters after the cell that is tagged so
    assert cell_with(notebook, "profile =").metadata.tags == ["parameters"]
    assert notebook.cells[0].source.startswith("# Title")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["install"]


@pytest.fixture(scope="module")
def chapter_editions() -> dict[str, tuple[NotebookNode, dict[str, NotebookNode]]]:
    """All committed chapters with their editions."""
    book = Book()
    names, chapters = editions.names_of(book), {}
    for source in book.sources():
        notebook = nbformat.read(book.notebook(source), as_version=4)
        by_kind = {kind: editions.edition(notebook, kind, names, source.stem) for kind in editions.KINDS}
        chapters[source.stem] = notebook, by_kind
    return chapters


def test_no_myst_is_left_in_any_chapter(chapter_editions: dict) -> None:
    for name, (_, kinds) in chapter_editions.items():
        for kind, notebook in kinds.items():
            nbformat.validate(notebook)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
                    assert not MYST.search(prose), f"{name}, {kind}: {MYST.search(prose)}"


def parts(notebook: NotebookNode) -> tuple[list[str], list[str]]:
    """The lines of a chapter outside and inside of its solutions, as they stand in its cells."""
    outside, inside = list[str](), list[str]()
    solving = False
    for cell in notebook.cells:
        for line in cell.source.split("\n"):
            if "{solution-start}" in line:
                solving = True
            (inside if solving else outside).append(line.strip())
            if "{solution-end}" in line:
                solving = False
    return outside, inside


def test_students_get_every_exercise_and_no_solution(chapter_editions: dict) -> None:
    for name, (notebook, kinds) in chapter_editions.items():
        student, solution = text_of(kinds["student"]), text_of(kinds["solution"])
        chapter = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        titles = [block.title for block in blocks(chapter) if block.kind == "exercise"]
        assert titles, f"{name} has no exercise"
        assert student.count("### Exercise: ") == len(titles)
        stubs = [c for c in kinds["student"].cells if "exercise" in c.metadata.get("tags", ())]
        assert len(stubs) == len(titles)
        outside, inside = parts(notebook)
        given = "\n".join(outside)
        # text with MyST in it is written otherwise in an edition
        telling = [
            line for line in set(inside)
            if len(line) > 25 and line not in given and not re.search(r"\{.+\}|\]\(", line)
        ]  # fmt: skip
        assert len(telling) > len(titles), name
        for line in telling:
            assert line not in student, f"{name}: {line}"
            assert line in solution, f"{name}: {line}"
        assert not any(cell.get("outputs") for cell in kinds["student"].cells)


def test_code_of_a_chapter_is_untouched(chapter_editions: dict) -> None:
    for name, (notebook, kinds) in chapter_editions.items():
        kept = [
            cell.source for cell in kinds["solution"].cells
            if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", ())
        ]  # fmt: skip
        own = [
            c.source for c in notebook.cells
            if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", ())
        ]  # fmt: skip
        assert kept == own, name


def names(source: str, kind: type[ast.expr_context]) -> set[str]:
    """The names that some Python sets (ast.Store), definitions and imports included, or reads (ast.Load)."""
    result = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, kind):
            result.add(node.id)
        elif kind is ast.Store and isinstance(node, ast.FunctionDef | ast.ClassDef | ast.arg | ast.alias):
            name = node.arg if isinstance(node, ast.arg) else node.name
            result.add((getattr(node, "asname", None) or name).partition(".")[0])
    return result


def test_students_have_all_that_their_cells_need(chapter_editions: dict) -> None:
    """No cell outside of the solutions reads what only a solution defines."""
    for name, (notebook, kinds) in chapter_editions.items():
        code = [cell.source for cell in kinds["student"].cells if cell.cell_type == "code"]
        defined = set[str]().union(*(names(source, ast.Store) for source in code))
        needed = set[str]().union(*(names(source, ast.Load) for source in code))
        everything = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        solved = set[str]().union(*(names(source, ast.Store) for source in everything)) - defined
        assert not needed & solved, f"{name}: {needed & solved}"


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Every cell in order, stopped by an error that the cell's tags do not allow."""
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    return client.execute()


@pytest.mark.slow
def test_a_students_notebook_runs_as_a_whole(chapter_editions: dict, tmp_path: Path) -> None:
    """Downloaded to some folder and run untouched: its stubs, and they alone, fail, by an AssertionError."""
    name, (_, kinds) = next(iter(chapter_editions.items()))
    assert name.startswith("01")
    failed = 0
    for cell in run(kinds["student"], tmp_path).cells:
        errors = [output for output in cell.get("outputs", ()) if output.output_type == "error"]
        assert bool(errors) == ("exercise" in cell.metadata.get("tags", ())), cell.source
        failed += len(errors)
        assert all(error.ename == "AssertionError" for error in errors)
    assert failed >= 2


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A kernel without the library, in an empty folder; returns what pip would have been asked to install."""
    asked: list[list[str]] = []
    real = subprocess.run

    def find_spec(name: str) -> ModuleSpec | None:
        return PathFinder.find_spec(
            name, [entry for entry in sys.path if Path(entry).name.startswith("sae-v")]
        )

    def run_all_but_pip(command: list, **options: bool) -> None:
        if "pip" in command:
            asked.append([str(part) for part in command[command.index("-q") + 1 :]])
        else:
            real(command, **options)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    monkeypatch.setattr(subprocess, "run", run_all_but_pip)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    return asked


def release(folder: Path) -> str:
    """A repository with the library and a record, whose last commit is not the release."""
    for name in ("sae_lib/__init__.py", "book/records/04_record.json", "requirements-data.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    tag = f"v{sae_lib.__version__}"
    user = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    for command in (("init", "-q"), ("add", "."), (*user, "commit", "-qm", "1"), ("tag", tag)):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    (folder / "book" / "later").write_text("")
    for command in (("add", "."), (*user, "commit", "-qm", "2")):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder.as_uri()


@pytest.mark.parametrize("language", [True, False])
def test_first_cell_installs_the_release(bare: list, tmp_path: Path, language: bool) -> None:
    notebook = gated()
    if language:
        notebook.metadata["provenance"] = {"library_modules": ["sae_lib.language_models"]}
    source = opening.install(notebook, release(tmp_path / "there"))
    exec(source, {})
    clone = tmp_path / f"sae-v{sae_lib.__version__}"
    extras = "gguf,notebooks" if language else "notebooks"
    data = ["--no-deps", "-r", str(clone / "requirements-data.lock")]
    assert bare == [["-e", f"{clone}[{extras}]"], *([data] if language else [])]
    # in the folder of the book, at the release: the chapters' `records/` are there
    assert Path.cwd() == clone / "book"
    assert [path.name for path in Path().iterdir()] == ["records"]
    exec(source, {})  # the second time there is nothing to do
    assert len(bare) == 1 + language


def test_first_cell_without_an_address_says_how_to_install(bare: list) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"Clone the book's repository.*pip install -e \."):
        exec(opening.install(gated(), ""), {})
    assert not bare


def test_first_cell_does_nothing_but_go_to_the_book_where_the_library_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    exec(opening.install(gated(), "https://github.com/a/b"), {})
    assert Path.cwd() == REPOSITORY / "book"
