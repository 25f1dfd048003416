"""Whether an autoencoder finds the features that are really there (paper, section 5)."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.checks import cosine
from sae_lib.sae import SparseAutoencoder

# an autoencoder, of which decoder rows count, or directions (M, d)
Latents: TypeAlias = SparseAutoencoder | Tensor


def directions(latents: Latents) -> Tensor:
    """Return the directions (M, d) of an autoencoder's latents; a tensor is returned unchanged."""
    return latents.directions if isinstance(latents, SparseAutoencoder) else latents


def cosines(latents: Latents, dictionary: Tensor) -> Tensor:
    """Return the cosine (n, M) between each feature, a row of ``dictionary`` (n, d), and each latent.

    The latents are an autoencoder (its decoder rows count) or directions (M, d). A zero row has cosine 0.
    """
    rows = directions(latents).to(dictionary)
    if rows.shape[1] != dictionary.shape[1]:
        raise ValueError(
            f"latents have dimension {rows.shape[1]}, features {dictionary.shape[1]}; need equal"
        )
    return normalize(dictionary, dim=1) @ normalize(rows, dim=1).T


def best_cosines(latents: Latents, dictionary: Tensor) -> Tensor:
    """Return for each feature the largest cosine with any latent, (n,).

    >>> sae_lib.metrics.best_cosines(torch.tensor([[3.0, 4.0]]), torch.eye(2))
    tensor([0.6000, 0.8000])
    """
    return cosines(latents, dictionary).amax(dim=1)


def feature_recovery_rate(latents: Latents, dictionary: Tensor, threshold: float = 0.9) -> float:
    """Measure FRR(τ), the share of features v_i with max_m cos(w_m, v_i) > τ.

    >>> features, latents = torch.eye(4), torch.tensor([[2.0, 0, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 1]])
    >>> sae_lib.metrics.feature_recovery_rate(latents, features, threshold=0.9)
    0.5

    The threshold is τ, in [−1, 1); the paper uses 0.8 and 0.9.
    """
    cosine(threshold=threshold)
    return (best_cosines(latents, dictionary) > threshold).double().mean().item()


def mean_correlation_coefficient(latents: Latents, dictionary: Tensor, *, signed: bool = True) -> float:
    """Measure MCC, the mean cosine over the best one-to-one matching of features and latents (Hungarian).

    >>> sae_lib.metrics.mean_correlation_coefficient(torch.eye(4)[[2, 0, 1, 1]], torch.eye(4))
    0.75

    The mean is over the min(n, M) pairs matched; unlike in FRR, no latent can stand for two features. If
    ``signed``, signs count, because codes are non-negative; otherwise absolute cosines are matched, as in
    SynthSAEBench (arXiv 2602.14687).
    """
    matrix = cosines(latents, dictionary)
    if min(matrix.shape) == 0:
        raise ValueError(f"{matrix.shape[0]} features and {matrix.shape[1]} latents; expected one of each")
    table = (matrix if signed else matrix.abs()).double().cpu().numpy()
    matched = table[linear_sum_assignment(table, maximize=True)]
    return torch.from_numpy(matched).mean().item()


def best_features(latents: Latents, dictionary: Tensor, *, signed: bool = True) -> Tensor:
    """Return for each latent the index of the closest feature, (M,); ``signed`` as for the MCC."""
    matrix = cosines(latents, dictionary)
    return (matrix if signed else matrix.abs()).argmax(dim=0)


def feature_uniqueness(latents: Latents, dictionary: Tensor, *, signed: bool = True) -> float:
    """Measure distinct best features / M: 1 where no two latents are closest to the same feature.

    As in SynthSAEBench (arXiv 2602.14687), which uses absolute cosines, ``signed=False``. It is at most
    n / M, and says nothing about how close the latents are.
    """
    best = best_features(latents, dictionary, signed=signed)
    if len(best) == 0:
        raise ValueError("0 latents; expected at least one")
    return len(best.unique()) / len(best)


@dataclass(frozen=True)
class Classification:
    """Each latent as a detector of the feature it is closest to: fires ⇔ the feature is in the row.

    Scores are float64 and 0 where undefined, so that a dead latent counts as 0. Their means are
    SynthSAEBench's scores (for ``signed=False``).

    Attributes:
        feature: (M,), index of the closest feature.
        precision: (M,), share of the latent's firings where the feature is present.
        recall: (M,), share of the feature's occurrences where the latent fires.
        f1: (M,), harmonic mean of both.
        n_rows: Number of rows measured.
    """

    feature: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor
    n_rows: int


@torch.no_grad()
def classification(
    sae: SparseAutoencoder,
    rows: Tensor,
    coefficients: Tensor,
    dictionary: Tensor,
    *,
    signed: bool = True,
    batch_size: int = 4096,
) -> Classification:
    """Compare the firings of ``sae`` on rows (N, d) with the features that made the rows.

    Args:
        sae: The autoencoder.
        rows: (N, d).
        coefficients: (N, n), nonzero where a feature occurs.
        dictionary: True features (n, d).
        signed: As for the MCC.
        batch_size: Rows encoded at a time.

    Raises:
        ValueError: Coefficients of another shape, or no rows.
    """
    if len(rows) == 0 or coefficients.shape != (len(rows), len(dictionary)):
        raise ValueError(
            f"coefficients have shape {tuple(coefficients.shape)}; expected ({len(rows)}, "
            f"{len(dictionary)}), rows by features, with at least one row"
        )
    feature = best_features(sae, dictionary, signed=signed).cpu()
    hits, fired, present = torch.zeros(3, sae.width, dtype=torch.int64)
    for x, h in zip(rows.split(batch_size), coefficients.split(batch_size), strict=True):
        fires = (sae.encode(x.to(sae.weight.device)) != 0).cpu()
        occurs = (h != 0).cpu()[:, feature]
        hits += (fires & occurs).sum(dim=0)
        fired += fires.sum(dim=0)
        present += occurs.sum(dim=0)
    return Classification(
        feature=feature,
        precision=hits.double() / fired.clamp(min=1),
        recall=hits.double() / present.clamp(min=1),
        # 2PR / (P + R) in one division
        f1=2 * hits.double() / (fired + present).clamp(min=1),
        n_rows=len(rows),
    )
