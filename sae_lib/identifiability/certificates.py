"""Two decompositions compared up to differences that no data can show (paper, Def. 5.1)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching
from torch import Tensor

from sae_lib.identifiability.decompositions import Decomposed, chunks, decomposition, unit_rows


@dataclass(frozen=True)
class Block:
    """Features of two decompositions that stand for each other.

    Attributes:
        first: Their indices in the first decomposition, ascending.
        second: Their indices in the second decomposition, ascending.
        cosine: Smallest cosine between the two sides. Below 1 − ε the block is only a chain of links: ε is
            too large for so coherent a dictionary.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    cosine: float


@dataclass(frozen=True)
class Certificate:
    """The result of comparing two decompositions.

    Unused features have a zero row or no nonzero coefficient. They explain nothing, so nothing can be said
    about them, and the comparison leaves them out.

    Attributes:
        epsilon: Smallest ε at which every used feature of both sides has a match; infinity if there is none.
        tolerance: The ε that was asked for, to which all fields below refer.
        blocks: Matched features, in the order of the first decomposition.
        unmatched_first: Used features of the first decomposition without a match.
        unmatched_second: Used features of the second decomposition without a match.
        unused_first: Unused features of the first decomposition.
        unused_second: Unused features of the second decomposition.
        row_error: ‖HV − H'V'‖ / ‖HV‖ (Frobenius norms).
        row_tolerance: Largest row error that is allowed.
        code_error: ‖C − C'‖ / ‖C‖ where C (N, blocks) sums the codes of a block, each times the norm of its
            feature. NaN without blocks.
        omega: Ω, (n', n), non-negative and block-diagonal after reordering. At ε = 0, V' = ΩV, and H'Ω
            explains the rows in V.
    """

    epsilon: float
    tolerance: float
    blocks: tuple[Block, ...]
    unmatched_first: tuple[int, ...]
    unmatched_second: tuple[int, ...]
    unused_first: tuple[int, ...]
    unused_second: tuple[int, ...]
    row_error: float
    row_tolerance: float
    code_error: float
    omega: Tensor

    @property
    def holds(self) -> bool:
        """Whether both explain the same rows and every used feature has a match."""
        same_rows = self.row_error <= self.row_tolerance
        return same_rows and bool(self.blocks) and not (self.unmatched_first or self.unmatched_second)

    def __str__(self) -> str:
        n_first = sum(len(block.first) for block in self.blocks)
        n_second = sum(len(block.second) for block in self.blocks)
        pairs = sum(len(block.first) == len(block.second) == 1 for block in self.blocks)
        return (
            f"{'the same' if self.holds else 'NOT the same'} up to ε = {self.tolerance:g}; "
            f"all match from ε = {self.epsilon:.4f} on\n"
            f"rows       relative difference {_short(self.row_error)}, allowed {self.row_tolerance:g}\n"
            f"matched    {n_first} of {n_first + len(self.unmatched_first)} features "
            f"with {n_second} of {n_second + len(self.unmatched_second)}\n"
            f"blocks     {len(self.blocks)}: {pairs} one to one, {len(self.blocks) - pairs} split\n"
            f"codes      relative difference {_short(self.code_error)} in matched blocks\n"
            f"unused     {len(self.unused_first)} and {len(self.unused_second)}"
        )


def _short(error: float) -> str:
    """Format an error; rounding errors differ between machines, so those are not written out."""
    return "below 1e-06" if error < 1e-6 else f"{error:.1e}"


def certify(
    first: Decomposed,
    second: Decomposed,
    *,
    epsilon: float = 0.1,
    splitting: bool = True,
    row_tolerance: float = 1e-4,
) -> Certificate:
    """Compare two decompositions of the same rows up to order, positive scale and splitting.

    >>> from sae_lib.identifiability import certify, permute, split
    >>> data = sae_lib.synthetic.uniform(n_features=6, d_in=8, n_rows=200)
    >>> print(certify(data, split(permute(data))))
    the same up to ε = 0.1; all match from ε = 0.0000 on
    rows       relative difference below 1e-06, allowed 0.0001
    matched    6 of 6 features with 12 of 12
    blocks     6: 0 one to one, 6 split
    codes      relative difference below 1e-06 in matched blocks
    unused     0 and 0

    Def. 5.1 of {cite}`chen2025taming` is known to us from a summary; the reading of Ω is ours. Codes are
    compared but do not affect the verdict.

    Args:
        first: Codes (N, n) and features (n, d), as a pair or as synthetic data. For an autoencoder use
            :func:`from_autoencoder`.
        second: Codes and features to compare them with.
        epsilon: Features match if their cosine is at least 1 − ε; 0 < ε < 1.
        splitting: True: a block is a connected component of the matches, any number on either side; this is
            the finest block-diagonal Ω that holds all matches. False: one to one, as many pairs as possible
            and among these the largest sum of cosines.
        row_tolerance: Relative difference up to which rows count as the same.

    Raises:
        ValueError: Shapes that do not fit, NaN, a negative coefficient, or ε out of range.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}; expected 0 < epsilon < 1 (features match at cosine 1 − ε)")
    h1, v1 = decomposition(first, "first")
    h2, v2 = decomposition(second, "second")
    if h1.shape[0] != h2.shape[0] or v1.shape[1] != v2.shape[1]:
        raise ValueError(
            f"the first explains {h1.shape[0]} rows of dimension {v1.shape[1]}, the second {h2.shape[0]} of "
            f"dimension {v2.shape[1]}; expected the same rows"
        )
    row_error = _relative((a @ v1.double(), b @ v2.double()) for a, b in _side_by_side(h1, h2))
    used1, used2 = _used(h1, v1), _used(h2, v2)
    cosine = (unit_rows(v1) @ unit_rows(v2).T).clamp(-1, 1).numpy()
    inner = cosine[np.ix_(used1, used2)]
    links, smallest = (_all_links if splitting else _pairs)(inner, epsilon)

    linked = np.zeros(cosine.shape, dtype=bool)
    linked[np.ix_(used1, used2)] = links
    blocks = _blocks(linked, cosine)
    norms1, norms2 = v1.double().norm(dim=1), v2.double().norm(dim=1)
    return Certificate(
        epsilon=smallest,
        tolerance=epsilon,
        blocks=blocks,
        unmatched_first=_indices(used1 & ~linked.any(axis=1)),
        unmatched_second=_indices(used2 & ~linked.any(axis=0)),
        unused_first=_indices(~used1),
        unused_second=_indices(~used2),
        row_error=row_error,
        row_tolerance=row_tolerance,
        code_error=_code_error(h1, norms1, h2, norms2, blocks),
        omega=_omega(torch.from_numpy(linked.T.copy()), norms1, norms2).to(v1.dtype),
    )


def _side_by_side(h1: Tensor, h2: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield dense pieces of two matrices (N, n) and (N, n'), the same rows of both, in float64."""
    widest = max(h1.shape[1], h2.shape[1])
    for (_, a), (_, b) in zip(chunks(h1, widest=widest), chunks(h2, widest=widest), strict=True):
        yield a.double(), b.double()


def _relative(parts: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return ‖A − B‖ / ‖A‖ from pieces of A and B."""
    difference = size = 0.0
    for a, b in parts:
        difference += (a - b).square().sum().item()
        size += a.square().sum().item()
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return math.sqrt(difference / size)


def _code_error(h1: Tensor, norms1: Tensor, h2: Tensor, norms2: Tensor, blocks: tuple[Block, ...]) -> float:
    if not blocks:
        return math.nan
    merge1, merge2 = (norms.new_zeros(len(norms), len(blocks)) for norms in (norms1, norms2))
    for k, block in enumerate(blocks):
        merge1[block.first, k] = norms1[list(block.first)]
        merge2[block.second, k] = norms2[list(block.second)]
    return _relative((a @ merge1, b @ merge2) for a, b in _side_by_side(h1, h2))


def _used(h: Tensor, v: Tensor) -> np.ndarray:
    active = torch.zeros(len(v), dtype=torch.bool)
    for _, block in chunks(h):
        active |= (block > 0).any(dim=0)
    return (active & (v != 0).any(dim=1)).numpy()


def _indices(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def _all_links(cosine: np.ndarray, epsilon: float) -> tuple[np.ndarray, float]:
    """Return all pairs at cosine ≥ 1 − ε, and the smallest ε at which each row and column has a pair."""
    if 0 in cosine.shape:
        return np.zeros(cosine.shape, dtype=bool), math.inf
    worst = min(cosine.max(axis=1).min(), cosine.max(axis=0).min())
    return cosine >= 1 - epsilon, float(1 - worst)


def _pairs(cosine: np.ndarray, epsilon: float) -> tuple[np.ndarray, float]:
    """Return one-to-one pairs at cosine ≥ 1 − ε, and the smallest ε at which all can be paired."""
    links = np.zeros(cosine.shape, dtype=bool)
    if 0 in cosine.shape:
        return links, math.inf
    near = cosine >= 1 - epsilon
    # the bonus for being a pair at all outweighs the cosines of all other pairs together
    rows, columns = linear_sum_assignment(near * (2.0 * len(cosine) + cosine), maximize=True)
    links[rows, columns] = near[rows, columns]
    return links, _bottleneck(cosine)


def _bottleneck(cosine: np.ndarray) -> float:
    """Return the smallest ε at which a complete one-to-one matching exists; infinity if counts differ."""
    if cosine.shape[0] != cosine.shape[1]:
        return math.inf
    levels = np.unique(cosine)
    low, high = 0, len(levels) - 1  # a complete matching exists at levels[0], where all pairs are allowed
    while low < high:
        middle = (low + high + 1) // 2
        matched = maximum_bipartite_matching(csr_array(cosine >= levels[middle]))
        low, high = (middle, high) if (matched >= 0).all() else (low, middle - 1)
    return float(1 - levels[low])


def _blocks(linked: np.ndarray, cosine: np.ndarray) -> tuple[Block, ...]:
    """Return the connected components of the links (n, n') that have at least one link."""
    n, m = linked.shape
    i, j = linked.nonzero()
    _, label = connected_components(coo_array((np.ones(len(i)), (i, n + j)), shape=(n + m, n + m)))
    blocks = []
    for component in dict.fromkeys(label[i].tolist()):
        left, right = _indices(label[:n] == component), _indices(label[n:] == component)
        blocks.append(Block(left, right, float(cosine[np.ix_(left, right)].min())))
    return tuple(blocks)


def _omega(linked: Tensor, norms1: Tensor, norms2: Tensor) -> Tensor:
    """Return Ω (n', n): ‖v'_m‖ / ‖v_i‖ for a match, shared evenly where m matches several i."""
    partners = linked.sum(dim=1, keepdim=True).clamp(min=1)
    # rows of norm 0 have no match; 1 keeps the quotient finite
    return linked * norms2[:, None] / norms1.where(norms1 > 0, 1.0) / partners
