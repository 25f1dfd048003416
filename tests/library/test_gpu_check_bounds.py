"""Bounds of screening products in low precision: no active latent is missed, whatever the scales."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.gpu_check.bounds import LARGEST, candidates, margins, rounded
from benchmarks.gpu_check.screening import Screen

FP8 = torch.float8_e4m3fn
KINDS = [FP8, torch.bfloat16]
SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 30), st.integers(1, 64))


def draw(shape, decades, seed):
    """Rows (B, d) and encoder rows (M, d), float32, their norms spread over so many decades."""
    (n_rows, width, d), stream = shape, torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, d, generator=stream) for n in (n_rows, width))
    # some numbers far smaller than the others of their row, some rows of zeros
    x *= 10.0 ** (-4 * torch.rand(x.shape, generator=stream)).where(x > 0, 0.0)
    for rows in (x, weight):
        rows *= 10.0 ** (decades * (torch.rand(len(rows), 1, generator=stream) - 0.5))
    x[::7] = 0
    return x, weight


def screened(x, weight, bar, kind):
    """Which entries a screen lets through, bool (M, B)."""
    screen = Screen(kind, x, weight, bar, emulated=True)
    product = screen.product(*screen.factors())
    latents, rows = screen.pick(product, *screen.factors())
    may = torch.zeros(len(weight), len(x), dtype=torch.bool)
    may[latents, rows] = True
    return may


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([0, 2, 6]), st.integers(0, 1000))
@example((20, 30, 1), 6, 0)
@example((20, 30, 1536), 6, 1)
def test_no_active_latent_is_missed(kind, shape, decades, seed):
    x, weight = draw(shape, decades, seed)
    exact = weight.double() @ x.double().T
    # each latent's bar is just below one of its own products: the narrowest way of being active
    stream = torch.Generator().manual_seed(seed)
    chosen = exact.gather(1, torch.randint(len(x), (len(weight), 1), generator=stream))[:, 0]
    for bar in (chosen, chosen.clamp(min=0), torch.zeros_like(chosen), exact.amax(dim=1)):
        below = torch.nextafter(bar.float(), torch.tensor(-torch.inf))
        active = exact > below.double()[:, None]
        assert active.any() or not exact.any()
        assert not (active & ~screened(x, weight, below, kind)).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bars_without_end_let_all_or_nothing_through(kind):
    x, weight = draw((9, 4, 16), 6, 0)
    bar = torch.tensor([-torch.inf, torch.inf, -torch.inf, torch.inf])
    assert screened(x, weight, bar, kind).all(dim=1).tolist() == [True, False, True, False]


@pytest.mark.parametrize(("kind", "most"), [(FP8, 0.1), (torch.bfloat16, 0.01)], ids=str)
def test_the_margin_is_no_larger_than_the_rounding_asks_for(kind, most):
    """In units of the norms: two factors, each off by half a unit of its last digit at most."""
    x, weight = draw((40, 50, 1536), 6, 0)
    parts = rounded(x, kind), rounded(weight, kind)
    of_row, of_latent = margins(*parts, sums=0.0, truth=0.0)
    ratio = of_latent[:, None] * of_row[None, :] / (parts[1].norm[:, None] * parts[0].norm[None, :])
    assert ratio.max() < most


def test_a_row_along_the_error_of_rounding_comes_close_to_its_margin():
    """The worst case: the encoder row is the error itself, so that Cauchy-Schwarz holds with equality."""
    # every number but the largest lies almost halfway between two neighbours in float8
    x = torch.full((1, 64), 1.0615)
    x[0, 0] = LARGEST / 256
    low = rounded(x, FP8)
    lost = x - low.numbers.float() * low.scale
    exact = (lost.double() @ x.double().T).item()
    bar = torch.tensor([exact * (1 - 1e-6)], dtype=torch.float32)
    assert screened(x, lost, bar, FP8).item()
    of_row, of_latent = margins(low, rounded(lost, FP8), sums=0.0, truth=0.0)
    product = ((low.numbers.float() * low.scale) @ lost.T).item()
    assert 0.3 < (exact - product) / (of_row * of_latent).item() <= 1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rounding_keeps_the_largest_number_and_states_its_error(scale):
    x = torch.tensor([[1.0, -0.5, 0.3, 1e-9], [0.0, 0.0, 0.0, 0.0]]) * scale
    low = rounded(x, FP8)
    back = low.numbers.float() * low.scale
    torch.testing.assert_close(back[0, 0], x[0, 0], rtol=1e-6, atol=0)
    assert back.isfinite().all()
    assert (low.error >= (x.double() - back.double()).norm(dim=1)).all()
    assert (low.norm >= x.double().norm(dim=1)).all()
    assert (low.norm_rounded >= back.double().norm(dim=1)).all()


def cut(numbers, top, digits):
    """Numbers without what lies more than so many binary digits below the largest, ``top``."""
    unit = torch.exp2(torch.floor(torch.log2(top.clamp(min=1e-300))) - digits)
    return torch.trunc(numbers / unit) * unit


def test_sums_of_a_float8_unit_stay_within_what_is_allowed_for_them():
    """Sums as such units are believed to take them: 32 products and the sum so far, cut to 13 digits."""
    stream = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(200, 1536, generator=stream).to(FP8) for _ in range(2))
    products = (x.double() * weight.double()).view(200, 12, 4, 32)
    total = torch.zeros(200, dtype=torch.float64)
    for block in range(12):
        part = torch.zeros(200, dtype=torch.float64)
        for group in range(4):
            addends = torch.cat([products[:, block, group], part[:, None]], dim=1)
            part = cut(addends, addends.abs().amax(dim=1, keepdim=True), 13).sum(dim=1)
        total = (total + part).float().double()
    off = (total - products.sum(dim=(1, 2, 3))).abs()
    allowed = 4 * 33 * 2.0**-13 * x.double().norm(dim=1) * weight.double().norm(dim=1)
    assert (off < allowed).all()
    assert off.max() > 0


def test_a_stored_product_may_have_lost_its_last_digits():
    product = torch.tensor([[1.0, -1.0]])
    bar = torch.tensor([1.001])
    zero = torch.zeros(2), torch.zeros(1)
    assert candidates(product, *zero, bar, 2.0**-8).tolist() == [[True, False]]
    assert candidates(product, *zero, bar, 0.0).tolist() == [[False, False]]
