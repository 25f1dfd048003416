"""The figure style of the book: colour-blind safe, readable at 360 px and in print."""

import base64
import io
import struct
import sys
import zlib

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito (2008), "Color Universal Design", without the yellow, which is too faint on white
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
# the yellow darkened until it is visible, and a grey for nulls
OLIVE, GREY = "#8F8500", "#767676"

# each method has the same colour in every chapter
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
            # twice the displayed pixels, for projectors and high-density screens
            "savefig.dpi": 200,
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
    if "IPython" in sys.modules:
        _show_sharp_figures()


def small_png(image: Image.Image) -> bytes:
    """Return a figure's PNG with only as many colours as it needs to look the same: a quarter of the bytes.

    Areas of one colour keep it to within 4 of 255 a channel, so that colour maps stay smooth; shades that
    smooth their edges may be off by 64. Of more than 256 colours the most common are kept.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    packed = pixels @ (1 << 16, 1 << 8, 1)
    inside = (packed[:-1, :-1] == packed[1:, :-1]) & (packed[:-1, :-1] == packed[:-1, 1:])
    colours, index, counts = np.unique(packed, return_inverse=True, return_counts=True)
    index = index.reshape(packed.shape)
    areas = np.bincount(index[:-1, :-1][inside], minlength=len(colours))
    rgb = colours[:, None] >> (16, 8, 0) & 255
    kept: list[int] = []
    distance = np.full(len(colours), 1024)
    for weight, apart in ((np.where(areas >= 9, areas, 0), 4), (counts, 64)):
        while len(kept) < 256 and (missing := np.where(distance > apart, weight, 0)).any():
            kept.append(int(missing.argmax()))
            distance = np.minimum(distance, _distance(rgb, rgb[kept[-1]]))
    nearest = _distance(rgb[:, None], rgb[kept]).argmin(axis=1)
    return _indexed_png(nearest.astype(np.uint8)[index], rgb[kept].astype(np.uint8))


def _distance(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of colours: the largest difference of a channel, more where the hue changes."""
    difference = colours - others
    return np.abs(difference).max(axis=-1) + np.ptp(difference, axis=-1)


def _indexed_png(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Return a PNG of half a byte or a byte a pixel, without Pillow's filters, which make figures larger."""
    height, width = indices.shape
    bits = 4 if len(palette) <= 16 else 8
    if bits == 4:
        indices = np.pad(indices, ((0, 0), (0, width % 2)))
        indices = indices[:, ::2] << 4 | indices[:, 1::2]
    rows = np.pad(indices, ((0, 0), (1, 0)))  # each begins with a 0: no filter
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0),
        b"PLTE": palette.tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items()
    )


def _sharp_png(figure: Figure) -> tuple[str, dict[str, int]]:
    """Return a figure as a base64 PNG at the resolution of saved files, and its width on a page."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return base64.b64encode(small_png(Image.open(file))).decode(), {"width": round(figure.bbox.width)}


def _show_sharp_figures() -> None:
    """Let notebooks store figures as :func:`_sharp_png`, so that ten of them stay small."""
    import matplotlib.pyplot as plt
    from IPython import get_ipython

    if shell := get_ipython():
        # the backend registers its own format when it loads, so it must be loaded first
        plt.switch_backend(plt.get_backend())
        shell.display_formatter.formatters["image/png"].for_type(Figure, _sharp_png)
