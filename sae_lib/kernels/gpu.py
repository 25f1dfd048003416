"""The operations of ``reference`` on a GPU, by Triton kernels.

All sums are in float32; float64 is left to the reference. Results repeat bit for bit on one machine. Block
sizes are estimates, not tuned on a GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from sae_lib.kernels import reference
from sae_lib.kernels.reference import top as top
from sae_lib.kernels.reference import top_of_batch as top_of_batch
from sae_lib.kernels.sparse_codes import Support
from sae_lib.kernels.triton_entries import accumulate_latent, decode_row, dot_entries
from sae_lib.kernels.triton_scan import LANES, collect_groups, scan_tile

# space for groups with an entry: first this share of all groups, then this factor times the last scan's share
FIRST_ROOM, HEADROOM = 0.05, 1.5
# compute capabilities whose programs may use the shared memory that the larger tiles need, 144 KiB
ROOMY = {(8, 0), (9, 0), (10, 0), (10, 3)}
# entries and columns that a program processes at a time; groups of the scan that it searches
DECODE, DOTS, ACCUMULATE, BLOCK = (16, 256), (16, 128), (8, 256), 128

# share of the groups that had an entry in the last scan, by device; a wrong guess costs time, never an entry
_shares: dict[torch.device, float] = {}


def _double(*tensors: Tensor) -> bool:
    return any(tensor.dtype == torch.float64 for tensor in tensors)


def _index_type(size: int) -> torch.dtype:
    """Return the type of integers below ``size`` that sorts fastest."""
    return torch.int32 if size < 2**31 else torch.int64


def _ends(sorted_places: Tensor, size: int) -> Tensor:
    """Return where the runs of sorted places end, after a leading 0: (size + 1,) int64."""
    places = torch.arange(-1, size, dtype=sorted_places.dtype, device=sorted_places.device)
    return torch.searchsorted(sorted_places, places, right=True)


def _support(keys: Tensor, shape: tuple[int, int]) -> Support:
    """Build the support of sorted keys latent · B + row."""
    n_rows, width = shape
    latents = torch.div(keys, n_rows, rounding_mode="floor")
    rows = keys - latents * n_rows
    by_row = rows.to(_index_type(n_rows)).sort(stable=True)
    latent_ends, row_ends = _ends(latents, width), _ends(by_row.values, n_rows)
    return Support(rows.long(), latents.long(), latent_ends, by_row.indices, row_ends)


def index(rows: Tensor, latents: Tensor, shape: tuple[int, int]) -> tuple[Support, Tensor]:
    """See :func:`sae_lib.kernels.reference.index`."""
    keys, order = (latents * shape[0] + rows).to(_index_type(shape[0] * shape[1])).sort()
    return _support(keys, shape), order


def cuda_precision() -> str:
    """Return how PyTorch is set to multiply float32 on CUDA: as ``"tf32"``, or exactly, ``"ieee"``."""
    switches = torch.backends.cuda.matmul
    # the older switch raises once the newer one (PyTorch 2.9) was used; the newer one follows the older
    if hasattr(switches, "fp32_precision"):
        return "tf32" if switches.fp32_precision == "tf32" else "ieee"
    return "tf32" if switches.allow_tf32 else "ieee"


def _operands(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, str]:
    """Return both factors as they are multiplied, and the precision of float32."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (x, weight))
    precision = cuda_precision() if kind == "cuda" else "ieee"
    return x.detach().contiguous(), weight.detach().contiguous(), precision


def gpu_tiles(element_size: int, capability: tuple[int, int]) -> dict[str, int]:
    """Return the scan's tiles for numbers of ``element_size`` bytes on a GPU of this compute capability."""
    tiles = {"ROWS": 128, "LATENTS": 128, "DEPTH": 32, "GROUP": 16, "num_warps": 8, "num_stages": 3}
    if element_size == 4:
        return tiles
    if capability not in ROOMY:
        return tiles | {"DEPTH": 64, "num_stages": 2}
    return tiles | {"DEPTH": 64, "LATENTS": 256}


def _tiles(x: Tensor) -> dict[str, int]:
    """Return the scan's tiles for this factor; small ones in the interpreter, which is slow."""
    if x.device.type == "cpu":
        return {"ROWS": 16, "LATENTS": 32, "DEPTH": 16, "GROUP": 2}
    return gpu_tiles(x.element_size(), torch.cuda.get_device_capability(x.device))


def scan(x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Support, Tensor]:
    """See :func:`sae_lib.kernels.reference.scan`; the pre-activations are never stored.

    Under autocast the factors are rounded to its type. Otherwise float32 is multiplied exactly, or as TF32
    where PyTorch is set to allow that.
    """
    if _double(x, weight, bar):
        return reference.scan(x, weight, bar)
    dtype, n_rows, width = x.dtype, len(x), len(weight)
    x, weight, precision = _operands(x, weight)
    bar = bar.detach().to(torch.float32).contiguous()
    most = n_rows * triton.cdiv(width, LANES.value)
    share = _shares.get(x.device)
    room = int((FIRST_ROOM if share is None else HEADROOM * share) * most) + 1
    while True:
        tops, groups, kept, totals = _scan(x, weight, bar, precision, min(room, most))
        n_groups, n_entries = totals.tolist()
        if n_groups <= len(groups):
            break
        room = n_groups
    _shares[x.device] = n_groups / most
    keys, values = _collect(groups[:n_groups], kept, bar, n_entries, n_rows)
    keys, order = keys.sort()
    return tops.amax(dim=0).to(dtype), _support(keys, (n_rows, width)), values[order].to(dtype)


def _scan(
    x: Tensor, weight: Tensor, bar: Tensor, precision: str, room: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return peaks by tile of rows, keys and values of groups with an entry, numbers of groups and entries.

    If the groups outnumber ``room``, keys and values are useless.
    """
    (n_rows, d), width, device = x.shape, len(weight), x.device
    tiles = _tiles(x)
    down, across = triton.cdiv(n_rows, tiles["ROWS"]), triton.cdiv(width, tiles["LATENTS"])
    tops = torch.empty(down, width, device=device)
    totals = torch.zeros(2, dtype=torch.int64, device=device)
    groups = torch.empty(room, dtype=_index_type(n_rows * (width + LANES.value)), device=device)
    kept = torch.empty(room, LANES.value, device=device)
    whole = d % tiles["DEPTH"] == 0
    with torch.cuda.device_of(x):
        scan_tile[(down * across,)](
            x, weight, bar, tops, totals, groups, kept, n_rows, width, d, room,
            WHOLE=whole, PRECISION=precision, **tiles,
        )  # fmt: skip
    return tops, groups, kept, totals


def _collect(groups: Tensor, kept: Tensor, bar: Tensor, n_entries: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """Return keys and values of the entries (E,) of groups, in any order."""
    keys = torch.empty(n_entries, dtype=groups.dtype, device=groups.device)
    values = torch.empty(n_entries, device=groups.device)
    if n_entries:
        total = torch.zeros((), dtype=torch.int64, device=groups.device)
        with torch.cuda.device_of(groups):
            collect_groups[(triton.cdiv(len(groups), BLOCK),)](
                groups, kept, bar, total, keys, values, len(groups), n_rows, len(bar), BLOCK=BLOCK
            )
    return keys, values


def _block(d: int, most: tuple[int, int]) -> tuple[int, int]:
    """Return how many entries and columns a program processes at a time: columns to fit d, up to ``most``."""
    entries, columns = most
    return entries, min(columns, max(16, triton.next_power_of_2(d)))


def decode(values: Tensor, support: Support, directions: Tensor) -> Tensor:
    """See :func:`sae_lib.kernels.reference.decode`."""
    if _double(values, directions):
        return reference.decode(values, support, directions)
    values, directions = values.detach().contiguous(), directions.detach().contiguous()
    n_rows, d = support.shape[0], directions.shape[1]
    out = directions.new_empty(n_rows, d)
    entries, columns = _block(d, DECODE)
    with torch.cuda.device_of(out):
        decode_row[(n_rows, triton.cdiv(d, columns))](
            values, support.latents, support.row_order, support.row_ends, directions, out, d,
            ENTRIES=entries, COLUMNS=columns,
        )  # fmt: skip
    return out


def dots(errors: Tensor, support: Support, directions: Tensor) -> Tensor:
    """See :func:`sae_lib.kernels.reference.dots`."""
    if _double(errors, directions):
        return reference.dots(errors, support, directions)
    errors, directions = errors.detach().contiguous(), directions.detach().contiguous()
    d = directions.shape[1]
    entries, columns = _block(d, DOTS)
    out = directions.new_empty(len(support))
    if len(support):
        with torch.cuda.device_of(out):
            dot_entries[(triton.cdiv(len(support), entries),)](
                errors, support.rows, support.latents, directions, out, len(support), d,
                ENTRIES=entries, COLUMNS=columns,
            )  # fmt: skip
    return out


def accumulate(values: Tensor, support: Support, vectors: Tensor, out: Tensor) -> None:
    """See :func:`sae_lib.kernels.reference.accumulate`."""
    if _double(values, vectors, out):
        reference.accumulate(values, support, vectors, out)
        return
    values, vectors = values.detach().contiguous(), vectors.detach().contiguous()
    total = out.contiguous()
    d = vectors.shape[1]
    entries, columns = _block(d, ACCUMULATE)
    with torch.cuda.device_of(out):
        accumulate_latent[(len(total), triton.cdiv(d, columns))](
            values, support.rows, support.latent_ends, vectors, total, d,
            ENTRIES=entries, COLUMNS=columns,
        )  # fmt: skip
    if total is not out:
        out.copy_(total)
