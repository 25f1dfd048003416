"""The picture on the front page that answers to the reader: recovery against firing rate and dimension.

Its numbers are those of the record that chapter 4 shows, the measured points and nothing between them.
"""

import json
from pathlib import Path
from string import Template

from sae_lib import records
from sae_lib.sweeps import summary
from tools.layout import Book

PAGE = "front.html"
N, S = 256, 3

TEMPLATE = Template(Path(__file__).with_name("front.html").read_text("utf8"))


def text(book: Book) -> str:
    """The fragment of HTML: a picture, two sliders, one sentence; empty where there is no record."""
    path = book.pages / "records" / "04_resonance.json"
    if not path.is_file():
        return ""
    rows = records.read(path).rows
    rows = [row for row in rows if row["n"] == N and row["s"] == S and "hold" not in row]
    found = summary(rows, by=("d", "ratio"), of=("frr", "null"))
    dims, rates = sorted({d for d, _ in found}), sorted({rate for _, rate in found})
    table = [
        [
            [round(v, 3) for v in (cell["frr"].mean, cell["frr"].sd, cell["null"].mean)]
            for cell in (found[d, rate] for rate in rates)
        ]
        for d in dims
    ]
    words = f"{found[128, 0.5]['frr'].mean:.0%}"
    return TEMPLATE.substitute(n=N, words=words, data=json.dumps({"p": rates, "d": dims, "found": table}))
