"""Ways of enforcing sparsity, one a file."""

from sae_lib.methods.base import Method, Run, Step
from sae_lib.methods.bias_adaptation import BiasAdaptation, GroupBiasAdaptation
from sae_lib.methods.l1 import L1
from sae_lib.methods.top_k import TopK

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (BiasAdaptation, GroupBiasAdaptation, L1, TopK)
}

__all__ = ["L1", "METHODS", "BiasAdaptation", "GroupBiasAdaptation", "Method", "Run", "Step", "TopK"]
