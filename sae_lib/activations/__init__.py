"""A language model's activations on a corpus, harvested to disk and read back, or computed as needed."""

from sae_lib.activations.harvesting import harvest, harvest_sites
from sae_lib.activations.positions import kept
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.stream import ActivationStream

__all__ = ["ActivationStore", "ActivationStream", "harvest", "harvest_sites", "kept"]
