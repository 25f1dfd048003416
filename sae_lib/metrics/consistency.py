"""Do two runs that differ in their seed find the same latents? (paper, section 5; arXiv 2505.20254)

Two measures. The *maximum cosine similarity* (MCS) asks of each latent whether the other run has one like it;
the *pairwise MCC* (PW-MCC) matches the latents of two runs one to one. Consistency is not recovery: runs that
agree may agree on something false. Two nulls for both: :func:`random_dictionaries` knows nothing,
:func:`row_dictionaries` only where the data lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import at_least, cosine, matrix, one_of
from sae_lib.metrics.recovery import cosines, directions, mean_correlation_coefficient
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder

# what latents can be ranked by: the name of a rule → the field of LatentStatistics
RULES = {"firing rate": "firing_rate", "peak": "peak", "z-score": "z_score"}


def max_cosine_similarity(latents: SparseAutoencoder | Tensor, other: SparseAutoencoder | Tensor) -> Tensor:
    """MCS (M,): for each latent the largest cosine with a decoder row of ``other``.

    Not symmetric: a latent without a counterpart shows in its own run, not in the other.
    """
    matrix = cosines(latents, directions(other))
    if matrix.shape[0] == 0:
        raise ValueError("the other dictionary has 0 latents; expected at least one")
    return matrix.amax(dim=0)


@dataclass(frozen=True)
class LatentStatistics:
    """What the codes of each latent look like on a set of rows, each (M,), float64.

    firing_rate: share of rows on which it fires.
    peak: its largest code, in the units of the codes times |a_m|, so that rescaling a latent changes nothing.
    z_score: (peak − mean) / standard deviation of its codes over *all* rows, zeros included; 0 for a latent
        that never fires. The paper's exact formula was not at hand; this is ours. A latent that fires with
        constant size on a share p of the rows has √((1 − p)/p): rare latents score high.
    """

    firing_rate: Tensor
    peak: Tensor
    z_score: Tensor


@torch.no_grad()
def latent_statistics(sae: SparseAutoencoder, rows: Tensor, *, batch_size: int = 4096) -> LatentStatistics:
    """Measure ``sae`` on rows (N, d) as the model has them."""
    matrix(rows, sae.d_in)
    fired, total, squares, peak = torch.zeros(4, sae.width, dtype=torch.float64, device=sae.weight.device)
    for x in rows.split(batch_size):
        codes = sae.magnitudes(x.to(sae.weight.device)).double()
        fired += (codes != 0).sum(dim=0)
        total += codes.sum(dim=0)
        squares += codes.square().sum(dim=0)
        peak = torch.maximum(peak, codes.amax(dim=0))
    mean = total / len(rows)
    deviation = (squares / len(rows) - mean.square()).clamp(min=0).sqrt()
    z_score = torch.where(deviation > 0, (peak - mean) / deviation, 0.0)
    return LatentStatistics((fired / len(rows)).cpu(), peak.cpu(), z_score.cpu())


def consistency_curve(
    similarity: Tensor, statistics: LatentStatistics, *, rule: str = "firing rate", threshold: float = 0.9
) -> Tensor:
    """Share with MCS above ``threshold`` among the top 1, 2, …, M latents of one run, (M,) float64.

    similarity: MCS (M,) of the run's latents, from :func:`max_cosine_similarity`.
    statistics: of the same latents, from :func:`latent_statistics`.
    rule: what "top" means: ``"firing rate"``, ``"peak"`` or ``"z-score"``, largest first; equal values in
        order of their index. Dead latents rank last but count.
    """
    one_of("rule", rule, RULES)
    cosine(threshold=threshold)
    score = getattr(statistics, RULES[rule])
    if score.shape != similarity.shape:
        raise ValueError(f"statistics of {len(score)} latents for a run of {len(similarity)}; need equal")
    top = score.sort(descending=True, stable=True).indices
    agreed = (similarity.cpu()[top] > threshold).double().cumsum(dim=0)
    return agreed / torch.arange(1, len(agreed) + 1)


def pair_correlations(runs: Sequence[SparseAutoencoder | Tensor]) -> Tensor:
    """Signed MCC of every pair of runs, (S(S − 1)/2,) float64, in the order (0, 1), (0, 2), … ."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run; expected at least 2 to compare")
    pairs = itertools.combinations(runs, 2)
    found = [mean_correlation_coefficient(a, directions(b)) for a, b in pairs]
    return torch.tensor(found, dtype=torch.float64)


def pairwise_mcc(runs: Sequence[SparseAutoencoder | Tensor]) -> float:
    """PW-MCC: mean over all pairs of runs of the mean signed cosine after Hungarian matching.

    >>> sae_lib.metrics.pairwise_mcc([torch.eye(4), torch.eye(4)[[1, 0, 3, 2]]])
    1.0

    Definition of "Feature consistency in SAEs" (arXiv 2505.20254). The latents of two runs of different
    width are matched as far as they go.
    """
    return pair_correlations(runs).mean().item()


def random_dictionaries(width: int, d_in: int, number: int, *, seed: int = 0) -> list[Tensor]:
    """The null: ``number`` independent dictionaries of uniformly random unit rows (M, d).

    What any of these scores gives to them is what it gives to nothing: the best of many random cosines is
    well above 0.
    """
    at_least(1, width=width, d_in=d_in, number=number)
    stream = generator(seed, "null dictionaries")
    return list(normalize(torch.randn(number, width, d_in, generator=stream), dim=2))


def row_dictionaries(rows: Tensor, width: int, number: int, *, seed: int = 0) -> list[Tensor]:
    """The sharper null: ``number`` dictionaries (M, d) whose directions are rows of the data, each used once.

    Latents lie where the data do, in few dominant directions, so those of two runs are nearer to each other
    than directions drawn uniformly, whatever they mean. What is above *this* was agreed on by training.

    rows: (N, d) with N ≥ number · width; their mean is taken off before they are scaled to unit norm. For
        directions that share the data's mean and covariance and nothing else, pass
        :func:`sae_lib.metrics.spectrum.gaussian_twin` of the rows.
    """
    at_least(1, width=width, number=number)
    if rows.ndim != 2 or len(rows) < number * width:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}; expected (N, d) with N ≥ {number * width}, "
            "a row for each direction"
        )
    chosen = torch.randperm(len(rows), generator=generator(seed, "row dictionaries"))[: number * width]
    unit = normalize(rows[chosen.to(rows.device)] - rows.mean(dim=0), dim=1)
    return list(unit.split(width))
