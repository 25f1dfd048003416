"""Dashboards of one autoencoder as a searchable page: one HTML file, no network, no framework.

Tokens are in one table, the most common first, and activations are 999ths of the peak: 1 or 2 kB a latent.
The page's security policy allows only its own script and style sheet, by their hashes, and no request.
"""

import base64
import hashlib
import json
from collections import Counter
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from sae_lib.dashboards.data import Context, Dashboards, Latent
from sae_lib.dashboards.tokens import visible
from sae_lib.files.atomic import replacing

# activations in steps of a 999th of the latent's peak; −1 where the store has no row
_STEPS = 999


def html(board: Dashboards, path: str | PathLike[str], *, title: str | None = None, seed: int = 0) -> None:
    """Write the page to ``path``, completely or not at all.

    Args:
        board: The dashboards.
        path: File to write.
        title: Heading; by default it names the autoencoder.
        seed: Seed of the first random order, 0..2³² − 1; a reader can change it.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0..{2**32 - 1}")
    folder = resources.files("sae_lib.dashboards")
    template, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    page = template.format(
        title=escape(f"Feature dashboards: {board.name}" if title is None else title),
        about=escape(about(board)),
        attribution=escape(attribution(board)),
        last=board.width - 1,
        seed=seed,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_inert(_compact(board)),
    )
    with replacing(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def about(board: Dashboards) -> str:
    """Describe what is shown, in two sentences."""
    return (
        f"{len(board):,} of {board.width:,} latents of {board.name} ({board.chosen}), on {board.n_rows:,} "
        f"rows of {board.origin['model']['name']} at {board.origin['site']}. "
        f"{board.n_alive:,} latents fire on any of them."
    )


def attribution(board: Dashboards) -> str:
    """Name the source of the contexts, and its licence."""
    corpus = board.origin["corpus"]
    return f"Text of the contexts: {corpus['name']}. Licence: {corpus['licence']}."


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(values: Any) -> str:
    """Return JSON that cannot end the element around it: angle brackets and ampersands are escaped."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _compact(board: Dashboards) -> dict[str, Any]:
    uses = Counter(token for latent in board for token in latent.token_ids)
    # the most common first: its place takes one digit
    place = {token: i for i, (token, _) in enumerate(uses.most_common())}
    return {
        "n_rows": board.n_rows,
        "tokens": [visible(board.tokens[token]) for token in place],
        "latents": [_row(latent, place) for latent in board],
    }


def _row(latent: Latent, place: dict[int, int]) -> list[Any]:
    """Return one latent as a list, in the order that page.js names."""

    def context(c: Context) -> list[Any]:
        steps = [
            [i, -1 if value is None else max(1, round(_STEPS * value / latent.peak))]
            for i, value in enumerate(c.activations)
            if value is None or value > 0
        ]
        return [c.position, [place[token] for token in c.tokens], steps, c.quantile]

    def scores(pairs: tuple[tuple[int, float], ...]) -> list[Any]:
        return [[place[token], round(score, 2)] for token, score in pairs]

    return [
        latent.number, latent.firings, _rounded(latent.peak), _rounded(latent.mean),
        None if latent.purity is None else _rounded(latent.purity),
        None if latent.token is None else place[latent.token],
        list(latent.histogram), [context(c) for c in latent.top], [context(c) for c in latent.lower],
        scores(latent.promoted), scores(latent.demoted),
        *(
            [[number, round(value, 2)] for number, value in pairs]
            for pairs in (latent.nearest, latent.together)
        ),
    ]  # fmt: skip
