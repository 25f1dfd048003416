"""The statistical model X = HV: dictionaries, supports, coefficients and named presets.

Rows are sparse non-negative mixtures of unit feature vectors (paper, section 3 and Def. 5.2). The three
parts are drawn separately, so that each condition of the theory can be varied on its own:

>>> dictionary = sae_lib.synthetic.gaussian_dictionary(256, 128, seed=0)
>>> support = sae_lib.synthetic.uniform_support(1000, 256, sparsity=3, seed=0)
>>> data = sae_lib.synthetic.compose(dictionary, support, coefficients="half-normal", seed=0)
>>> data.rows.shape, torch.allclose(data.rows, data.coefficients @ data.dictionary)
(torch.Size([1000, 128]), True)
"""

from sae_lib.synthetic.data import COEFFICIENTS, SyntheticData, compose
from sae_lib.synthetic.dictionaries import (
    clustered_dictionary,
    coherent_dictionary,
    gaussian_dictionary,
    orthogonal_dictionary,
)
from sae_lib.synthetic.frequencies import geometric_frequencies, power_law_frequencies, zipf_frequencies
from sae_lib.synthetic.presets import (
    PRESETS,
    SPECTRA,
    consistency,
    continuous,
    geometric,
    imbalanced,
    independent,
    preset,
    sanity_check,
    uniform,
    zipf,
)
from sae_lib.synthetic.supports import bernoulli_support, block_support, uniform_support

__all__ = [
    "COEFFICIENTS", "PRESETS", "SPECTRA", "SyntheticData", "bernoulli_support", "block_support",
    "clustered_dictionary", "coherent_dictionary", "compose", "consistency", "continuous",
    "gaussian_dictionary", "geometric", "geometric_frequencies", "imbalanced", "independent",
    "orthogonal_dictionary", "power_law_frequencies", "preset", "sanity_check", "uniform",
    "uniform_support", "zipf", "zipf_frequencies",
]  # fmt: skip
