"""The picture on the front page that answers to the reader: recovery against firing rate and dimension.

Its numbers are those of the record that chapter 4 shows, the measured points and nothing between them.
"""

import json

from sae_lib import records
from sae_lib.sweeps import summary
from tools.layout import Book

PAGE = "front.html"
N, S = 256, 3

TEXT = """\
<!-- written by the build from results/04_resonance.json -->
<figure class="front" id="front">
<svg viewBox="0 0 640 208" role="img" aria-labelledby="front-words">
<g id="front-dots"></g>
<g transform="translate(250 12)">
<line class="axis" x1="0" y1="160" x2="370" y2="160"/><line class="axis" x1="0" y1="0" x2="0" y2="160"/>
<text x="-8" y="8" text-anchor="end">all</text><text x="-8" y="163" text-anchor="end">0</text>
<g id="front-ticks"></g><polyline id="front-curve"/><circle id="front-here" r="7"/>
<text x="370" y="193" text-anchor="end">how often a latent fires, as a multiple of f</text>
</g>
</svg>
<div class="controls">
<label for="front-p">How often a latent fires</label><input type="range" id="front-p" min="0" step="1">
<label for="front-d">Dimensions</label><input type="range" id="front-d" min="0" step="1">
</div>
<figcaption><p id="front-words" aria-live="polite">At a firing rate of 0.5 f in 128 dimensions, {words} of the
{n} features are found.</p></figcaption>
<script>
(() => {{
const data = {data};
const at = id => document.getElementById("front-" + id), svg = (name, into, set) => {{
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in set) made.setAttribute(key, set[key]);
  return into.appendChild(made);
}};
const x = i => 20 + i * 330 / (data.p.length - 1), y = share => 160 - 160 * share, percent = v => Math.round(100 * v);
const dots = Array.from({{length: {n}}}, (_, i) =>
  svg("circle", at("dots"), {{cx: 10 + 12 * (i % 16), cy: 12 + 12 * Math.floor(i / 16), r: 4.5}}));
data.p.forEach((p, i) => svg("text", at("ticks"), {{x: x(i), y: 176, "text-anchor": "middle"}}).textContent = p);
at("p").max = data.p.length - 1; at("d").max = data.d.length - 1;
at("p").value = data.p.indexOf(0.5); at("d").value = data.d.indexOf(128);
const draw = () => {{
  const i = +at("p").value, j = +at("d").value, [mean, sd, nothing] = data.found[j][i];
  dots.forEach((dot, k) => dot.classList.toggle("found", k < Math.round({n} * mean)));
  at("curve").setAttribute("points", data.p.map((_, k) => x(k) + "," + y(data.found[j][k][0])).join(" "));
  at("here").setAttribute("cx", x(i)); at("here").setAttribute("cy", y(mean));
  at("p").setAttribute("aria-valuetext", data.p[i] + " f"); at("d").setAttribute("aria-valuetext", data.d[j]);
  at("words").textContent = "At a firing rate of " + data.p[i] + " f in " + data.d[j] + " dimensions, " +
    percent(mean) + " % (± " + percent(sd) + ") of the {n} features are found; by latents that were not trained, " +
    percent(nothing) + " %.";
}};
at("p").addEventListener("input", draw); at("d").addEventListener("input", draw); draw();
}})();
</script>
</figure>
"""


def text(book: Book) -> str:
    """The fragment of HTML: a picture, two sliders, one sentence that says what they show."""
    rows = records.read(book.pages / "results" / "04_resonance.json").rows
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
    return TEXT.format(n=N, words=words, data=json.dumps({"p": rates, "d": dims, "found": table}))


def write(book: Book) -> None:
    """Write the fragment where it has changed."""
    if not (book.pages / "results" / "04_resonance.json").is_file():
        return
    target, content = book.pages / PAGE, text(book)
    if not target.is_file() or target.read_text("utf8") != content:
        partial = target.with_name(f".{PAGE}.partial")
        partial.write_text(content, "utf8")
        partial.replace(target)
