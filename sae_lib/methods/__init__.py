"""Ways of enforcing sparsity, one in each file."""

from sae_lib.methods.base import Method
from sae_lib.methods.batch_top_k import BatchTopK
from sae_lib.methods.bias_adaptation import BiasAdaptation, GroupBiasAdaptation
from sae_lib.methods.frozen import Frozen
from sae_lib.methods.gated import Gated
from sae_lib.methods.jump_relu import JumpReLU
from sae_lib.methods.l1 import L1
from sae_lib.methods.matryoshka import Matryoshka
from sae_lib.methods.modified_bias_adaptation import ModifiedBiasAdaptation
from sae_lib.methods.top_k import TopK
from sae_lib.methods.trainer import Step, Trainer

# by name; without Frozen, which needs another method
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        GroupBiasAdaptation,
        BiasAdaptation,
        ModifiedBiasAdaptation,
        L1,
        TopK,
        BatchTopK,
        Matryoshka,
        JumpReLU,
        Gated,
    )
}

__all__ = [
    "L1",
    "METHODS",
    "BatchTopK",
    "BiasAdaptation",
    "Frozen",
    "Gated",
    "GroupBiasAdaptation",
    "JumpReLU",
    "Matryoshka",
    "Method",
    "ModifiedBiasAdaptation",
    "Step",
    "TopK",
    "Trainer",
]
