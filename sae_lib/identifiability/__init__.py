"""Are two explanations of the same rows the same? (paper, sections 1 and 4, Def. 5.1)

No data can tell the order of the features, their scale, or whether one feature is listed as several parallel
ones (:mod:`sae_lib.identifiability.decompositions`). :func:`certify` compares two decompositions up to these;
the conditions under which it should succeed are measured by :func:`conditions`, and the theorem's bounds on
the target frequency are numbers in :mod:`sae_lib.identifiability.bands`.
"""

from sae_lib.identifiability.bands import Band, resonance_band, sufficient_width, summary_band
from sae_lib.identifiability.certificates import Block, Certificate, certify
from sae_lib.identifiability.conditions import Conditions, conditions
from sae_lib.identifiability.decompositions import (
    Decomposition,
    from_autoencoder,
    permute,
    rescale,
    split,
)

__all__ = [
    "Band",
    "Block",
    "Certificate",
    "Conditions",
    "Decomposition",
    "certify",
    "conditions",
    "from_autoencoder",
    "permute",
    "rescale",
    "resonance_band",
    "split",
    "sufficient_width",
    "summary_band",
]
