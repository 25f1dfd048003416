"""Figures as notebooks keep them: sharp, light, and in the colours that were drawn."""

import base64
import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sae_lib import plotting


def through(pixels: np.ndarray) -> np.ndarray:
    """The pixels that Pillow reads from the small PNG of an image."""
    png = plotting.small_png(Image.fromarray(pixels.astype(np.uint8)))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def drawn(width: float = 4.0) -> Figure:
    with mpl.rc_context():
        plotting.use_style()
        figure = Figure(figsize=(width, 3))
        axes = figure.subplots()
        for number, colour in enumerate(plotting.METHOD_COLOURS.values()):
            axes.plot([0, 1, 2], [number, number + 1, number], color=colour, marker="o", label=f"{number}")
        axes.set(xlabel="active latents", ylabel="error")
        axes.legend()
        return figure


def pixels_of(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_every_method_keeps_its_exact_colour_and_no_shade_is_far_off() -> None:
    before = pixels_of(drawn())
    after = through(before)
    assert after.shape == before.shape
    for colour in {*plotting.METHOD_COLOURS.values(), "#ffffff", "#dddddd"}:
        same = (before == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1)
        assert same.sum() > 20
        assert (after[same] == before[same]).all(), colour
    assert np.abs(after - before).max() <= 64


def test_it_is_lighter_than_what_pillow_makes() -> None:
    image = Image.fromarray(pixels_of(drawn()).astype(np.uint8))
    full, indexed = io.BytesIO(), io.BytesIO()
    image.save(full, "PNG", optimize=True)
    image.quantize(64).save(indexed, "PNG", optimize=True)
    small = len(plotting.small_png(image))
    assert small < 0.4 * len(full.getvalue())
    assert small < 0.85 * len(indexed.getvalue())


def test_a_colour_map_stays_smooth() -> None:
    colours = (mpl.colormaps[plotting.SEQUENTIAL](np.linspace(0, 1, 256))[:, :3] * 255).round()
    before = np.repeat(np.repeat(colours[:, None], 6, axis=0), 40, axis=1)
    assert np.abs(through(before) - before).max() <= 4


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 7)])
def test_odd_widths_and_few_colours(shape: tuple[int, int]) -> None:
    before = np.random.default_rng(0).choice([0, 255], size=(*shape, 1)).repeat(3, axis=2)
    assert (through(before) == before).all()


def test_a_photograph_keeps_its_size_in_256_colours() -> None:
    before = np.random.default_rng(0).integers(0, 256, size=(40, 60, 3))
    after = through(before)
    assert after.shape == before.shape
    assert len(np.unique(after.reshape(-1, 3), axis=0)) <= 256


def test_a_notebook_gets_two_pixels_for_each_it_shows() -> None:
    with mpl.rc_context():
        plotting.use_style()
        png, shown = plotting._sharp_png(drawn(width=4.2))
    assert shown == {"width": 420}
    assert Image.open(io.BytesIO(base64.b64decode(png))).size == (840, 600)
