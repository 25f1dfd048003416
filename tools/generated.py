"""What the build writes from notebooks and records: pages of the site, the README's picture.

The picture on the front page that answers to the reader shows recovery against firing rate and dimension: the
points that the record of chapter 4 holds, and nothing between them.
"""

import base64
import json

import nbformat

from sae_lib import records
from sae_lib.files.atomic import replacing
from sae_lib.sweeps import summary
from tools import claims, quizzes, status
from tools.layout import Book, template

N, S = 256, 3
PICTURE = "_static/cover.png"


def write(book: Book) -> None:
    """Write the pages that have something to say and have changed, each in one step."""
    for page, text in PAGES.items():
        target, content = book.pages / page, text(book)
        if content and not (target.is_file() and target.read_text("utf8") == content):
            with replacing(target) as temporary:
                temporary.write_text(content, "utf8")


def front(book: Book) -> str:
    """Return a fragment of HTML: a picture, two sliders, one sentence; "" where there is no record."""
    path = book.pages / "records" / "04_resonance.json"
    if not path.is_file():
        return ""
    rows = records.read(path).rows
    rows = [row for row in rows if row["n"] == N and row["s"] == S and "hold" not in row]
    cells = summary(rows, by=("d", "ratio"), of=("frr", "null"))
    dims, rates = sorted({d for d, _ in cells}), sorted({rate for _, rate in cells})
    table = [
        [
            [round(v, 3) for v in (cell["frr"].mean, cell["frr"].sd, cell["null"].mean)]
            for cell in (cells[d, rate] for rate in rates)
        ]
        for d in dims
    ]
    data = {"p": rates, "d": dims, "found": table}
    words = f"{cells[128, 0.5]['frr'].mean:.0%}"
    return template("front.html").render(n=N, words=words, data=json.dumps(data))


def cover(book: Book) -> bytes | None:
    """Return the PNG of the cell tagged `cover` in the committed notebooks; None if there is no such cell."""
    for path in sorted(book.pages.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if "cover" in cell.metadata.get("tags", ()):
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        return base64.b64decode(output.data["image/png"])
    return None


def write_cover(book: Book) -> None:
    """Copy that figure to where the README shows it."""
    if png := cover(book):
        with replacing(book.root / PICTURE) as temporary:
            temporary.write_bytes(png)


PAGES = {"status.md": status.text, "claims.md": claims.text, "quizzes.md": quizzes.text, "front.html": front}
