"""Pairs of latents in sparse form against dense tables, and in bounded memory at M = 65,536."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sae_lib.identifiability import conditions
from sae_lib.kernels import SparseCodes, reference
from sae_lib.metrics import cooccurrence
from sae_lib.metrics.cooccurrence import MEASURES

N_WIDE, M_WIDE, L0_WIDE = 400, 65_536, 64


def random_codes(seed, n, m, share):
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(n, m, generator=stream) * (torch.rand(n, m, generator=stream) < share)


def sparse_codes(dense):
    support, _ = reference.index(*dense.nonzero(as_tuple=True), dense.shape)
    return SparseCodes(dense[support.rows, support.latents], support)


def dense_tables(codes):
    """Each measure as a full table, nan where it is not held."""
    a = (codes != 0).double().numpy()
    n, c = len(a), a.sum(axis=0)
    count = a.T @ a
    with np.errstate(all="ignore"):
        spread = np.sqrt(np.outer(c * (n - c), c * (n - c)))
        tables = {
            "count": count,
            "conditional": count / c[:, None],
            "lift": n * count / np.outer(c, c),
            "phi": np.where(spread > 0, (n * count - np.outer(c, c)) / spread, 0.0),
        }
    held = (count > 0) & ~np.eye(len(c), dtype=bool)
    return {name: np.where(held, table, np.nan) for name, table in tables.items()}


def as_dense(pairs):
    out = np.full(pairs.shape, np.nan)
    entries = pairs.tocoo()
    out[entries.row, entries.col] = entries.data
    return out


sizes = {
    "seed": st.integers(0, 10_000),
    "n": st.integers(1, 30),
    "m": st.integers(1, 12),
    "share": st.sampled_from([0.0, 0.1, 0.4, 1.0]),
}


@settings(max_examples=60, deadline=None)
@given(**sizes, block=st.sampled_from([1, 20, 2**23]))
def test_measures_and_neighbours_equal_dense_tables(seed, n, m, share, block):
    codes = random_codes(seed, n, m, share)
    expected = dense_tables(codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_BLOCK_PAIRS", block)
        patch.setattr(cooccurrence, "_BLOCK_CODES", block)
        table = cooccurrence.cooccurrence(codes)
        assert table.firings.tolist() == (codes != 0).sum(dim=0).tolist()
        for name in MEASURES:
            np.testing.assert_allclose(as_dense(table.pairs(name)), expected[name], rtol=1e-12, atol=1e-15)
    often = np.where(expected["count"] >= 3, expected["phi"], np.nan)
    np.testing.assert_allclose(as_dense(table.pairs("phi", min_count=3)), often, rtol=1e-12, atol=1e-15)
    for i in range(m):
        for name in MEASURES:
            latents, values = table.neighbours(i, k=4, by=name)
            ranked = np.sort(expected[name][i][~np.isnan(expected[name][i])])[::-1]
            np.testing.assert_allclose(values, ranked[:4], rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(expected[name][i][latents], values, rtol=1e-12, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_rho2_is_that_of_the_conditions(seed, n, m, share):
    codes = random_codes(seed, n, m, share)
    codes[0, 0] = 1.0
    measured = cooccurrence.cooccurrence(codes).rho2()
    expected = conditions(codes, torch.eye(m))
    assert measured.n_latents == expected.n_features
    assert measured.rho2 == pytest.approx(expected.rho2, abs=1e-12)
    assert measured.mean == pytest.approx(expected.rho2_mean, abs=1e-12)
    assert measured.rho2_sqrt_n == pytest.approx(expected.rho2_sqrt_n, abs=1e-12)
    if measured.pair is not None:
        assert measured.pair == expected.rho2_pair
    assert np.nanmax(measured.largest) == measured.rho2
    used = (codes != 0).any(dim=0).numpy()
    assert np.array_equal(~np.isnan(measured.largest), used)


def test_rho2_leaves_rare_latents_out():
    codes = torch.zeros(10, 4)
    codes[:6, 0] = codes[5:, 1] = codes[0, 2] = 1.0
    table = cooccurrence.cooccurrence(codes)
    assert table.rho2().rho2 == 1
    assert table.rho2().pair == (2, 0)
    common = table.rho2(min_firings=2)
    assert (common.rho2, common.pair, common.n_latents) == (pytest.approx(1 / 5), (1, 0), 2)
    alone = table.rho2(min_firings=6)
    assert (alone.rho2, alone.pair, alone.mean) == (0.0, None, 0.0)


def test_uniform_rows_have_the_closed_form_mean():
    """s of n latents on every row: the mean of P(j | i) is (s − 1)/(n − 1) (paper, Def. 5.2)."""
    stream = torch.Generator().manual_seed(0)
    codes = torch.zeros(2000, 20).scatter_(
        1, torch.rand(2000, 20, generator=stream).argsort(dim=1)[:, :4], 1.0
    )
    measured = cooccurrence.cooccurrence(codes).rho2()
    assert measured.mean == pytest.approx(3 / 19, abs=1e-12)
    assert 3 / 19 < measured.rho2 < 3 / 19 + 5 * (3 / 19 / 400) ** 0.5


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_every_form_and_any_batches_give_the_same():
    codes = random_codes(1, 50, 9, 0.3)
    forms = [
        codes,
        codes.split(7),
        (batch for batch in codes.split(20)),
        codes.bfloat16(),
        codes.requires_grad_(),
        codes.detach().to_sparse_coo(),
        codes.detach().to_sparse_csr(),
        sparse_codes(codes.detach()),
        [sparse_codes(batch) for batch in codes.detach().split(13)],
        csr_array(codes.detach().numpy()),
        [codes[:10], csr_array(codes.detach()[10:].numpy())],
    ]
    expected = cooccurrence.cooccurrence(codes.detach()).pairs("phi").toarray()
    for form in forms:
        assert np.array_equal(cooccurrence.cooccurrence(form).pairs("phi").toarray(), expected)


def test_what_is_given_stays_as_it_is_and_stored_zeros_do_not_fire():
    given_codes = csr_array(([1.0, 0.0, 2.0, -2.0], [1, 0, 2, 2], [0, 2, 4]), shape=(2, 3))
    before = [x.copy() for x in (given_codes.data, given_codes.indices)]
    assert cooccurrence.cooccurrence(given_codes).firings.tolist() == [0, 1, 0]
    assert np.array_equal(given_codes.data, before[0])
    assert np.array_equal(given_codes.indices, before[1])


def test_counts_whose_product_leaves_int32():
    codes = torch.ones(60_000, 3)
    codes[0, 0] = codes[1, 1] = 0
    table = cooccurrence.cooccurrence(codes)
    n, c, both = 60_000, 59_999, 59_998
    assert table.pairs("lift")[0, 1] == pytest.approx(n * both / c**2, rel=1e-12)
    assert table.pairs("phi")[0, 1] == pytest.approx((n * both - c**2) / c, rel=1e-9)
    assert table.pairs("phi")[0, 2] == 0


def wide_batches():
    rng = np.random.default_rng(0)
    for _ in range(4):
        columns = np.concatenate([rng.choice(M_WIDE, L0_WIDE, replace=False) for _ in range(N_WIDE // 4)])
        ends = np.arange(0, len(columns) + 1, L0_WIDE)
        yield csr_array((np.ones(len(columns)), columns, ends), shape=(N_WIDE // 4, M_WIDE))


def test_65536_latents_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(cooccurrence, "_BLOCK_PAIRS", 2**17)
    tracemalloc.start()
    try:
        table = cooccurrence.cooccurrence(wide_batches())
        measured = table.rho2(min_firings=2)
        latent = int(table.firings.argmax())
        latents, _ = table.neighbours(latent, k=5, by="lift")
        without_pairs = tracemalloc.get_traced_memory()[1]
        pairs = table.pairs("phi")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.width == M_WIDE
    assert table.firings.sum() == N_WIDE * L0_WIDE
    assert 0 < measured.rho2 <= 1
    assert len(latents) == 5
    # every two of a row, hardly ever twice; a dense table of bytes were 4 GiB
    assert 0.98 * N_WIDE * L0_WIDE * (L0_WIDE - 1) < pairs.nnz <= N_WIDE * L0_WIDE * (L0_WIDE - 1)
    assert without_pairs < 15 * 2**20 < 12 * pairs.nnz
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cooccurrence.cooccurrence([torch.ones(2, 3), torch.ones(2, 4)]),
            "4 latents after ones of 3",
        ),
        (lambda: cooccurrence.cooccurrence(torch.tensor([[1.0, torch.nan]])), "NaN in or after row 0"),
        (lambda: cooccurrence.cooccurrence([]), "no rows"),
        (lambda: cooccurrence.cooccurrence(torch.ones(0, 3)), "no rows"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3)), r"shape \(3,\); expected \(N, M\)"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4), max_firings=11), "more than 11 firings"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4), max_firings=2**31), r"< 2\^31"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4)).pairs("odds"), "expected one of count"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4)).pairs(min_count=0), "min_count is 0"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4)).pairs(max_pairs=11), "more than 11 pairs"),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4)).neighbours(4), "latent is 4.*0..3"),
        (
            lambda: cooccurrence.cooccurrence(torch.ones(3, 4)).rho2(min_firings=4),
            "fires on 4 rows.*most is 3",
        ),
        (lambda: cooccurrence.cooccurrence(torch.ones(3, 4)).rho2(min_firings=0), "min_firings is 0"),
    ],
)
def test_errors_name_value_and_bound(call, message):
    with pytest.raises(ValueError, match=message):
        call()
