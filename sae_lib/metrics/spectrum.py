"""An estimate of how often features occur, from the data alone.

Three steps, none of which needs the true features:

1. *Which directions are real?* Train autoencoders with different seeds. A direction counts if two of them
   found it: anything that the data do not determine comes out differently (:func:`agreed_directions`).
2. *Which of them does a row contain?* Firing rates of latents cannot tell, because a ceiling or K was
   imposed on them. So each row is explained by few of all agreed directions (:func:`lasso_codes`).
3. *Present or noise?* A direction is present where its code is above half its typical size
   (:func:`half_level`).

Seen are features that at least two runs found and that, when present, exceed half their mean size. Not seen
are features that no run finds, above all the rarest (the estimate ends where recovery ends), and weak
occurrences of a feature whose size varies by more than a factor of about two. Two features that mostly occur
together count as one. :func:`gaussian_twin` shows what the estimate reports on data without features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import above_zero, matrix
from sae_lib.metrics.recovery import Latents
from sae_lib.metrics.recovery import directions as directions_of
from sae_lib.randomness import generator

ITERATIONS = 100


@dataclass(frozen=True)
class Spectrum:
    """Directions and how often each occurs, most frequent first.

    Attributes:
        directions: (m, d), unit rows.
        frequency: (m,), share of rows, above 0 and at most 1, float64.
        agreement: (m,), largest cosine between two runs' versions of the direction.
    """

    directions: Tensor
    frequency: Tensor
    agreement: Tensor

    def __len__(self) -> int:
        return len(self.frequency)


def estimate_frequencies(
    runs: Sequence[Latents],
    rows: Tensor,
    *,
    threshold: float = 0.9,
    penalty: float = 0.05,
) -> Spectrum:
    """Estimate frequencies of the features of ``rows`` (N, d) from two or more runs with different seeds.

    >>> from sae_lib.metrics import spectrum
    >>> data = sae_lib.synthetic.independent([0.4, 0.2, 0.1, 0.05], d_in=16, n_rows=5000)
    >>> runs = [data.dictionary, data.dictionary[[3, 2, 1, 0]]]
    >>> estimate = spectrum.estimate_frequencies(runs, data.rows)
    >>> [round(f, 2) for f in estimate.frequency.tolist()]
    [0.39, 0.2, 0.1, 0.05]

    Directions that never occur are left out; without any agreement the result is empty.

    Args:
        runs: Autoencoders (their decoder rows count) or directions (M, d), trained on the same data.
        rows: Rows to count on; 10,000 rows show frequencies down to about 1e-3.
        threshold: Cosine above which two runs found the same direction.
        penalty: See :func:`lasso_codes`.

    Raises:
        ValueError: Fewer than two runs, unequal dimensions, or an argument out of range.
    """
    directions, agreement = agreed_directions(runs, threshold=threshold)
    matrix(rows, directions.shape[1])
    codes = lasso_codes(rows, directions, penalty=penalty)
    frequency = (codes > half_level(codes)).double().mean(dim=0)
    order = frequency.argsort(descending=True, stable=True)
    order = order[frequency[order] > 0]
    return Spectrum(directions[order], frequency[order], agreement[order])


def agreed_directions(runs: Sequence[Latents], *, threshold: float = 0.9) -> tuple[Tensor, Tensor]:
    """Return directions found by at least two of the runs, (m, d), and their agreement (m,).

    A latent counts if another run has one with a cosine above ``threshold``. Latents that close to each other
    are merged into their mean direction, best agreement first: a feature shared by several counts once.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run; expected at least 2, to see what they agree on")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a cosine, 0 < threshold < 1")
    unit = [normalize(directions_of(run).cpu(), dim=1) for run in runs]
    if len({rows.shape[1] for rows in unit}) > 1:
        raise ValueError(f"the runs have dimensions {[rows.shape[1] for rows in unit]}; need equal")
    pool, owner = torch.cat(unit), torch.cat([torch.full((len(r),), i) for i, r in enumerate(unit)])
    cosine = pool @ pool.T
    best = cosine.masked_fill(owner[:, None] == owner, -1.0).amax(dim=1)
    order = best.argsort(descending=True, stable=True)
    free, directions, agreement = best > threshold, [], []
    for i in order[free[order]].tolist():
        if free[i]:
            near = free & (cosine[i] > threshold)
            near[i] = True  # the cosine with itself may round to below one
            directions.append(normalize(pool[near].sum(dim=0), dim=0))
            agreement.append(best[i])
            free &= ~near
    if not directions:
        return pool[:0], best[:0]
    return torch.stack(directions), torch.stack(agreement)


@torch.no_grad()
def lasso_codes(rows: Tensor, directions: Tensor, *, penalty: float = 0.05, batch_size: int = 4096) -> Tensor:
    """Return codes z ≥ 0 (N, m) of rows x (N, d) that minimise ½‖x − z D‖² + λ Σ z, the positive lasso.

    D (m, d) are the directions, unit rows; λ is the penalty, above 0, times the root mean square norm of the
    rows. Solved by the accelerated proximal gradient method of Beck and Teboulle (2009), 100 iterations.
    """
    above_zero(penalty=penalty)
    if len(directions) == 0:
        return rows.new_zeros(len(rows), 0)
    size = penalty * rows.square().sum(dim=1).mean().sqrt()
    gram = directions @ directions.T
    step = 1 / torch.linalg.eigvalsh(gram.double())[-1].to(rows)
    codes = []
    for x in rows.split(batch_size):
        pull = x @ directions.T - size
        z = ahead = torch.zeros_like(pull)
        momentum = 1.0
        for _ in range(ITERATIONS):
            new = (ahead - step * (ahead @ gram - pull)).clamp(min=0)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - z)
            z, momentum = new, following
        codes.append(z)
    return torch.cat(codes)


def half_level(codes: Tensor) -> Tensor:
    """Return for each column of codes (N, m), N ≥ 1, the level that is half the mean of the codes above it.

    From half of the largest code the level can only sink, and stops at the highest fixed point. Small codes,
    however many, do not pull it down once they are below it. Empty columns have level 0.
    """
    level = codes.amax(dim=0) / 2
    for _ in range(ITERATIONS):
        above = codes > level
        lower = (codes * above).sum(dim=0) / above.sum(dim=0).clamp(min=1) / 2
        if torch.equal(lower, level):
            break
        level = torch.minimum(level, lower)
    return level


def log_distance(frequency: Tensor, other: Tensor) -> float:
    """Return the Wasserstein distance between two sets of frequencies, in decades.

    >>> from sae_lib.metrics import spectrum
    >>> f = torch.tensor([0.1, 0.01])
    >>> round(spectrum.log_distance(f, f / 10), 6)
    1.0

    This is the mean |difference| of log₁₀ f at equal quantiles: 0.3 is a factor of two. Both sets weigh the
    same, however many frequencies they contain. NaN if one is empty.
    """
    for f in (frequency, other):
        if not ((f > 0) & (f <= 1)).all():
            raise ValueError("frequencies must be above 0 and at most 1")
    if len(frequency) == 0 or len(other) == 0:
        return float("nan")
    return float(wasserstein_distance(frequency.double().log10().numpy(), other.double().log10().numpy()))


def gaussian_twin(rows: Tensor, *, seed: int = 0) -> Tensor:
    """Draw Gaussian rows (N, d) with mean and covariance of ``rows``: equal second moments, no features."""
    matrix(rows, least=2)
    x = rows.double()
    values, vectors = torch.linalg.eigh(torch.atleast_2d(x.T.cov()))
    root = vectors * values.clamp(min=0).sqrt()  # constant columns may round to a negative eigenvalue
    normal = torch.randn(x.shape, generator=generator(seed, "gaussian twin"), dtype=torch.float64)
    return (x.mean(dim=0) + normal @ root.T).to(rows.dtype)
