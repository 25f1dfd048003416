"""Sparse autoencoders by bias adaptation: training, recovery metrics, language models.

Names load on first use, so that ``import sae_lib`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

# the names below repeated for type checkers and editors, which follow nothing else; no program runs this
if TYPE_CHECKING:
    from sae_lib import (
        activations as activations, batches as batches, corpora as corpora, dashboards as dashboards,
        distributed as distributed, identifiability as identifiability, interventions as interventions,
        language_models as language_models, methods as methods, metrics as metrics,
        normalisation as normalisation, plotting as plotting, records as records, sae as sae,
        storage as storage, sweeps as sweeps, synthetic as synthetic, training as training,
    )  # fmt: skip
    from sae_lib.batches import BatchSource as BatchSource, Rows as Rows
    from sae_lib.methods.batch_top_k import BatchTopK as BatchTopK
    from sae_lib.methods.bias_adaptation import BiasAdaptation as BiasAdaptation
    from sae_lib.methods.bias_adaptation import GroupBiasAdaptation as GroupBiasAdaptation
    from sae_lib.methods.frozen import Frozen as Frozen
    from sae_lib.methods.gated import Gated as Gated
    from sae_lib.methods.jump_relu import JumpReLU as JumpReLU
    from sae_lib.methods.l1 import L1 as L1
    from sae_lib.methods.matryoshka import Matryoshka as Matryoshka
    from sae_lib.methods.modified_bias_adaptation import ModifiedBiasAdaptation as ModifiedBiasAdaptation
    from sae_lib.methods.top_k import TopK as TopK
    from sae_lib.normalisation import Normalisation as Normalisation
    from sae_lib.sae import SparseAutoencoder as SparseAutoencoder
    from sae_lib.storage import load as load
    from sae_lib.training.loop import train as train

__version__ = "0.1.0"

# public name → the module that defines it
_EXPORTS: dict[str, str] = {
    "BatchSource": "batches", "BatchTopK": "methods.batch_top_k", "BiasAdaptation": "methods.bias_adaptation",
    "Frozen": "methods.frozen", "Gated": "methods.gated", "GroupBiasAdaptation": "methods.bias_adaptation",
    "JumpReLU": "methods.jump_relu", "L1": "methods.l1", "Matryoshka": "methods.matryoshka",
    "ModifiedBiasAdaptation": "methods.modified_bias_adaptation", "Normalisation": "normalisation",
    "Rows": "batches", "SparseAutoencoder": "sae", "TopK": "methods.top_k", "load": "storage",
    "train": "training.loop",
}  # fmt: skip
_MODULES = (
    "activations", "batches", "corpora", "dashboards", "distributed", "identifiability", "interventions",
    "language_models", "methods", "metrics", "normalisation", "plotting", "records", "sae", "storage",
    "sweeps", "synthetic", "training",
)  # fmt: skip

__all__ = sorted([*_EXPORTS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"sae_lib.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"sae_lib.{name}")
    raise AttributeError(f"sae_lib has no {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
