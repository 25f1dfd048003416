"""Training steps of other libraries that are installed, as closures.

Each is the library's own forward pass and loss, with its trainer's optimiser and handling of decoder norms;
logging and data handling are left out, which favours them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

Step = Callable[[], object]
# small enough that L0 does not move while steps are timed
RATE = 1e-7


def available(x: Tensor, width: int, l0: int) -> dict[str, Callable[[], Step]]:
    """Return, by name, a builder of the step of every installed peer; x is the batch (B, d)."""
    builders: dict[str, Callable[[], Step]] = {}
    if find_spec("sae_lens"):
        names = ("TopK", "BatchTopK", "JumpReLU", "L1")
        builders |= {f"SAELens {name}": partial(_sae_lens, name, x, width, l0) for name in names}
    if find_spec("sparsify"):
        builders["sparsify TopK"] = partial(_sparsify, x, width, l0)
    if find_spec("dictionary_learning"):
        names = ("TopK", "BatchTopK")
        builders |= {
            f"dictionary_learning {name}": partial(_dictionary_learning, name, x, width, l0) for name in names
        }
    return builders


def _sae_lens(name: str, x: Tensor, width: int, l0: int) -> Step:
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    kind, config, settings = {
        "TopK": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig, {"k": l0}),
        "BatchTopK": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig, {"k": l0}),
        "JumpReLU": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig, {}),
        "L1": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig, {}),
    }[name]
    sae = kind(config(d_in=x.shape[1], d_sae=width, device=str(x.device), **settings))
    optimiser = torch.optim.Adam(sae.parameters(), lr=RATE)
    if name in ("JumpReLU", "L1"):
        _set_l0(sae, x, l0)
    batch = TrainStepInput(
        sae_in=x, coefficients={"l0": 1e-6, "l1": 1e-6}, dead_neuron_mask=None, n_training_steps=1,
        is_logging_step=False,
    )  # fmt: skip

    def step() -> None:
        optimiser.zero_grad()
        sae.training_forward_pass(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()

    return step


@torch.no_grad()
def _set_l0(sae: torch.nn.Module, x: Tensor, l0: int) -> None:
    """Set encoder biases (and thresholds) so that ``l0`` latents fire on a row."""
    width = sae.W_enc.shape[1]
    cut = (x @ sae.W_enc).flatten()[: 2**24].float().cpu().kthvalue(
        int((1 - l0 / width) * min(x.shape[0] * width, 2**24))
    ).values  # fmt: skip
    if hasattr(sae, "log_threshold"):
        cut = cut - sae.threshold[0].cpu()
    sae.b_enc.fill_(-cut.item())


def _sparsify(x: Tensor, width: int, l0: int) -> Step:
    from sparsify import SparseCoder, SparseCoderConfig, sparse_coder, utils

    if x.device.type == "cpu":
        # with Triton installed it would take its Triton decoder, which needs a GPU
        sparse_coder.decoder_impl = utils.eager_decode
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=width, k=l0), device=x.device)
    optimiser = torch.optim.Adam(sae.parameters(), lr=RATE)

    def step() -> None:
        optimiser.zero_grad()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        sae.set_decoder_norm_to_unit_norm()

    return step


def _dictionary_learning(name: str, x: Tensor, width: int, l0: int) -> Step:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kind = {"TopK": TopKTrainer, "BatchTopK": BatchTopKTrainer}[name]
    trainer = kind(
        steps=10**6, activation_dim=x.shape[1], dict_size=width, k=l0, layer=0, lm_name="", lr=RATE,
        device=str(x.device),
    )  # fmt: skip
    return partial(trainer.update, 1, x)
