"""Sparse autoencoders by bias adaptation: training, recovery metrics, language models.

Names load on first use, so that ``import sae_lib`` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name → the module that defines it
_EXPORTS: dict[str, str] = {
    "BatchSource": "batches",
    "BatchTopK": "methods.batch_top_k",
    "BiasAdaptation": "methods.bias_adaptation",
    "Frozen": "methods.frozen",
    "Gated": "methods.gated",
    "GroupBiasAdaptation": "methods.bias_adaptation",
    "JumpReLU": "methods.jump_relu",
    "L1": "methods.l1",
    "Matryoshka": "methods.matryoshka",
    "ModifiedBiasAdaptation": "methods.modified_bias_adaptation",
    "Normalisation": "normalisation",
    "Rows": "batches",
    "SparseAutoencoder": "sae",
    "TopK": "methods.top_k",
    "load": "storage",
    "train": "training.loop",
}
_MODULES = (
    "activations",
    "batches",
    "corpora",
    "dashboards",
    "distributed",
    "identifiability",
    "interventions",
    "language_models",
    "methods",
    "metrics",
    "normalisation",
    "plotting",
    "records",
    "sae",
    "storage",
    "sweeps",
    "synthetic",
    "training",
)

__all__ = sorted([*_EXPORTS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"sae_lib.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"sae_lib.{name}")
    raise AttributeError(f"sae_lib has no {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
