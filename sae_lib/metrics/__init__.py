"""How good an autoencoder is: recovery of known features, reconstruction, faithfulness to a model."""

from sae_lib.metrics.reconstruction import Reconstruction, reconstruction
from sae_lib.metrics.recovery import (
    best_cosines,
    cosines,
    feature_recovery_rate,
    mean_correlation_coefficient,
)

__all__ = [
    "Reconstruction",
    "best_cosines",
    "cosines",
    "feature_recovery_rate",
    "mean_correlation_coefficient",
    "reconstruction",
]
