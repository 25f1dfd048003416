"""What may stand in a committed notebook: cleaning a fresh run, and the rules it has to keep."""

import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from sae_lib.files.atomic import replacing
from sae_lib.plotting import small_png
from tools.layout import REPOSITORY

MAX_BYTES = 500_000
WIDGET = "application/vnd.jupyter.widget-view+json"
GLUED = "application/papermill.record/text/plain"
# not inside a word or a version: "layer2" and the last part of "3.11.7" are text
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
# how NumPy shows a number: np.float64(0.5)
NUMPY = re.compile(r"^np\.\w+\(([^()]*)\)$")
# places where files of one machine lie; a relative path or an address of a web page does not match
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/])(?:/(?:home|root|Users|tmp|private|mnt|workspace|content)/|[A-Z]:\\Users\\)[^\s\"'<>]*"
)


def clean(notebook: NotebookNode) -> None:
    """Remove, in place, what differs from run to run or belongs to one machine."""
    for key in ("papermill", "jupytext", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if is_injected(cell):
            # the notebook runs with it; on the page it would only repeat the cell above
            cell.metadata["tags"] = ["injected-parameters", "remove-cell"]
        if "outputs" in cell:
            cell["outputs"] = joined(cell.outputs)
            for output in cell.outputs:
                if GLUED in output.get("data", {}):
                    output.data[GLUED] = plain_number(output.data[GLUED])
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without progress bars of other packages, and what one stream printed in a row as one output.

    Nothing moves on a page, and when a kernel flushes a stream is chance.
    """
    kept: list[NotebookNode] = []
    for output in outputs:
        if WIDGET in output.get("data", {}):
            continue
        stream = output.get("name") if output.output_type == "stream" else None
        if stream and kept and kept[-1].get("name") == stream:
            kept[-1] = NotebookNode({**kept[-1], "text": kept[-1].text + output.text})
        else:
            kept.append(output)
    return kept


def is_injected(cell: NotebookNode) -> bool:
    """Whether papermill put the cell in, to set the parameters."""
    return "injected-parameters" in cell.metadata.get("tags", [])


def code_of_cells(notebook: NotebookNode) -> list[str]:
    """The sources of the code cells, without what papermill put in."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code" and not is_injected(cell)]


def lighten(notebook: NotebookNode) -> None:
    """Draw figures of a notebook that is too heavy coarser, in place: 1.5 pixels for 2, the largest first."""
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "width" in output.get("metadata", {}).get("image/png", {})
    ]
    for figure in sorted(figures, key=lambda output: -len(output.data["image/png"])):
        if _size(notebook) <= MAX_BYTES:
            return
        fine = Image.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))).convert("RGB")
        width = round(1.5 * figure.metadata["image/png"]["width"])
        coarse = fine.resize((width, round(fine.height * width / fine.width)), Image.Resampling.LANCZOS)
        figure.data["image/png"] = base64.b64encode(small_png(coarse)).decode()


def plain_number(text: str) -> str:
    """A glued value without NumPy's name for its type, so that the text can format it."""
    return NUMPY.sub(r"\1", text)


def is_image(kind: str) -> bool:
    """Whether a MIME type is that of a figure, glued or not."""
    return kind.startswith(("image/", "application/papermill.record/image/"))


def parts(output: NotebookNode) -> dict[str, str]:
    """What an output shows, by kind: a stream's name, a MIME type (glued values too), or an error."""
    if output.output_type == "stream":
        return {output.name: output.text}
    if output.output_type == "error":
        return {"error": f"{output.ename}: {output.evalue}"}
    return {
        kind: plain_number(content) if kind == GLUED else str(content)
        for kind, content in output.data.items()
    }


def write(notebook: NotebookNode, path: Path) -> None:
    """Write in one step, so that a page is never half written."""
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)


def problems(notebook: NotebookNode) -> list[str]:
    """The rules that a notebook breaks: weight, kinds of numbers, paths of a machine, errors and warnings."""
    return [*_too_heavy(notebook), *_unmarked(notebook), *_noise(notebook), *_paths(notebook)]


def _too_heavy(notebook: NotebookNode) -> Iterator[str]:
    size = _size(notebook)
    if size > MAX_BYTES:
        weights = {
            f"cell {number}, {kind}": len(json.dumps(content))
            for number, _, kind, content in _contents(notebook)
        }
        largest = max(weights, key=lambda place: weights[place], default="its source")
        yield (
            f"it weighs {size // 1000} KB, at most {MAX_BYTES // 1000} KB are allowed; the largest output is "
            f"{largest} with {weights.get(largest, 0) // 1000} KB: draw it smaller or with fewer points"
        )


def _unmarked(notebook: NotebookNode) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        if "nbval" in cell.metadata or "nbval-ignore-output" in cell.metadata.get("tags", []):
            continue
        shown = [
            text for output in cell.outputs for kind, text in parts(output).items() if not is_image(kind)
        ]
        if any(NUMBER.search(text) for text in shown if not text.startswith("<Figure")):
            yield (
                f"cell {number} shows numbers and does not say of which kind they are: add nbval: "
                "{kind: exact}, {kind: rounding} or {kind: trained, abs: …} to its metadata"
            )


def _size(notebook: NotebookNode) -> int:
    return len(nbformat.writes(notebook).encode())


def _noise(notebook: NotebookNode) -> Iterator[str]:
    for number, cell, kind, content in _contents(notebook):
        tags = cell.metadata.get("tags", [])
        if kind == "stderr":
            yield f"cell {number} wrote to stderr: {content.strip()[:300]!r}; silence its cause"
        if kind == "error" and "raises-exception" not in tags:
            yield f"cell {number} holds an error: {content[:300]!r}"


def _paths(notebook: NotebookNode) -> Iterator[str]:
    here = [str(path) for path in (REPOSITORY, Path.home(), sys.prefix) if str(path) != "/"]
    for number, _, kind, content in _contents(notebook):
        if kind == "image/png":
            continue  # base64 may hold anything
        text = content if isinstance(content, str) else json.dumps(content)
        found = [path for path in here if path in text] + ABSOLUTE_PATH.findall(text)
        if found:
            yield f"cell {number}, {kind}: the path {found[0]!r} exists on one machine only; print its name"
    found = ABSOLUTE_PATH.findall(json.dumps(notebook.metadata))
    if found:
        yield f"the metadata hold the path {found[0]!r}, which exists on one machine only"


def _contents(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode, str, str]]:
    """(number of the code cell, cell, kind, content) of every output, numbered as the reader sees them."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield number, cell, output.name, output.text
            elif output.output_type == "error":
                yield number, cell, "error", f"{output.ename}: {output.evalue}"
            else:
                for mime, content in output.data.items():
                    yield number, cell, mime, content
