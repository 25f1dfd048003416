"""The picture of the README: the figure of the one cell that is tagged `cover`."""

import base64

import nbformat

from sae_lib.files.atomic import replacing
from tools.layout import Book

PICTURE = "_static/cover.png"


def figure(book: Book) -> bytes | None:
    """The PNG of the cell tagged `cover` in the committed notebooks; None if there is no such cell."""
    for path in sorted(book.pages.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if "cover" in cell.metadata.get("tags", ()):
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        return base64.b64decode(output.data["image/png"])
    return None


def write(book: Book) -> None:
    """Copy the figure to where the README shows it."""
    if png := figure(book):
        with replacing(book.root / PICTURE) as temporary:
            temporary.write_bytes(png)
