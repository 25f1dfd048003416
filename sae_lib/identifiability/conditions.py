"""How far a decomposition meets the conditions H1, H2, H3 and V1 (paper, Def. 5.2)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from sae_lib.identifiability.decompositions import Decomposition, chunks, decomposition, unit_rows

# below this share of nonzeros, counting pairs row by row beats a dense product
_SPARSE = 0.05


@dataclass(frozen=True)
class Conditions:
    """Measured numbers, not verdicts: the conditions are asymptotic and name no bounds.

    Coefficients are multiplied by the norm of their feature, so that scale does not matter. Only features
    in use count: those with a nonzero row of V and at least one nonzero coefficient.

    Attributes:
        n_rows: Number of rows N.
        n_features: Number of features in use.
        d_in: Dimension d.
        n_unused: Number of other features; nothing in X depends on them.
        sparsity_max: Most nonzero coefficients in a row (H1).
        sparsity_mean: Mean number of nonzero coefficients in a row (H1).
        smallest: Smallest nonzero coefficient over the median one (H2).
        weak_share: Share of the nonzero coefficients below a tenth of the median (H2).
        rho2: max over i ≠ j of P(j active | i active) (H3).
        rho2_pair: The (i, j) of this maximum, None for a single feature.
        rho2_mean: Mean of P(j active | i active) over pairs; (s−1)/(n−1) where every row has s features.
        coherence: max over i ≠ j of |cos(v_i, v_j)| (V1).
        coherence_pair: The (i, j) of this maximum, None for a single feature.
        coherence_mean: Mean |cosine| over pairs.
        operator_norm: Largest singular value of V with rows scaled to norm 1, at least √(n/d).
    """

    n_rows: int
    n_features: int
    d_in: int
    n_unused: int
    sparsity_max: int
    sparsity_mean: float
    smallest: float
    weak_share: float
    rho2: float
    rho2_pair: tuple[int, int] | None
    rho2_mean: float
    coherence: float
    coherence_pair: tuple[int, int] | None
    coherence_mean: float
    operator_norm: float

    @property
    def rho2_sqrt_n(self) -> float:
        """ρ₂√n, which should be well below 1 for H3."""
        return self.rho2 * math.sqrt(self.n_features)

    def __str__(self) -> str:
        unused = f", {self.n_unused} more unused" if self.n_unused else ""
        return (
            f"H1  nonzeros a row   at most {self.sparsity_max}, mean {self.sparsity_mean:.2f}, "
            f"of {self.n_features} features{unused}\n"
            f"H2  coefficients     smallest {self.smallest:.3g} of the median, "
            f"{100 * self.weak_share:.1f} % below a tenth of it\n"
            f"H3  co-occurrence    ρ₂ {self.rho2:.3f}, ρ₂√n {self.rho2_sqrt_n:.2f}, "
            f"mean over pairs {self.rho2_mean:.3f}\n"
            f"V1  coherence        largest |cosine| {self.coherence:.3f}, "
            f"mean {self.coherence_mean:.3f}, ‖V‖ {self.operator_norm:.2f}"
        )


def conditions(coefficients: Tensor, dictionary: Tensor) -> Conditions:
    """Measure H1, H2, H3 and V1 on coefficients (N, n) and a dictionary (n, d).

    >>> data = sae_lib.synthetic.uniform(n_features=64, d_in=32, n_rows=2000)
    >>> print(sae_lib.identifiability.conditions(data.coefficients, data.dictionary))
    H1  nonzeros a row   at most 3, mean 3.00, of 64 features
    H2  coefficients     smallest 1 of the median, 0.0 % below a tenth of it
    H3  co-occurrence    ρ₂ 0.122, ρ₂√n 0.98, mean over pairs 0.032
    V1  coherence        largest |cosine| 0.553, mean 0.143, ‖V‖ 2.30

    Coefficients are non-negative, dense or sparse, and read in pieces: 100,000 × 4,096 need no second copy.
    Take care with ρ₂, a maximum of estimates: a feature that occurs in few rows has a high P(j | i) with
    some j by chance, up to 1 if it occurs once.

    Raises:
        ValueError: Shapes that do not fit, NaN, a negative coefficient, or no coefficient above 0.
    """
    h, v = decomposition(Decomposition(coefficients, dictionary))
    norms = v.double().norm(dim=1)
    per_row, sizes, together = _count(h, norms)
    occurrences = together.diagonal()
    used = (occurrences > 0).nonzero().squeeze(1)
    if len(used) == 0:
        raise ValueError("no coefficient is above 0 on a nonzero feature; there is nothing to measure")
    conditional = together[used][:, used] / occurrences[used, None]
    unit = unit_rows(v)[used]
    cosine = (unit @ unit.T).abs()
    rho2, rho2_pair, rho2_mean = _off_diagonal(conditional, used)
    coherence, coherence_pair, coherence_mean = _off_diagonal(cosine, used)
    median = sizes.median().item()
    return Conditions(
        n_rows=h.shape[0],
        n_features=len(used),
        d_in=v.shape[1],
        n_unused=len(v) - len(used),
        sparsity_max=int(per_row.max()),
        sparsity_mean=per_row.double().mean().item(),
        smallest=sizes.min().item() / median,
        weak_share=(sizes < 0.1 * median).double().mean().item(),
        rho2=rho2,
        rho2_pair=rho2_pair,
        rho2_mean=rho2_mean,
        coherence=coherence,
        coherence_pair=coherence_pair,
        coherence_mean=coherence_mean,
        operator_norm=torch.linalg.matrix_norm(unit, 2).item(),
    )


def _count(h: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count nonzeros of each row (N,), list their sizes, count rows in which i and j co-occur (n, n)."""
    together = np.zeros((len(norms), len(norms)))
    per_row, sizes = [], []
    for _, block in chunks(h):
        active = (block > 0) & (norms > 0)
        per_row.append(active.sum(dim=1))
        row, feature = active.nonzero(as_tuple=True)
        sizes.append((block[row, feature].double() * norms[feature]).float())
        if len(row) < _SPARSE * active.numel():
            ones = np.ones(len(row), dtype=np.float32)
            table = csr_array((ones, (row.numpy(), feature.numpy())), shape=tuple(active.shape))
            together += (table.T @ table).toarray()
        else:
            # counts below 2^24 are exact in float32
            dense = active.float()
            together += (dense.T @ dense).double().numpy()
    return torch.cat(per_row), torch.cat(sizes), torch.from_numpy(together)


def _off_diagonal(values: Tensor, names: Tensor) -> tuple[float, tuple[int, int] | None, float]:
    """Return the largest entry off the diagonal, its place by name, and the mean off the diagonal."""
    n = len(values)
    if n == 1:
        return 0.0, None, 0.0
    mean = (values.sum() - values.diagonal().sum()).item() / (n * (n - 1))
    hollow = values.clone().fill_diagonal_(-1.0)
    i, j = divmod(int(hollow.argmax()), n)
    return hollow[i, j].item(), (int(names[i]), int(names[j])), mean
