"""Encoder product and gate in one Triton kernel: pre-activations exist only inside a tile.

Most of a tile is below the bar. Entries are picked in two steps: ``scan_tile`` keeps groups of 8 latents of
a row that hold an entry, with an eighth of the bookkeeping beside the product; ``collect_groups`` picks the
entries from these groups.
"""
# mypy: disallow-untyped-defs=False, disable-error-code="untyped-decorator"

import triton
import triton.language as tl

# latents of a group: eight float32 are one sector of memory, the least that is written at a time
LANES = tl.constexpr(8)


@triton.jit
def scan_tile(
    x, weight, bar, tops, totals, keys, values, n_rows, width, d, capacity,
    ROWS: tl.constexpr, LATENTS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a tile of u = x Wᵀ: the largest u of each latent, and the groups with an entry above the bar.

    From x (B, d), weight (M, d) and bar (M,) it writes ``tops`` (row tiles, M), adds the numbers of groups
    and entries to ``totals`` (int64, initially 0), and writes each group's key, group · B + row, to ``keys``
    (capacity,) and its u to ``values`` (capacity, LANES). Groups come in any order; those beyond ``capacity``
    are only counted. GROUP tiles of rows in succession share their latents; WHOLE says that DEPTH divides d.
    """
    tile = tl.program_id(0)
    in_group = GROUP * tl.cdiv(width, LATENTS)
    first = tile // in_group * GROUP
    height = min(tl.cdiv(n_rows, ROWS) - first, GROUP)
    row_tile = first + tile % in_group % height
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    tile_latent = tile % in_group // height
    latents = tile_latent * LATENTS + tl.arange(0, LATENTS)

    # beyond the edge some valid row is read instead of foreign memory; its results are not used
    k = tl.arange(0, DEPTH)
    left = x + (rows % n_rows).to(tl.int64)[:, None] * d + k[None, :]
    right = weight + (latents % width).to(tl.int64)[None, :] * d + k[:, None]
    u = tl.zeros((ROWS, LATENTS), tl.float32)
    for start in range(0, d, DEPTH):
        if WHOLE:
            a, b = tl.load(left), tl.load(right)
        else:
            a = tl.load(left, mask=k[None, :] < d - start, other=0.0)
            b = tl.load(right, mask=k[:, None] < d - start, other=0.0)
        u = tl.dot(a, b, u, input_precision=PRECISION)
        left += DEPTH
        right += DEPTH

    u = tl.where(rows[:, None] < n_rows, u, float("-inf"))
    inside = latents < width
    tl.store(tops + row_tile.to(tl.int64) * width + latents, tl.max(u, 0), mask=inside)
    # beyond the edge, rows are −∞, which is above no bar, and bars of latents +∞, which nothing is above
    above = u > tl.load(bar + latents, mask=inside, other=float("inf"))[None, :]
    GROUPS: tl.constexpr = LATENTS // LANES
    counts = tl.sum(tl.reshape(above.to(tl.int32), (ROWS, GROUPS, LANES)), 2)
    hit = counts > 0
    hits = tl.reshape(hit.to(tl.int32), (ROWS * GROUPS,))
    tl.atomic_add(totals + 1, tl.sum(tl.sum(counts, 1), 0).to(tl.int64), sem="relaxed")
    base = tl.atomic_add(totals, tl.sum(hits, 0).to(tl.int64), sem="relaxed")
    slot = base + tl.reshape(tl.cumsum(hits, 0) - hits, (ROWS, GROUPS))
    kept = hit & (slot < capacity)
    group = tile_latent * GROUPS + tl.arange(0, GROUPS)
    key = group.to(keys.dtype.element_ty)[None, :] * n_rows + rows[:, None]
    tl.store(keys + slot, key, mask=kept)
    lanes = tl.arange(0, LANES)[None, None, :]
    target = values + slot[:, :, None] * LANES + lanes
    tl.store(target, tl.reshape(u, (ROWS, GROUPS, LANES)), mask=kept[:, :, None] & (lanes >= 0))


@triton.jit
def collect_groups(groups, kept, bar, total, keys, values, n_groups, n_rows, width, BLOCK: tl.constexpr):
    """Write keys, latent · B + row, and values of the entries of groups, in any order.

    ``groups`` are the keys of the groups, ``kept`` (G, LANES) their values; ``total`` (int64, initially 0)
    counts the entries.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(groups + place, mask=place < n_groups, other=0)
    lanes = tl.arange(0, LANES)[None, :]
    latent = (key // n_rows)[:, None] * LANES + lanes
    real = (place < n_groups)[:, None] & (latent < width)
    u = tl.load(kept + place[:, None] * LANES + lanes, mask=real, other=float("-inf"))
    above = u > tl.load(bar + latent, mask=real, other=float("inf"))
    hits = tl.reshape(above.to(tl.int32), (BLOCK * LANES,))
    base = tl.atomic_add(total, tl.sum(hits, 0).to(tl.int64), sem="relaxed")
    slot = base + tl.reshape(tl.cumsum(hits, 0) - hits, (BLOCK, LANES))
    tl.store(keys + slot, latent.to(keys.dtype.element_ty) * n_rows + (key % n_rows)[:, None], mask=above)
    tl.store(values + slot, u, mask=above)
