"""The book's one figure style: colour-blind safe, readable at 360 px and in print."""

from __future__ import annotations

import base64
import io
import sys

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito (2008), "Color Universal Design"; the yellow is left out, too faint on white
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
# the yellow darkened until it shows, and a grey for nulls
OLIVE, GREY = "#8F8500", "#767676"

# one colour for each method, the same in every chapter
METHOD_COLOURS = {
    "gba": BLUE, "ba": SKY, "modified_ba": BLACK, "topk": VERMILLION, "batch_topk": ORANGE,
    "matryoshka": BLACK, "l1": GREEN, "jumprelu": PURPLE, "gated": OLIVE, "untrained": GREY, "random": GREY,
}  # fmt: skip
METHOD_MARKERS = {
    "gba": "o", "ba": "D", "modified_ba": "d", "topk": "s", "batch_topk": "P", "matryoshka": "v",
    "l1": "^", "jumprelu": "X", "gated": "<", "untrained": "x", "random": "+",
}  # fmt: skip
METHOD_LABELS = {
    "gba": "GBA", "ba": "BA", "modified_ba": "modified BA", "topk": "TopK", "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka", "l1": "L1", "jumprelu": "JumpReLU", "gated": "Gated",
    "untrained": "untrained", "random": "random directions",
}  # fmt: skip

# for heat maps and ordered series: uniform in lightness
SEQUENTIAL = "cividis"


def use_style() -> None:
    """Set matplotlib's defaults for the book; call it once at the top of a chapter."""
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 100,
            "font.size": 11,
            "axes.prop_cycle": cycler(color=[BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": SEQUENTIAL,
        }
    )
    if "ipykernel" in sys.modules:
        _show_small_figures()


def _small_png(figure: Figure) -> str:
    """A figure as a base64 PNG of at most 128 colours: a third of the bytes, and looks the same."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    Image.open(full).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _show_small_figures() -> None:
    """Let notebooks keep figures as :func:`_small_png`, so that ten of them weigh little."""
    import matplotlib.pyplot as plt
    from IPython import get_ipython

    # the backend registers its own format when it loads, so it has to be loaded first
    plt.switch_backend(plt.get_backend())
    get_ipython().display_formatter.formatters["image/png"].for_type(Figure, _small_png)
