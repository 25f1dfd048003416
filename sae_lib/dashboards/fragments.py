"""Dashboards as pieces of HTML for a notebook: no scripts, no classes, inline styles.

Text is on white whatever the page around it, so that shading looks the same in a dark theme.
"""

from collections.abc import Mapping, Sequence
from html import escape

from sae_lib.dashboards.data import Context, Dashboards, Latent
from sae_lib.dashboards.matching import Match
from sae_lib.dashboards.tokens import visible

# full shading: the orange of sae_lib.plotting, light enough for black text on it
_HOT = (245, 178, 50)
_PAPER = "background:#fff;color:#111;padding:.6em .8em;border-radius:4px;line-height:1.5"
_GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,12em),1fr));gap:.4em 1em"
# set once a card and inherited by its contexts: a notebook has hundreds of them
_CODE = "font-family:monospace;white-space:break-spaces;overflow-wrap:anywhere"
_CONTEXTS = f"{_CODE};font-size:.85em;display:grid;grid-template-columns:minmax(0,1fr);gap:.3em"
_SMALL = "margin:.2em 0;font-size:.9em;color:#444"


def shade(share: float) -> str:
    """Return the colour #rrggbb, on white, of a token whose activation is a share of full shade."""
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(255 + (hot - 255) * share):02x}" for hot in _HOT)


def percent(share: float) -> str:
    """Return a share as text with two digits: 0.01234 → 1.2 %."""
    return f"{float(f'{100 * share:.2g}'):.12g} %"


def summary(board: Dashboards, latent: Latent) -> str:
    """Return firing rate, peak and purity in a few words."""
    if not latent.firings:
        return f"never fires on the {board.n_rows:,} rows"
    assert latent.purity is not None
    assert latent.token is not None
    return (
        f"fires on {percent(latent.firing_rate)} of rows ({latent.firings:,}), peak {latent.peak:.3g}, "
        f"purity {percent(latent.purity)} on “{visible(board.tokens[latent.token])}”"
    )


def caption(context: Context) -> str:
    """Return the rank of a context among the latent's firings, and its activation, as text."""
    place = "top" if context.quantile is None else f"quantile {context.quantile:g}"
    return f"{place}: {context.activation:.3g}"


def _context(board: Dashboards, latent: Latent, context: Context) -> str:
    parts = []
    for place, (token, value) in enumerate(zip(context.tokens, context.activations, strict=True)):
        text = escape(visible(board.tokens[token]), quote=False)
        if value:
            weight = ";font-weight:bold;text-decoration:underline" if place == context.position else ""
            text = (
                f'<span style="background:{shade(value / latent.full_shade)}{weight}" title="{value:.3g}">'
                f"{text}</span>"
            )
        parts.append(text)
    return f'<div><span style="color:#555">{caption(context)} </span>{"".join(parts)}</div>'


def _tokens(board: Dashboards, pairs: Sequence[tuple[int, float]]) -> str:
    return " ".join(
        f'<span style="background:#eee" title="{score:+.3g}">'
        f"{escape(visible(board.tokens[token]), quote=False)}</span>"
        for token, score in pairs
    )


def _card(board: Dashboards, latent: Latent, heading: str, contexts: Sequence[Context], n_tokens: int) -> str:
    lines = [
        f'<div style="min-width:0"><strong>{escape(heading)}</strong>',
        f'<p style="{_SMALL}">{escape(summary(board, latent))}</p>',
        f'<div style="{_CONTEXTS}">',
        *(_context(board, latent, context) for context in contexts),
        "</div>",
    ]
    if n_tokens:
        lines += [
            f'<p style="{_SMALL};{_CODE}">promotes {_tokens(board, latent.promoted[:n_tokens])}<br>'
            f"demotes {_tokens(board, latent.demoted[:n_tokens])}</p>"
        ]
    return "".join([*lines, "</div>"])


def fragment(
    board: Dashboards, latents: Sequence[int] | None = None, *, n_contexts: int = 5, n_tokens: int = 8
) -> str:
    """Return HTML of the dashboards of some latents (by default all measured ones), one below the other.

    Args:
        board: The dashboards.
        latents: Latents to show, in this order.
        n_contexts: Strongest contexts to show; all those from lower quantiles follow.
        n_tokens: Promoted tokens, and as many demoted, to show.

    Raises:
        KeyError: A latent that was not measured.
    """
    numbers = [latent.number for latent in board] if latents is None else latents
    cards = []
    for number in numbers:
        latent = board[number]
        contexts = [*latent.top[:n_contexts], *latent.lower]
        cards.append(_card(board, latent, f"{board.name} {number}", contexts, n_tokens))
    return f'<div style="{_PAPER}">{"<hr>".join(cards)}</div>'


def side_by_side(
    boards: Mapping[str, Dashboards],
    rows: Sequence[Mapping[str, Match]],
    *,
    n_contexts: int = 3,
    n_tokens: int = 5,
) -> str:
    """Return HTML that shows, row by row, a latent of the first autoencoder beside those matched to it.

    Args:
        boards: Dashboards by name of the autoencoder, with every latent that the rows name.
        rows: From :func:`sae_lib.dashboards.match`.
        n_contexts: Strongest contexts to show; one from the lowest quantile follows.
        n_tokens: Promoted tokens, and as many demoted, to show.
    """
    sections = []
    for row in rows:
        cards = []
        for place, (name, (number, cosine)) in enumerate(row.items()):
            board, latent = boards[name], boards[name][number]
            heading = f"{name} {number}" + (f", cosine {cosine:.2f}" if place else "")
            contexts = [*latent.top[:n_contexts], *latent.lower[-1:]]
            cards.append(_card(board, latent, heading, contexts, n_tokens))
        sections.append(f'<div style="{_GRID}">{"".join(cards)}</div>')
    return f'<div style="{_PAPER}">{"<hr>".join(sections)}</div>'
