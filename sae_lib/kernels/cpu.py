"""The operations of ``reference`` on a CPU, by compiled loops."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from sae_lib.kernels import loops
from sae_lib.kernels.loops import LANES
from sae_lib.kernels.reference import top, top_of_batch
from sae_lib.kernels.sparse_codes import Support

# latents encoded at a time: enough for the product to run at full speed, few enough for 1,024 rows of
# pre-activations (4 MiB) to stay in cache until they have been scanned
CHUNK = 1024


__all__ = ["accumulate", "arrays", "decode", "dots", "index", "scan", "top", "top_of_batch"]


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return tensors as arrays, after giving Numba as many threads as PyTorch may use."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    # Numba's first call sets OpenMP's number of threads, PyTorch's included, to its own
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def index(rows: Tensor, latents: Tensor, shape: tuple[int, int]) -> tuple[Support, Tensor]:
    """See :func:`sae_lib.kernels.reference.index`."""
    i, m = arrays(rows, latents)
    by_row, _ = loops.order(i, shape[0])
    order, latent_ends = loops.order(m[by_row], shape[1])
    order = by_row[order]
    i, m = i[order], m[order]
    row_order, row_ends = loops.order(i, shape[0])
    return Support(*map(torch.from_numpy, (i, m, latent_ends, row_order, row_ends))), torch.from_numpy(order)


def scan(x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Support, Tensor]:
    """See :func:`sae_lib.kernels.reference.scan`; pre-activations are stored for one chunk at a time."""
    (n_rows, _), width = x.shape, len(weight)
    chunk = min(CHUNK, -(-width // LANES) * LANES)
    padded = -(-width // chunk) * chunk
    # infinite, so that nothing in the buffer beyond the last latent counts as an entry
    limit = torch.full((padded,), torch.inf, dtype=x.dtype)
    limit[:width] = bar
    highest = torch.empty(padded, dtype=x.dtype)
    buffer = torch.zeros(n_rows, chunk, dtype=x.dtype)
    u, limits, tops = arrays(buffer, limit, highest)
    counts = np.empty((n_rows, chunk // LANES), np.int32)
    entries = []
    for first in range(0, width, chunk):
        part = weight[first : first + chunk]
        torch.mm(x, part.T, out=buffer[:, : len(part)])
        span = slice(first, first + chunk)
        loops.count(u, limits[span], tops[span], counts)
        ends = np.cumsum(counts.sum(axis=0))
        starts = np.concatenate([[0], ends[:-1]])
        columns = np.empty(ends[-1], np.int64), np.empty(ends[-1], np.int64), np.empty(ends[-1], u.dtype)
        loops.collect(u, limits[span], counts, starts, first, *columns)
        entries.append(columns)
    rows, latents, values = (torch.from_numpy(np.concatenate(part)) for part in zip(*entries, strict=True))
    support, order = index(rows, latents, (n_rows, width))
    return highest[:width], support, values[order]


def decode(values: Tensor, support: Support, directions: Tensor) -> Tensor:
    """See :func:`sae_lib.kernels.reference.decode`."""
    out = torch.empty(support.shape[0], directions.shape[1], dtype=directions.dtype)
    loops.decode(*arrays(values, support.latents, support.row_order, support.row_ends, directions, out))
    return out


def dots(errors: Tensor, support: Support, directions: Tensor) -> Tensor:
    """See :func:`sae_lib.kernels.reference.dots`."""
    out = torch.empty(len(support), dtype=directions.dtype)
    loops.dots(*arrays(errors, support.latents, support.row_order, support.row_ends, directions, out))
    return out


def accumulate(values: Tensor, support: Support, vectors: Tensor, out: Tensor) -> None:
    """See :func:`sae_lib.kernels.reference.accumulate`."""
    loops.accumulate(*arrays(values, support.rows, support.latent_ends, vectors, out))
