"""A notebook with too many large figures is brought below the limit, by its largest figures alone."""

import base64
import copy
import io

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from PIL import Image

from tools import notebook


def figure(width: int, height: int, seed: int) -> NotebookNode:
    """A cell that shows lines of noise with two pixels for each of `width`."""
    noise = np.random.default_rng(seed).integers(0, 3, size=(2 * height, 2 * width)).astype(np.uint8) * 100
    file = io.BytesIO()
    Image.fromarray(noise).convert("RGB").save(file, "PNG")
    output = nbformat.v4.new_output(
        "display_data",
        {"image/png": base64.b64encode(file.getvalue()).decode()},
        metadata={"image/png": {"width": width}},
    )
    return nbformat.v4.new_code_cell("plt.show()", outputs=[output])


def size(cell: NotebookNode) -> tuple[int, int]:
    (output,) = cell.outputs
    return Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).size


def test_the_largest_figures_get_coarser_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = nbformat.v4.new_notebook(cells=[figure(200, 100, 1), figure(640, 360, 2), figure(200, 100, 3)])
    monkeypatch.setattr(notebook, "MAX_BYTES", len(nbformat.writes(heavy)) - 1000)
    assert "it weighs" in notebook.problems(heavy)[0]
    notebook.lighten(heavy)
    assert notebook.problems(heavy) == []
    assert [size(cell) for cell in heavy.cells] == [(400, 200), (960, 540), (400, 200)]
    # shown as before
    assert heavy.cells[1].outputs[0].metadata["image/png"]["width"] == 640


def test_a_light_notebook_and_one_without_figures_stay_as_they_are() -> None:
    for cells in ([figure(100, 50, 1)], [nbformat.v4.new_code_cell("x" * notebook.MAX_BYTES)]):
        before = nbformat.v4.new_notebook(cells=cells)
        after = copy.deepcopy(before)
        notebook.lighten(after)
        assert after == before


def test_what_stays_too_heavy_is_told() -> None:
    heavy = nbformat.v4.new_notebook(cells=[figure(900, 900, 1)])
    notebook.lighten(heavy)
    assert "the largest output is cell 1, image/png" in notebook.problems(heavy)[0]
