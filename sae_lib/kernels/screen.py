"""A product in bfloat16 that finds where the exact one can matter; only there is it computed exactly.

Processors with units for bfloat16 multiply it two to four times as fast as float32. A gate needs only the
sign of u + b, so a rounded product tells nearly all latents that stay silent; those that may fire are the
*candidates*, whose u is then computed in float32 and gated again. With x̂ and ŵ rounded to bfloat16 and û the
product as the processor returns it, u as the loops compute it differs from û by at most the sum of

* ‖x − x̂‖ ‖w‖ + ‖x̂‖ ‖w − ŵ‖, as x·w − x̂·ŵ = (x − x̂)·w + x̂·(w − ŵ), by Cauchy and Schwarz;
* γ ‖x̂‖ ‖ŵ‖, the rounding of the float32 sum of the d products, each of which is exact;
* γ ‖x‖ ‖w‖, the same of the exact product, so that the gate sees what it would see without a screen;
* 2⁻⁹ |û|, the rounding of that sum to bfloat16.

Here γ = 2 (d + 2) 2⁻²⁴, twice the bound of a sum of d numbers in any order (Higham, "Accuracy and Stability
of Numerical Algorithms", section 3.1); norms are raised above their own rounding. The support is therefore
that of the exact product up to entries within its own rounding of their bar.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sae_lib.kernels import cpu, screen_loops
from sae_lib.kernels.cpu import CHUNK, LANES, arrays
from sae_lib.kernels.sparse_codes import Support

# Largest share of candidates; where there are more, the float32 product is faster than computing them.
MOST = 0.04
# rows of the batch from which the threshold of a whole batch is guessed, and the factors on the number of
# entries that should lie above the first guess and the second
GUESS_ROWS, HEADROOM = 32, (1.3, 2.6)


class Rounded:
    """Rows (M, d) of float32, rounded to bfloat16, with what the bound needs of them.

    Attributes:
        low: The rounded rows (M, d).
        norm: Bound of the norm of each row (M,).
        gap: Bound of the norm of the change of each row (M,).
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.version = rows, -1
        self.low = torch.empty_like(rows, dtype=torch.bfloat16)
        self.norm, self.gap = rows.new_empty(2, len(rows)).unbind()

    def arrays(self) -> list[np.ndarray]:
        """Return ``low``, as the int16 of its bits, ``norm`` and ``gap`` as arrays to write to."""
        return arrays(self.low.view(torch.int16), self.norm, self.gap)

    def stamp(self) -> None:
        """Say that the rounded rows are those of the rows as they are now."""
        self.version = self.rows._version

    def refresh(self) -> Rounded:
        """Round again if the rows have changed since."""
        if self.version != self.rows._version:
            screen_loops.round_rows(*arrays(self.rows), *self.arrays())
            self.stamp()
        return self


class Screen:
    """The operations of ``cpu`` with a screened product, for the autoencoder of one run.

    Where a selection has too many candidates, it is left to the float32 product.

    Attributes:
        candidates: Number of entries that the last selection computed exactly.
    """

    index = staticmethod(cpu.index)
    decode = staticmethod(cpu.decode)
    dots = staticmethod(cpu.dots)
    accumulate = staticmethod(cpu.accumulate)

    def __init__(self) -> None:
        self.candidates = 0
        self._rounded: dict[int, Rounded] = {}

    def kept(self, weight: Tensor) -> Rounded | None:
        """Return the rounded rows of a weight, perhaps out of date, if it was in a product."""
        rounded = self._rounded.get(id(weight))
        return rounded if rounded and rounded.rows is weight else None

    def rounded(self, weight: Tensor) -> Rounded:
        """Return the rounded rows of a weight, up to date."""
        rounded = self.kept(weight)
        if rounded is None:
            rounded = self._rounded[id(weight)] = Rounded(weight)
        return rounded.refresh()

    def scan(self, x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Support, Tensor]:
        """See :func:`sae_lib.kernels.reference.scan`; peaks (M,) are −∞ where no u exceeds its bar."""
        entries = self.above(x, weight, bar)
        if entries is None:
            return cpu.scan(x, weight, bar)
        rows, latents, values = entries
        support, order = cpu.index(rows, latents, (len(x), len(weight)))
        values = values[order]
        peak = torch.full((len(weight),), -torch.inf)
        return peak.scatter_reduce(0, support.latents, values, "amax"), support, values

    def _too_many(self, x: Tensor, weight: Tensor) -> bool:
        return self.candidates > MOST * len(x) * len(weight)

    def above(self, x: Tensor, weight: Tensor, bar: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return row, latent and u of entries above the bar (M,), (E,) each; None for too many candidates."""
        low_x, factors = _rounded_rows(x)
        rounded = self.rounded(weight)
        width = len(weight)
        chunk = min(CHUNK, -(-width // LANES) * LANES)
        padded = -(-width // chunk) * chunk
        # infinite, so that nothing in the buffer beyond the last latent counts as a candidate
        limit = torch.full((padded,), torch.inf)
        limit[:width] = bar
        norm, gap = torch.zeros(2, padded).unbind()
        norm[:width], gap[:width] = rounded.norm, rounded.gap
        buffer = torch.zeros(len(x), chunk, dtype=torch.bfloat16)
        product, limits, norms, gaps, exact_x, exact_w = arrays(
            buffer.view(torch.int16), limit, norm, gap, x, weight
        )
        counts = np.empty((len(x), chunk // LANES), np.int32)
        entries, self.candidates = [], 0
        for first in range(0, width, chunk):
            span = slice(first, first + chunk)
            part = rounded.low[span]
            torch.mm(low_x, part.T, out=buffer[:, : len(part)])
            bound = product, limits[span], *factors, norms[span], gaps[span], counts
            screen_loops.count(*bound)
            ends = np.cumsum(counts.sum(axis=0))
            self.candidates += int(ends[-1])
            if self._too_many(x, weight):
                return None
            starts = np.concatenate([[0], ends[:-1]])
            columns = (
                np.empty(ends[-1], np.int64),
                np.empty(ends[-1], np.int64),
                np.empty(ends[-1], np.float32),
            )
            arguments = *bound, starts, first, exact_x, exact_w[span], *columns
            screen_loops.verify(*arguments)
            above = columns[0] >= 0
            entries.append([column[above] for column in columns])
        rows, latents, values = (
            torch.from_numpy(np.concatenate(part)) for part in zip(*entries, strict=True)
        )
        return rows, latents, values

    def top(self, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """See :func:`sae_lib.kernels.reference.top`."""
        low_x, factors = _rounded_rows(x)
        rounded = self.rounded(weight)
        width = len(weight)
        block = max(1, 2 * CHUNK**2 // width)
        lanes = min(width, max(256, 8 * k))
        latents, values = torch.empty(len(x), k, dtype=torch.int64), torch.empty(len(x), k)
        verified = np.zeros(len(x), np.int64)
        buffer = torch.empty(block, width, dtype=torch.bfloat16)
        product, b, norm, gap, exact_x, exact_w, places, us = arrays(
            buffer.view(torch.int16), bias, rounded.norm, rounded.gap, x, weight, latents, values
        )
        for first in range(0, len(x), block):
            span = slice(first, first + block)
            part = low_x[span]
            torch.mm(part, rounded.low.T, out=buffer[: len(part)])
            slack, size = (factor[span] for factor in factors)
            screen_loops.top(
                product[: len(part)], b, slack, size, norm, gap, k, lanes,
                exact_x[span], exact_w, places[span], us[span], verified[span],
            )  # fmt: skip
            self.candidates = int(verified.sum())
            if self._too_many(x, weight):
                return cpu.top(x, weight, bias, k)
        rows = torch.arange(len(x)).repeat_interleave(k)
        return rows, latents.flatten(), values.flatten()

    def top_of_batch(
        self, x: Tensor, weight: Tensor, bias: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :func:`sae_lib.kernels.reference.top_of_batch`.

        The entries above a guess are computed; if they are too few, those above a lower one.
        """
        for room in HEADROOM:
            entries = self.above(x, weight, self._guess(x, weight, bias, room * count / len(x)) - bias)
            if entries is None:
                break
            rows, latents, values = entries
            if len(values) >= count:
                kept = (values + bias[latents]).topk(count, sorted=False).indices
                return rows[kept], latents[kept], values[kept]
        return cpu.top_of_batch(x, weight, bias, count)

    def _guess(self, x: Tensor, weight: Tensor, bias: Tensor, per_row: float) -> float:
        """Return a level that about so many u + b (M,) of each row exceed, from some of the rows; ≥ 0."""
        some = x[:: max(1, len(x) // GUESS_ROWS)]
        product = (some.bfloat16() @ self.rounded(weight).low.T).view(torch.int16)
        counts = np.zeros(2**15, np.int64)
        bits, b = arrays(product, bias)
        screen_loops.histogram(bits, b, counts)
        from_above = counts[::-1].cumsum()
        place = np.searchsorted(from_above, per_row * len(some))
        # the lower edge of a bin of numbers that share their 16 leading bits
        edges = np.arange(len(counts), dtype=np.int32) << 16
        return float(edges.view(np.float32)[::-1][place]) if place < len(counts) else 0.0


def bounds(x: Tensor, weight: Tensor, product: Tensor) -> Tensor:
    """Bound the error (B, M) of a product in bfloat16 of x (B, d) and weight (M, d), in float64."""
    slack, size = (torch.from_numpy(factor).double()[:, None] for factor in _rounded_rows(x)[1])
    rounded = Rounded(weight).refresh()
    stored = float(screen_loops.STORED) * product.double().abs()
    return stored + slack * rounded.norm.double() + size * rounded.gap.double()


def _rounded_rows(x: Tensor) -> tuple[Tensor, list[np.ndarray]]:
    """Return rows (B, d) in bfloat16 and their two factors (B,) of the bound."""
    rounded = Rounded(x).refresh()
    gamma = 2 * (x.shape[1] + 2) * 2.0**-24
    slack = rounded.gap + gamma * (2 * rounded.norm + rounded.gap)
    return rounded.low, arrays(slack, (rounded.norm + rounded.gap) * (1 + gamma))
