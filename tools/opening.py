"""What a notebook outside of the book begins with: how to run it, and a cell that installs the library.

The Markdown takes parameters from the cell tagged `parameters` (name, default, comment) and time, memory and
disk from the box *In this chapter*. The cell does nothing but go to the book's folder, where the records lie
that chapters show, if the library is there; else it installs the version the notebook was made with.
"""

import ast
import re

from nbformat import NotebookNode

import sae_lib
from tools.layout import template

TAG = f"v{sae_lib.__version__}"
KNOWN = {
    "profile": '`"quick"` is what the page shows; `"full"` the same with more seeds and finer grids: '
    "minutes to hours, for language models on a GPU",
    "seed": "of all that is random; the text tells what came out with 0",
}
# The box, from the time on: what a run needs. What a reader needs stands in front of it.
NEEDS = re.compile(r"(\*\*Time\*\*.+?)(?=\s*\*\*Exercises\*\*|\n:::|\n```|\Z)", re.DOTALL)


def install(notebook: NotebookNode, repository: str) -> str:
    """Return the source of the cell that installs. repository: its address, "" where there is none."""
    reached = notebook.metadata.get("provenance", {}).get("library_modules", ())
    # a chapter whose code reaches this package needs the packages that hold model and texts
    language = any(module.startswith("sae_lib.language_models") for module in reached)
    return template("install.py.jinja").render(tag=TAG, repository=repository, language=language).rstrip()


def about(notebook: NotebookNode, name: str) -> str:
    """Return Markdown: what can be set, how to run the notebook, what a run needs. name: of its file."""
    box = next((box[1] for cell in notebook.cells if (box := NEEDS.search(cell.source))), "")
    shown, needs = parameters(notebook), " ".join(box.split())
    values = {"parameters": shown, "name": name, "version": sae_lib.__version__, "needs": needs}
    return template("opening.md").render(values).rstrip()


def parameters(notebook: NotebookNode) -> list[tuple[str, str, str]]:
    """Return (name, default as Python, comment) of each line of the cell tagged `parameters`."""
    rows = []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            lines = cell.source.split("\n")
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    name, default = node.targets[0].id, ast.unparse(node.value).replace("'", '"')
                    after = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :].decode()
                    rows.append((name, default, after.strip().lstrip("# ") or KNOWN.get(name, "")))
    return rows
