"""Does the autoencoder find the features that are really there? (paper, section 5)"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.sae import SparseAutoencoder


def _directions(latents: SparseAutoencoder | Tensor) -> Tensor:
    return latents.decoder_rows.detach() if isinstance(latents, SparseAutoencoder) else latents


def cosines(latents: SparseAutoencoder | Tensor, dictionary: Tensor) -> Tensor:
    """Cosine (n, M) between each feature, a row of ``dictionary`` (n, d), and each latent.

    latents: an autoencoder (its decoder rows count) or directions (M, d). A zero row has cosine 0.
    """
    rows = _directions(latents).to(dictionary)
    if rows.shape[1] != dictionary.shape[1]:
        raise ValueError(
            f"latents have dimension {rows.shape[1]}, features {dictionary.shape[1]}; need equal"
        )
    return normalize(dictionary, dim=1) @ normalize(rows, dim=1).T


def best_cosines(latents: SparseAutoencoder | Tensor, dictionary: Tensor) -> Tensor:
    """For each feature the largest cosine with any latent, (n,)."""
    return cosines(latents, dictionary).amax(dim=1)


def feature_recovery_rate(
    latents: SparseAutoencoder | Tensor, dictionary: Tensor, threshold: float = 0.9
) -> float:
    """FRR(τ): share of features v_i with max_m cos(w_m, v_i) > τ.

    ``threshold`` is τ, in [−1, 1). The paper uses 0.8 and 0.9.
    """
    if not -1 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; expected a cosine, −1 ≤ threshold < 1")
    return (best_cosines(latents, dictionary) > threshold).double().mean().item()


def mean_correlation_coefficient(latents: SparseAutoencoder | Tensor, dictionary: Tensor) -> float:
    """MCC: mean cosine over the best one-to-one matching of features and latents (Hungarian algorithm).

    The mean is over the min(n, M) pairs matched; signs count, because codes are non-negative. Unlike FRR
    no latent can stand for two features.
    """
    matrix = cosines(latents, dictionary).double().cpu().numpy()
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return float(torch.from_numpy(matrix[rows, columns]).mean())
