"""Triton kernels on the entries of a support: every sum has one writer and a fixed order, no atomics."""
# mypy: disallow-untyped-defs=False, disable-error-code="untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def decode_row(
    values, latents, row_order, row_ends, directions, out, d, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write Σ value × direction over the entries of one row to out (B, d), for a block of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    end = tl.load(row_ends + row + 1)
    # ENTRIES sums side by side: that many gathers run at once, and the loop has nothing to reduce
    sums = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for start in range(tl.load(row_ends + row), end, ENTRIES):
        place = start + tl.arange(0, ENTRIES)
        real = place < end
        entry = tl.load(row_order + place, mask=real, other=0)
        value = tl.load(values + entry, mask=real, other=0.0).to(tl.float32)
        latent = tl.load(latents + entry, mask=real, other=0)
        address = directions + latent[:, None] * d + columns[None, :]
        direction = tl.load(address, mask=real[:, None] & inside[None, :], other=0.0)
        sums += value[:, None] * direction.to(tl.float32)
    total = tl.sum(sums, 0).to(out.dtype.element_ty)
    tl.store(out + row * d + columns, total, mask=inside)


@triton.jit
def dot_entries(
    errors, rows, latents, directions, out, n_entries, d, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write the product of row and direction to out (E,) for a few entries, neighbours in latent order.

    So a direction is fetched once for all its entries, and rows with many entries do not delay others.
    """
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    real = entry < n_entries
    row = tl.load(rows + entry, mask=real, other=0)
    latent = tl.load(latents + entry, mask=real, other=0)
    sums = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = real[:, None] & (columns < d)[None, :]
        error = tl.load(errors + row[:, None] * d + columns[None, :], mask=inside, other=0.0)
        direction = tl.load(directions + latent[:, None] * d + columns[None, :], mask=inside, other=0.0)
        sums += error.to(tl.float32) * direction.to(tl.float32)
    tl.store(out + entry, tl.sum(sums, 1).to(out.dtype.element_ty), mask=real)


@triton.jit
def accumulate_latent(
    values, rows, latent_ends, vectors, out, d, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Add Σ value × vector over the entries of one latent to out (M, d), for a block of columns."""
    latent = tl.program_id(0).to(tl.int64)
    first, end = tl.load(latent_ends + latent), tl.load(latent_ends + latent + 1)
    if first < end:
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < d
        sums = tl.zeros((ENTRIES, COLUMNS), tl.float32)
        for start in range(first, end, ENTRIES):
            entry = start + tl.arange(0, ENTRIES)
            real = entry < end
            value = tl.load(values + entry, mask=real, other=0.0).to(tl.float32)
            row = tl.load(rows + entry, mask=real, other=0)
            address = vectors + row[:, None] * d + columns[None, :]
            vector = tl.load(address, mask=real[:, None] & inside[None, :], other=0.0)
            sums += value[:, None] * vector.to(tl.float32)
        target = out + latent * d + columns
        total = tl.load(target, mask=inside).to(tl.float32) + tl.sum(sums, 0)
        tl.store(target, total.to(out.dtype.element_ty), mask=inside)
