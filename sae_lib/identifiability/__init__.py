"""Whether two explanations of the same rows are the same (paper, sections 1 and 4, Def. 5.1).

Data cannot tell the order of features, their scale, or whether one feature is listed as several parallel
ones (:mod:`sae_lib.identifiability.decompositions`). :func:`certify` compares two decompositions up to these,
:func:`conditions` measures the conditions under which it should succeed, and
:mod:`sae_lib.identifiability.bands` holds the theorem's bounds on the target frequency as numbers.
"""

from sae_lib.identifiability.bands import Band, resonance_band, sufficient_width, summary_band
from sae_lib.identifiability.certificates import Block, Certificate, certify
from sae_lib.identifiability.conditions import Conditions, conditions
from sae_lib.identifiability.decompositions import Decomposition, from_autoencoder, permute, rescale, split

__all__ = [
    "Band", "Block", "Certificate", "Conditions", "Decomposition", "certify", "conditions",
    "from_autoencoder", "permute", "rescale", "resonance_band", "split", "sufficient_width",
    "summary_band",
]  # fmt: skip
