"""Whether runs that differ in their seed find the same latents (paper, section 5; arXiv 2505.20254).

The *maximum cosine similarity* (MCS) asks of each latent whether the other run has one like it; the
*pairwise MCC* (PW-MCC) matches the latents of two runs one to one. Consistency is not recovery: runs may
agree on something false. Of the nulls for both, :func:`random_dictionaries` knows nothing about the data and
:func:`row_dictionaries` only where they are.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import at_least, cosine, matrix, one_of
from sae_lib.metrics.recovery import Latents, cosines, directions, mean_correlation_coefficient
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder

# rules for ranking latents: name → field of LatentStatistics
RULES = {"firing rate": "firing_rate", "peak": "peak", "z-score": "z_score"}


def max_cosine_similarity(latents: Latents, other: Latents) -> Tensor:
    """Return the MCS (M,): for each latent the largest cosine with a decoder row of ``other``.

    Not symmetric: a latent without a counterpart lowers the MCS of its own run, not of the other.
    """
    table = cosines(latents, directions(other))
    if table.shape[0] == 0:
        raise ValueError("the other dictionary has 0 latents; expected at least one")
    return table.amax(dim=0)


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of the codes of each latent on a set of rows, each (M,), float64.

    Attributes:
        firing_rate: Share of rows on which it fires.
        peak: Its largest code times |a_m|, so that rescaling a latent changes nothing.
        z_score: (peak − mean) / standard deviation of its codes over *all* rows, zeros included; 0 for a
            latent that never fires. The paper's exact formula was not at hand; this is ours. A latent that
            fires with constant size on a share p of the rows has √((1 − p)/p): rare latents score high.
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
    """Return the share with MCS above ``threshold`` among the top 1, 2, …, M latents of a run, (M,) float64.

    Args:
        similarity: MCS (M,) of the run's latents, from :func:`max_cosine_similarity`.
        statistics: Statistics of the same latents, from :func:`latent_statistics`.
        rule: Ranking by ``"firing rate"``, ``"peak"`` or ``"z-score"``, largest first; equal values in
            order of index. Dead latents rank last but count.
        threshold: Cosine above which two latents agree, −1 ≤ threshold < 1.
    """
    one_of("rule", rule, RULES)
    cosine(threshold=threshold)
    score = getattr(statistics, RULES[rule])
    if score.shape != similarity.shape:
        raise ValueError(f"statistics of {len(score)} latents for a run of {len(similarity)}; need equal")
    top = score.sort(descending=True, stable=True).indices
    agreed = (similarity.cpu()[top] > threshold).double().cumsum(dim=0)
    return agreed / torch.arange(1, len(agreed) + 1)


def pair_correlations(runs: Sequence[Latents]) -> Tensor:
    """Return the signed MCC of each pair of S runs, (S(S − 1)/2,) float64, ordered (0, 1), (0, 2), … ."""
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run; expected at least 2 to compare")
    pairs = itertools.combinations(runs, 2)
    scores = [mean_correlation_coefficient(a, directions(b)) for a, b in pairs]
    return torch.tensor(scores, dtype=torch.float64)


def pairwise_mcc(runs: Sequence[Latents]) -> float:
    """Return the PW-MCC: the mean signed cosine after Hungarian matching, averaged over all pairs of runs.

    >>> sae_lib.metrics.pairwise_mcc([torch.eye(4), torch.eye(4)[[1, 0, 3, 2]]])
    1.0

    Defined in "Feature consistency in SAEs" (arXiv 2505.20254). Between runs of different width, as many
    latents are matched as the narrower one has.
    """
    return pair_correlations(runs).mean().item()


def random_dictionaries(width: int, d_in: int, number: int, *, seed: int = 0) -> list[Tensor]:
    """Draw the null: ``number`` independent dictionaries of uniformly random unit rows (M, d).

    Their scores are those of no agreement at all, well above 0: the best of many random cosines is large.
    """
    at_least(1, width=width, d_in=d_in, number=number)
    stream = generator(seed, "null dictionaries")
    return list(normalize(torch.randn(number, width, d_in, generator=stream), dim=2))


def row_dictionaries(rows: Tensor, width: int, number: int, *, seed: int = 0) -> list[Tensor]:
    """Draw the sharper null: ``number`` dictionaries (M, d) of directions of data rows, each row used once.

    Latents point where the data are, in few dominant directions, so those of two runs are closer to each
    other than uniform directions, whatever they mean. Agreement above *this* null comes from training.

    Args:
        rows: (N, d) with N ≥ number · width; centred before they are scaled to unit norm. For directions
            that share only mean and covariance with the data, pass
            :func:`sae_lib.metrics.spectrum.gaussian_twin` of the rows.
        width: Rows M of a dictionary.
        number: Number of dictionaries.
        seed: Seed of the draw.
    """
    at_least(1, width=width, number=number)
    # a row for each direction
    matrix(rows, least=number * width)
    chosen = torch.randperm(len(rows), generator=generator(seed, "row dictionaries"))[: number * width]
    unit = normalize(rows[chosen.to(rows.device)] - rows.mean(dim=0), dim=1)
    return list(unit.split(width))
