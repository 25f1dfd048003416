"""Causal language models with named sites where activations are read and replaced."""

from sae_lib.language_models.loading import DEFAULT_MODEL, load, model_dtype
from sae_lib.language_models.model import LanguageModel
from sae_lib.language_models.site import Site
from sae_lib.language_models.variants import first_blocks, reinitialised

__all__ = ["DEFAULT_MODEL", "LanguageModel", "Site", "first_blocks", "load", "model_dtype", "reinitialised"]
