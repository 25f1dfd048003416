"""The quality of an autoencoder: recovery of known features, consistency across seeds, reconstruction."""

from sae_lib.metrics.consistency import (
    RULES,
    LatentStatistics,
    consistency_curve,
    latent_statistics,
    max_cosine_similarity,
    pair_correlations,
    pairwise_mcc,
    random_dictionaries,
    row_dictionaries,
)
from sae_lib.metrics.reconstruction import Reconstruction, reconstruction
from sae_lib.metrics.recovery import (
    Classification,
    best_cosines,
    best_features,
    classification,
    cosines,
    feature_recovery_rate,
    feature_uniqueness,
    mean_correlation_coefficient,
)

__all__ = [
    "RULES", "Classification", "LatentStatistics", "Reconstruction", "best_cosines", "best_features",
    "classification", "consistency_curve", "cosines", "feature_recovery_rate", "feature_uniqueness",
    "latent_statistics", "max_cosine_similarity", "mean_correlation_coefficient", "pair_correlations",
    "pairwise_mcc", "random_dictionaries", "reconstruction", "row_dictionaries",
]  # fmt: skip
