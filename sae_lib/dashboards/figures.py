"""Dashboards as figures, for print."""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from sae_lib.dashboards.data import Context, Dashboards, Latent
from sae_lib.dashboards.fragments import percent, shade
from sae_lib.dashboards.tokens import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT = "DejaVu Sans Mono"
# width of its characters, in units of the font size
_ADVANCE = 0.602
_LABEL = 15
_SPACES = re.compile(" {3,}")


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


def _printable(text: str) -> str:
    """Return the text with a box for each character the font lacks, which matplotlib would warn about."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in _SPACES.sub("  ", visible(text)))


def _trimmed(board: Dashboards, context: Context, characters: int) -> list[tuple[str, float | None, bool]]:
    """Return the tokens around the context's own that fit: text, activation, whether it is the own one."""
    texts = [_printable(board.tokens[token]) for token in context.tokens]
    texts[context.position] = texts[context.position][:characters]
    first = last = context.position
    room = characters - len(texts[first])
    # two tokens before the own one for each after it
    while True:
        before = [first - 1] if first and len(texts[first - 1]) <= room else []
        after = [last + 1] if last + 1 < len(texts) and len(texts[last + 1]) <= room else []
        behind = context.position - first <= 2 * (last - context.position)
        added = (before or after) if behind else (after or before)
        if not added:
            break
        room -= len(texts[added[0]])
        first, last = min(first, added[0]), max(last, added[0])
    return [(texts[i], context.activations[i], i == context.position) for i in range(first, last + 1)]


def _draw(
    axes: "Axes", board: Dashboards, latent: Latent, contexts: list[Context], size: float, width: int
) -> None:
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, _LABEL + width), ylim=(max(1, len(contexts)), 0))
    axes.axis("off")
    rate = f"fires on {percent(latent.firing_rate)} of rows" if latent.firings else "never fires"
    title = f"{board.name} {latent.number}: {rate}"
    if latent.promoted:
        title += "; promotes " + " ".join(_printable(board.tokens[t]).strip() for t, _ in latent.promoted[:4])
    axes.set_title(title, loc="left", fontsize=size + 1, parse_math=False)
    text: dict[str, Any] = {"fontsize": size, "family": _FONT, "va": "center", "parse_math": False}
    for line, context in enumerate(contexts):
        place = "top" if context.quantile is None else f"q {context.quantile:g}"
        axes.text(0, line + 0.5, f"{place}: {context.activation:.2g}", color="#555555", **text)
        x = _LABEL
        for word, value, is_own in _trimmed(board, context, width):
            if value:
                colour = shade(value / latent.full_shade)
                axes.add_patch(Rectangle((x, line + 0.05), len(word), 0.9, facecolor=colour, linewidth=0))
            axes.text(x, line + 0.5, word, weight="bold" if is_own else "normal", **text)
            if is_own:
                axes.plot([x, x + len(word)], [line + 0.95] * 2, color="black", linewidth=1)
            x += len(word)


def figure(
    panels: Sequence[tuple[Dashboards, int]], *, n_contexts: int = 4, characters: int = 72, width: float = 6.4
) -> "Figure":
    """Draw contexts of latents with tokens shaded by activation, a panel for each (dashboards, latent).

    The token that a context is about is bold and underlined, to be seen in print without colour. Runs of
    spaces are cut to two.

    Args:
        panels: Dashboards and the latent to show of them.
        n_contexts: Strongest contexts ("top", with activation); one from the lowest quantile ("q") follows.
        characters: Width of a context, at least 8; tokens that do not fit are left out at its ends.
        width: Width of the figure in inches.
    """
    import matplotlib.pyplot as plt

    if not panels or characters < 8:
        raise ValueError(f"{len(panels)} panels, {characters} characters; expected at least 1 and 8")
    shown = [
        (board, board[number], [*board[number].top[:n_contexts], *board[number].lower[-1:]])
        for board, number in panels
    ]
    # points, of which an inch has 72
    size = 72 * 0.98 * width / ((_LABEL + characters) * _ADVANCE)
    heights = [max(1, len(contexts)) for *_, contexts in shown]
    line = 1.6 * size / 72
    fig, axes = plt.subplots(
        len(shown), 1, squeeze=False, layout="none",
        figsize=(width, (sum(heights) + 2.2 * len(shown)) * line),
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    fig.subplots_adjust(
        left=0.01, right=0.99, bottom=0.02, top=1 - 1.7 * line / fig.get_figheight(),
        hspace=2.2 / (sum(heights) / len(heights)),
    )  # fmt: skip
    for (board, latent, contexts), panel in zip(shown, axes[:, 0], strict=True):
        _draw(panel, board, latent, contexts, size, characters)
    return fig
