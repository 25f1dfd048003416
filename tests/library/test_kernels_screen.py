"""The screened product against the exact one: float64, whole numbers that no sum rounds, and torch's own."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sae_lib
from sae_lib import kernels
from sae_lib.kernels import cpu, reference, screen, units
from sae_lib.kernels.screen import Rounded, Screen, bounds

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 200), st.integers(1, 90))
SEEDS = st.integers(0, 1000)


def draw(shape, seed, decades=0.0):
    """Rows whose scales, and weights whose scales, lie up to so many decades apart."""
    n_rows, width, d = shape
    generator = torch.Generator().manual_seed(seed)

    def rows(n):
        scales = 10 ** (decades * (torch.rand(n, 1, generator=generator) - 0.5))
        return torch.randn(n, d, generator=generator) * scales

    return rows(n_rows), rows(width)


def whole(shape, seed):
    """Numbers that bfloat16 rounds, but no float32 sum of their products: whole, below 2^10."""
    n_rows, width, d = shape
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randint(-1023, 1024, (n, d), generator=generator).float() for n in (n_rows, width))
    return x, weight


def as_set(rows, latents, width):
    return set((rows * width + latents).tolist())


@settings(max_examples=60, deadline=None)
@given(SHAPES, SEEDS, st.sampled_from([0.0, 2.0, 6.0]))
@example((40, 1100, 33), 1, 6.0)
@example((3, 5, 4096), 2, 2.0)
def test_the_bound_holds(shape, seed, decades):
    x, weight = draw(shape, seed, decades)
    # halves that cancel
    x[:, 1::2] = -x[:, ::2][:, : x[:, 1::2].shape[1]]
    weight[:, 1::2] = weight[:, ::2][:, : weight[:, 1::2].shape[1]]
    product = torch.mm(x.bfloat16(), weight.bfloat16().T)
    error = (product.double() - x.double() @ weight.double().T).abs()
    assert (error <= bounds(x, weight, product)).all()


@settings(max_examples=60, deadline=None)
@given(SHAPES, SEEDS, st.sampled_from([1.0, 0.3, 0.01, 0.0]), st.sampled_from([0.0, 3.0, 6.0]))
@example((20, 1100, 33), 0.01, 0, 6.0)
@example((1, 1, 1), 1.0, 0, 0.0)
def test_scan_finds_what_the_exact_product_exceeds(shape, seed, density, decades):
    """Entries further from their bar than float32 sums round are decided as float64 decides them."""
    x, weight = draw(shape, int(seed), decades)
    exact = x.double() @ weight.double().T
    bar = exact.quantile(1 - density, dim=0).float() if density else torch.full((len(weight),), torch.inf)
    screened = Screen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "MOST", 1.0)
        peak, support, u = screened.scan(x, weight, bar)
    found = torch.zeros(exact.shape, dtype=torch.bool)
    found[support.rows, support.latents] = True
    rounding = (shape[2] + 2) * 2.0**-24 * x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    assert found[exact > bar + rounding].all()
    assert not found[exact < bar - rounding].any()
    error = (u.double() - exact[support.rows, support.latents]).abs()
    assert (error <= rounding[support.rows, support.latents]).all()
    assert screened.candidates >= len(support)
    # a peak is the largest u of a latent that fires, and of no use elsewhere
    fires = support.by_latent(torch.ones(len(support))) > 0
    assert torch.equal(peak > -torch.inf, fires)
    expected = torch.full_like(peak, -torch.inf).scatter_reduce(0, support.latents, u, "amax")
    assert torch.equal(peak, expected)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 1100), st.integers(1, 12)), SEEDS)
def test_scan_decides_within_one_ulp_of_the_bar(shape, seed):
    x, weight = whole(shape, seed)
    u = x @ weight.T
    own = u[torch.arange(len(weight)) % len(x), torch.arange(len(weight))]
    for bar in (
        own,
        torch.nextafter(own, torch.tensor(torch.inf)),
        torch.nextafter(own, torch.tensor(-torch.inf)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screen, "MOST", 1.0)
            _, support, values = Screen().scan(x, weight, bar)
        expected, _ = reference.index(*(u > bar).nonzero(as_tuple=True), u.shape)
        assert all(
            torch.equal(a, b) for a, b in zip(vars(support).values(), vars(expected).values(), strict=True)
        )
        assert torch.equal(values, u[support.rows, support.latents])


@pytest.mark.parametrize("kind", ["zero", "denormal", "huge"])
def test_scan_of_rows_at_the_ends_of_float32(kind):
    scale = {"zero": 0.0, "denormal": 1e-41, "huge": 1e18}[kind]
    x, weight = whole((9, 70, 5), 0)
    x *= scale
    for bar in (torch.zeros(70), -torch.ones(70), torch.full((70,), 1e-43)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(screen, "MOST", 1.0)
            _, support, _ = Screen().scan(x, weight, bar)
        exact = x.double() @ weight.double().T
        expected = (exact > bar).nonzero(as_tuple=True)
        sure = (exact - bar).abs() > 1e-6 * exact.abs() + 1e-44
        missed = as_set(*expected, 70) ^ as_set(support.rows, support.latents, 70)
        assert not missed & as_set(*sure.nonzero(as_tuple=True), 70)


def test_too_many_candidates_are_left_to_the_float32_product():
    x, weight = draw((50, 300, 20), 0)
    bar = torch.zeros(300)
    ours, theirs = Screen().scan(x, weight, bar), cpu.scan(x, weight, bar)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[2], theirs[2])
    entries = Screen().top(x, weight, bar, 100), reference.top(x, weight, bar, 100)
    assert all(torch.equal(a, b) for a, b in zip(*entries, strict=True))


def test_a_row_with_nan_gives_nan():
    """Training finds it in the loss, as without a screen."""
    x, weight = draw((30, 300, 20), 0)
    x[3, 2] = torch.nan
    _, support, u = Screen().scan(x, weight, torch.full((300,), 9.0))
    assert not (support.rows != 3).logical_and(u.isnan()).any()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "MOST", 1.0)
        rows, _, values = Screen().top(x, weight, torch.zeros(300), 4)
    assert values[rows == 3].isnan().all()
    assert not values[rows != 3].isnan().any()


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 700), st.integers(1, 30)), SEEDS, st.data())
def test_top_is_that_of_the_exact_product(shape, seed, data):
    """Whole numbers: the values are equal, ties included; entries too, where no tie leaves a choice."""
    x, weight = whole(shape, seed)
    width = shape[1]
    bias = torch.randint(-(2**20), 2**20, (width,), generator=torch.Generator().manual_seed(seed)).float()
    k = data.draw(st.integers(1, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "MOST", 1.0)
        rows, latents, u = Screen().top(x, weight, bias, k)
        count = data.draw(st.integers(1, len(x) * width))
        rows_b, latents_b, u_b = Screen().top_of_batch(x, weight, bias, count)
    exact = x @ weight.T
    assert torch.equal(u, exact[rows, latents])
    assert torch.equal(u_b, exact[rows_b, latents_b])
    y = exact + bias
    by_row = (u + bias[latents]).view(len(x), k).sort(dim=1, descending=True).values
    assert torch.equal(by_row, y.topk(k, dim=1).values)
    assert torch.equal((u_b + bias[latents_b]).sort(descending=True).values, y.flatten().topk(count).values)
    for chosen in (rows * width + latents, rows_b * width + latents_b):
        assert len(chosen.unique()) == len(chosen)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), SEEDS)
def test_rounding_is_torch_s(n, d, seed):
    bits = np.random.default_rng(seed).integers(-(2**31), 2**31, (n, d)).astype(np.int32)
    rows = torch.from_numpy(bits.view(np.float32))
    rows = rows.where(rows.isfinite(), 1.0)
    rounded = Rounded(rows).refresh()
    assert torch.equal(rounded.low, rows.bfloat16())
    small = rows.where(rows.abs() < 1e15, 1.0)
    rounded = Rounded(small).refresh()
    assert (rounded.norm.double() >= small.double().norm(dim=1)).all()
    assert (rounded.gap.double() >= (small.double() - rounded.low.double()).norm(dim=1)).all()
    assert (rounded.norm.double() <= 1.01 * small.double().norm(dim=1) + 1e-15).all()


def test_rounded_rows_follow_the_weight():
    weight = torch.nn.Parameter(torch.randn(30, 8))
    x, screened = torch.randn(5, 8), Screen()
    before = screened.rounded(weight).low.clone()
    with torch.no_grad():
        weight += 1
    assert not torch.equal(screened.rounded(weight).low, before)
    assert torch.equal(screened.rounded(weight).low, weight.bfloat16())
    assert screened.kept(torch.randn(30, 8)) is None
    assert len(x)


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "threshold", "topk"])
def test_encode_is_screened(activation, monkeypatch):
    k = 3 if activation == "topk" else None
    sae = sae_lib.SparseAutoencoder(16, 200, activation=activation, k=k, free_encoder=True, tied=False)
    rows = torch.randn(3, 1500, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.bias.fill_(-2.0 if activation != "topk" else 0.2)
        sae.pre_bias.copy_(torch.linspace(-1, 1, 16))
        if sae.threshold is not None:
            sae.threshold.fill_(0.25)
    expected = sae.encode(rows)
    monkeypatch.setattr(units, "bfloat16_is_fast", lambda *shape: True)
    monkeypatch.setattr(kernels, "SMALLEST_SCREENED", 0)
    assert sae.encode(rows).requires_grad
    sae.requires_grad_(False)
    assert sae._screen is None
    torch.testing.assert_close(sae.encode(rows), expected.detach(), rtol=1e-5, atol=1e-5)
    assert sae._screen.candidates
    assert sae.encode(rows[0, 0]).shape == (200,)
    with torch.no_grad():
        sae.bias.fill_(0.5)
    # most latents fire: left to the dense product
    torch.testing.assert_close(sae.encode(rows), sae.gate(sae.project(rows)), rtol=1e-5, atol=1e-5)


def test_where_a_screen_is_used(monkeypatch):
    asked = []
    monkeypatch.setattr(units, "bfloat16_is_fast", lambda *shape: bool(asked.append(shape)) or True)
    x = torch.zeros(64, 32)
    assert kernels.screen_for(x, 100) is None
    monkeypatch.setattr(kernels, "SMALLEST_SCREENED", 0)
    assert isinstance(kernels.screen_for(x, 100), Screen)
    assert asked == [(64, 32, torch.get_num_threads())]
    assert kernels.screen_for(x.double(), 100) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.screen_for(x, 100) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert kernels.screen_for(x, 100) is None
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_processor_that_rounds_too_much_is_not_used(monkeypatch):
    monkeypatch.setattr(units, "FAST", 1e9)
    assert units.bfloat16_is_fast.__wrapped__(32, 16, 1)
    monkeypatch.setattr(units, "bounds", lambda *rows: torch.full((), 1e-30, dtype=torch.float64))
    with pytest.warns(UserWarning, match="not used on this processor: their rounding is"):
        assert not units.bfloat16_is_fast.__wrapped__(32, 16, 1)
    monkeypatch.setattr(units, "FAST", 0.0)
    assert not units.bfloat16_is_fast.__wrapped__(32, 16, 1)
