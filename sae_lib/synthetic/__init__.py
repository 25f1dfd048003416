"""The statistical model X = HV: dictionaries, supports, coefficients and named presets.

Rows are sparse non-negative mixtures of unit feature vectors (paper, section 3 and Def. 5.2). The three
parts are drawn separately, so that each condition of the theory can be varied alone:

>>> dictionary = gaussian_dictionary(256, 128, seed=0)
>>> support = uniform_support(10_000, 256, sparsity=3, seed=0)
>>> data = compose(dictionary, support, coefficients="half-normal", seed=0)
"""

from sae_lib.synthetic.dictionaries import coherent_dictionary, gaussian_dictionary, orthogonal_dictionary
from sae_lib.synthetic.frequencies import zipf_frequencies
from sae_lib.synthetic.presets import PRESETS, imbalanced, preset, uniform, zipf
from sae_lib.synthetic.rows import COEFFICIENTS, SyntheticData, compose
from sae_lib.synthetic.supports import bernoulli_support, uniform_support

__all__ = [
    "COEFFICIENTS",
    "PRESETS",
    "SyntheticData",
    "bernoulli_support",
    "coherent_dictionary",
    "compose",
    "gaussian_dictionary",
    "imbalanced",
    "orthogonal_dictionary",
    "preset",
    "uniform",
    "uniform_support",
    "zipf",
    "zipf_frequencies",
]
