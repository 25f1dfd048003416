"""A language model's activations on a corpus: written to disk, read from there, or made on the fly."""

from sae_lib.activations.harvesting import harvest, harvest_sites
from sae_lib.activations.positions import kept
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.stream import ActivationStream

__all__ = ["ActivationStore", "ActivationStream", "harvest", "harvest_sites", "kept"]
