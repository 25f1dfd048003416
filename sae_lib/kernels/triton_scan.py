"""Encoder product and gate in one kernel, for Triton: pre-activations live only inside a tile."""
# mypy: disallow-untyped-defs=False, disable-error-code="untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def scan_tile(
    x,
    weight,
    bar,
    tops,
    cursors,
    total,
    keys,
    values,
    n_rows,
    width,
    d,
    capacity,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of u = x Wᵀ: its largest u of each latent, and its entries above the bar.

    x: (B, d). weight: (M, d). bar: (M,). tops: (row tiles, M). cursors: int32, 0, one per tile. total: int64,
    0. keys, values: room for ``capacity`` entries; an entry's key is latent · B + row. Entries come in any
    order; those that find no room are counted in ``total`` all the same.
    GROUP: tiles of rows that share their latents, one after the other. WHOLE: DEPTH divides d.
    """
    tile = tl.program_id(0)
    in_group = GROUP * tl.cdiv(width, LATENTS)
    first = tile // in_group * GROUP
    height = min(tl.cdiv(n_rows, ROWS) - first, GROUP)
    row_tile = first + tile % in_group % height
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    latents = tile % in_group // height * LATENTS + tl.arange(0, LATENTS)

    # beyond the edge another row is read, not memory that is not ours; what it gives is not looked at
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
    # −∞ of a row too many is above no bar, and nothing is above the +∞ of a latent too many
    above = u > tl.load(bar + latents, mask=inside, other=float("inf"))[None, :]
    count = tl.sum(tl.sum(above.to(tl.int32), 1), 0)
    base = tl.atomic_add(total, count.to(tl.int64), sem="relaxed")
    # few of a tile's entries are above: a slot each from a counter of the tile costs less than a prefix sum.
    # The order of slots is left to chance, the keys are sorted afterwards
    counter = cursors + tile + tl.zeros((ROWS, LATENTS), tl.int32)
    slot = base + tl.atomic_add(counter, 1, mask=above, sem="relaxed")
    kept = above & (slot < capacity)
    key = latents.to(keys.dtype.element_ty)[None, :] * n_rows + rows[:, None]
    tl.store(keys + slot, key, mask=kept)
    tl.store(values + slot, u, mask=kept)
