"""Whether training gives the same bits twice, and what PyTorch says of operations that may not."""

from __future__ import annotations

import warnings
from unittest.mock import patch

import torch
from torch import Tensor

import sae_lib
from benchmarks.gpu_check.context import Context
from sae_lib import kernels
from sae_lib.methods import BatchTopK, Gated, JumpReLU, Matryoshka, Method
from sae_lib.training.updating import Update

# biases adapt, and dead latents are reviewed, at every multiple of this
STRIDE = 50


def run(context: Context) -> None:
    """Train each method twice, by sparse and by dense steps."""
    batch, d, width, steps = (64, 16, 128, 3) if context.toy else (1024, 256, 4096, 20)
    methods: dict[str, Method] = {
        "GBA": sae_lib.GroupBiasAdaptation(centre=True),
        "L1": sae_lib.L1(0.01, centre=True),
        # dead after a step: the auxiliary loss is at work from the second one on
        "TopK": sae_lib.TopK(k=4, dead_after=1, centre=True),
        "BatchTopK": BatchTopK(k=4, dead_after=1),
        "Matryoshka": Matryoshka(k=4, dead_after=1, tied=True),
        "JumpReLU": JumpReLU(0.01, bandwidth=0.1, threshold=0.1, centre=True),
        "Gated": Gated(0.01),
    }
    rows = torch.randn(batch, d, generator=context.generator(), device=context.device) * d**-0.5
    for name, method in methods.items():
        for sparse in (True, False) if name != "Gated" else (False,):

            def twice(name: str = name, method: Method = method, sparse: bool = sparse) -> None:
                first, again = (trained(method, rows, width, steps, sparse) for _ in range(2))
                same = all(torch.equal(*pair) for pair in zip(first, again, strict=True))
                context.row(
                    "training twice", method=name, sparse=sparse, steps=steps, same_bits_twice=same, ok=same,
                    named_by_pytorch=named(method, rows, width, sparse),
                )  # fmt: skip

            context.attempt(f"training twice, {name}", twice)


def trained(method: Method, rows: Tensor, width: int, steps: int, sparse: bool) -> list[Tensor]:
    """Return all parameters after some steps on the same rows (N, d)."""
    sae = method.build(rows.shape[1], width, normalisation=sae_lib.Normalisation(), seed=0).to(rows.device)
    trainer = method.start(sae, rows).to(rows.device)
    parameters = [p for p in (*sae.parameters(), *trainer.parameters()) if p.requires_grad]
    update = Update(sae, trainer, method.optimiser(parameters, 1e-3, 0.0))
    # the choice between the two kinds of step is not what is compared
    with patch.multiple(kernels, supported=lambda *_: sparse, pays=lambda *_: True):
        for number in range(1, steps + 1):
            step = trainer(sae, rows)
            update(step.loss)
            trainer.after_step(sae, step, STRIDE * number)
    return [p.detach() for p in (*sae.parameters(), *trainer.parameters())]


def named(method: Method, rows: Tensor, width: int, sparse: bool) -> list[str]:
    """Return PyTorch's warnings about operations whose sums may come in any order, from two steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            trained(method, rows, width, 2, sparse)
        finally:
            torch.use_deterministic_algorithms(False)
    texts = {str(warning.message).split(". ")[0][:160] for warning in caught}
    # matrix products repeat as long as one stream is in use, whatever PyTorch asks for to be sure of it
    return sorted(text for text in texts if "determinis" in text and "CuBLAS" not in text)
