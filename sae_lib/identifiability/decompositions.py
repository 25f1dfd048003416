"""Decompositions X = HV of the same rows, and changes that no data can show (paper, sections 1 and 4).

:func:`permute`, :func:`rescale` and :func:`split` change the order of features, their scale, and whether one
feature is listed as several parallel ones, but no row. :func:`sae_lib.identifiability.certify` undoes them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import at_least
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder
from sae_lib.synthetic.data import SyntheticData

# entries of H read at a time: 16 M float32 are 64 MB, so that 100,000 rows of 4,096 features fit
_CHUNK_NUMBERS = 2**24


class Decomposition(NamedTuple):
    """Non-negative codes and features that explain rows.

    Attributes:
        coefficients: H, (N, n), non-negative; dense, or sparse (COO or CSR).
        dictionary: V, (n, d), one feature a row.
    """

    coefficients: Tensor
    dictionary: Tensor

    @property
    def rows(self) -> Tensor:
        """Rows X = HV, (N, d)."""
        return self.coefficients @ self.dictionary


Decomposed = Decomposition | SyntheticData | tuple[Tensor, Tensor]


def decomposition(given: Decomposed, name: str = "decomposition") -> Decomposition:
    """Return ``given`` as a :class:`Decomposition`; a ValueError calls it ``name``.

    Refused are shapes that do not fit, an empty dictionary, NaN, and a negative coefficient.
    """
    h, v = (given.coefficients, given.dictionary) if isinstance(given, SyntheticData) else given
    if v.ndim != 2 or 0 in v.shape:
        raise ValueError(f"{name}: dictionary has shape {tuple(v.shape)}; expected (n, d), both at least 1")
    if h.ndim != 2 or h.shape[0] == 0 or h.shape[1] != v.shape[0]:
        raise ValueError(
            f"{name}: coefficients {tuple(h.shape)} and dictionary {tuple(v.shape)} do not fit; "
            f"expected (N, {v.shape[0]}) for the coefficients, N at least 1"
        )
    if not v.isfinite().all():
        raise ValueError(f"{name}: dictionary holds NaN or infinity in row {_first(~v.isfinite())}")
    for start, block in chunks(h):
        if not block.isfinite().all():
            row = start + _first(~block.isfinite())
            raise ValueError(f"{name}: coefficients hold NaN or infinity in row {row}")
        if (block < 0).any():
            row, feature = (block < 0).nonzero()[0].tolist()
            raise ValueError(
                f"{name}: coefficient of feature {feature} in row {start + row} is {block[row, feature]:g}; "
                "expected at least 0 (flip the signs of a feature and of its coefficients together)"
            )
    return Decomposition(h.detach(), v.detach())


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0, 0])


def chunks(coefficients: Tensor, *, widest: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yield dense pieces (rows, n) of a dense or sparse matrix (N, n), each with the index of its first row.

    For two matrices read side by side, ``widest`` is the larger n, so that their pieces have the same rows.
    """
    n_rows, n_features = coefficients.shape
    size = max(1, _CHUNK_NUMBERS // max(n_features, widest))
    if coefficients.layout == torch.strided:
        for start in range(0, n_rows, size):
            yield start, coefficients[start : start + size]
        return
    table = coefficients.to_sparse_coo().coalesce()
    (row, column), values = table.indices(), table.values()
    for start in range(0, n_rows, size):
        # coalesced entries are in the order of their rows
        ends = torch.searchsorted(row, torch.tensor([start, start + size]))
        inside = slice(*ends.tolist())
        dense = values.new_zeros(min(size, n_rows - start), n_features)
        yield start, dense.index_put_((row[inside] - start, column[inside]), values[inside])


@torch.no_grad()
def from_autoencoder(sae: SparseAutoencoder, rows: Tensor) -> Decomposition:
    """Return the explanation of rows (N, d) by an autoencoder: its codes and the directions it writes.

    >>> sae = sae_lib.SparseAutoencoder(d_in=16, width=64)
    >>> explained = sae_lib.identifiability.from_autoencoder(sae, torch.eye(16))
    >>> explained.coefficients.shape, explained.dictionary.shape
    (torch.Size([16, 64]), torch.Size([64, 16]))

    The output scale goes into the codes, its sign into the directions, so that codes are non-negative.
    b_pre is no feature and is left out: HV is the reconstruction less b_pre. A latent that fires on no row
    has no coefficients, and :func:`sae_lib.identifiability.certify` counts it as unused.
    """
    return Decomposition(sae.normalisation.invert(sae.magnitudes(rows), rows), sae.directions)


def permute(
    given: Decomposed, order: Sequence[int] | Tensor | None = None, *, seed: int = 0
) -> Decomposition:
    """Put the features in another order, random by default: feature ``order[k]`` comes k-th."""
    h, v = decomposition(given)
    if order is None:
        order = torch.randperm(len(v), generator=generator(seed, "permute"))
    index = torch.as_tensor(order)
    if index.shape != (len(v),) or not torch.equal(index.sort().values, torch.arange(len(v))):
        raise ValueError(f"order is {index.tolist()}; expected each of 0 … {len(v) - 1} once")
    return Decomposition(h[:, index], v[index])


def rescale(
    given: Decomposed, scale: Sequence[float] | Tensor | None = None, *, seed: int = 0
) -> Decomposition:
    """Multiply feature i by ``scale[i]`` > 0 and divide its coefficients by it.

    The scale (n,) is by default random, log-uniform between 1/4 and 4. A negative scale is no ambiguity: it
    would make coefficients negative.
    """
    h, v = decomposition(given)
    if scale is None:
        scale = 4 ** (2 * torch.rand(len(v), generator=generator(seed, "rescale")) - 1)
    factors = torch.as_tensor(scale).to(v)
    if factors.shape != (len(v),) or not ((factors > 0) & factors.isfinite()).all():
        raise ValueError(f"scale is {factors.tolist()}; expected {len(v)} finite numbers above 0")
    return Decomposition(h / factors, v * factors[:, None])


def split(
    given: Decomposed, pieces: int | Sequence[int] | Tensor = 2, *, spread: float = 0.0, seed: int = 0
) -> Decomposition:
    """List each feature as several, side by side, without changing any row.

    Args:
        given: The decomposition.
        pieces: Pieces of each feature, or of feature i as ``pieces[i]``; at least 1.
        spread: 0 makes parallel pieces, of which each row uses a random one: one feature under several names.
            A positive spread makes near-parallel pieces that a row uses together and equally:
            v_i + spread·‖v_i‖·δ with unit vectors δ that add up to zero over the pieces of a feature.
        seed: Seed of the draws.
    """
    h, v = decomposition(given)
    counts = torch.as_tensor(pieces).expand(len(v)) if isinstance(pieces, int) else torch.as_tensor(pieces)
    if counts.shape != (len(v),) or (counts < 1).any():
        raise ValueError(f"pieces is {pieces}; expected a whole number above 0, or {len(v)} of them")
    at_least(0, spread=spread)
    draws = generator(seed, "split")
    owner = torch.repeat_interleave(torch.arange(len(v)), counts)
    if spread == 0:
        first = counts.cumsum(0) - counts
        chosen = first + (torch.rand(h.shape, generator=draws) * counts).long()
        parts = torch.arange(len(owner)) == chosen[:, owner]
        return Decomposition(h[:, owner] * parts, v[owner])
    tilt = _balanced(counts, v.shape[1], draws).to(v) * v.norm(dim=1)[owner, None]
    return Decomposition((h / counts)[:, owner], v[owner] + spread * tilt)


def _balanced(counts: Tensor, d_in: int, draws: torch.Generator) -> Tensor:
    """Draw vectors (Σ counts, d) of norm at most 1 that add up to zero over each run of ``counts[i]``."""
    tilts = []
    for count in counts.tolist():
        random = torch.randn(count, d_in, generator=draws, dtype=torch.float64)
        centred = random - random.mean(dim=0)
        # two pieces become opposite and of norm 1; a single piece does not move
        longest = centred.norm(dim=1).max()
        tilts.append(centred / longest if count > 1 else torch.zeros_like(centred))
    return torch.cat(tilts)


def unit_rows(dictionary: Tensor) -> Tensor:
    """Return unit rows (n, d) in float64; a zero row stays zero."""
    return normalize(dictionary.double(), dim=1)
