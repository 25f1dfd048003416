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
# how NumPy shows a number, np.float64(0.5); the text can format what stands inside
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
                    output.data[GLUED] = NUMPY.sub(r"\1", output.data[GLUED])
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return outputs without progress bars of other packages; what a stream printed in a row is one output.

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
    """Return whether papermill put the cell in, to set the parameters."""
    return "injected-parameters" in cell.metadata.get("tags", [])


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_of_cells(notebook: NotebookNode) -> list[str]:
    """Return the sources of the code cells, without what papermill put in."""
    return [cell.source for cell in code_cells(notebook) if not is_injected(cell)]


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


def is_image(kind: str) -> bool:
    """Return whether a MIME type is that of a figure, glued or not."""
    return kind.startswith(("image/", "application/papermill.record/image/"))


def parts(output: NotebookNode) -> dict[str, str]:
    """Return what an output shows, by kind: a stream's name, a MIME type (glued values too), or an error."""
    if output.output_type == "stream":
        return {output.name: output.text}
    if output.output_type == "error":
        return {"error": f"{output.ename}: {output.evalue}"}
    return {
        kind: NUMPY.sub(r"\1", content) if kind == GLUED else str(content)
        for kind, content in output.data.items()
    }


def write(notebook: NotebookNode, path: Path) -> None:
    """Write in one step, so that a page is never half written."""
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)


def problems(notebook: NotebookNode) -> list[str]:
    """Return the rules that a notebook breaks: weight, kinds of numbers, paths, errors, warnings."""
    wrong: list[str] = []
    weights = {"its source": 0}
    for number, cell in enumerate(code_cells(notebook), start=1):
        contents = [part for output in cell.outputs for part in parts(output).items()]
        weights |= {f"cell {number}, {kind}": len(text) for kind, text in contents}
        wrong += _faults(cell, contents, f"cell {number}")
    if paths := ABSOLUTE_PATH.findall(json.dumps(notebook.metadata)):
        wrong.append(f"the metadata hold the path {paths[0]!r}, which exists on one machine only")
    if (size := _size(notebook)) > MAX_BYTES:
        largest = max(weights, key=lambda place: weights[place])
        wrong.insert(
            0,
            f"it weighs {size // 1000} KB, at most {MAX_BYTES // 1000} KB are allowed; the largest output is "
            f"{largest} with {weights[largest] // 1000} KB: draw it smaller or with fewer points",
        )
    return wrong


def _faults(cell: NotebookNode, contents: list[tuple[str, str]], place: str) -> Iterator[str]:
    """Yield what is wrong with the outputs of one cell, (kind, text) each."""
    tags = cell.metadata.get("tags", [])
    shown = [text for kind, text in contents if not is_image(kind) and not text.startswith("<Figure")]
    marked = "nbval" in cell.metadata or "nbval-ignore-output" in tags
    if not marked and any(NUMBER.search(text) for text in shown):
        yield (
            f"{place} shows numbers and does not say of which kind they are: add nbval: "
            "{kind: exact}, {kind: rounding} or {kind: trained, abs: …} to its metadata"
        )
    folders = [str(path) for path in (REPOSITORY, Path.home(), sys.prefix) if str(path) != "/"]
    for kind, text in contents:
        if kind == "stderr":
            yield f"{place} wrote to stderr: {text.strip()[:300]!r}; silence its cause"
        if kind == "error" and "raises-exception" not in tags:
            yield f"{place} holds an error: {text[:300]!r}"
        paths = [path for path in folders if path in text] + ABSOLUTE_PATH.findall(text)
        if paths and kind != "image/png":  # base64 may hold anything
            yield f"{place}, {kind}: the path {paths[0]!r} exists on one machine only; print its name"


def _size(notebook: NotebookNode) -> int:
    return len(nbformat.writes(notebook).encode())
