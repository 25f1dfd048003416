"""The final norm, between the last residual stream and the logits."""

from typing import Any

import torch
from torch import Tensor

from sae_lib.language_models.model import LanguageModel


def _normed(model: LanguageModel, stream: Tensor) -> Tensor:
    """Return the input (N, d) of the unembedding when the last residual stream is ``stream`` (N, d)."""
    caught: list[Tensor] = []

    def catch(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    with (
        model.model.get_output_embeddings().register_forward_pre_hook(catch),
        model.replaced(f"resid_post.{model.n_layers - 1}", lambda _: stream[None]),
    ):
        model.logits(torch.zeros(1, len(stream), dtype=torch.long))
    return caught[0][0]


def through_final_norm(model: LanguageModel, directions: Tensor) -> Tensor:
    """Map directions (n, d) through the linear part of the final norm: its gain, and any centring.

    A norm is x ↦ g ⊙ C x / s(x) + bias, with C the identity (RMSNorm) or x − mean (LayerNorm). Its odd part
    at two known vectors gives g and C, whatever the norm is called and however it stores the gain.

    Raises:
        ValueError: There is more than a norm before the unembedding.
    """
    device, d = model.device, model.d_model
    balanced = torch.ones(d, device=device)
    balanced[1::2] = -1
    balanced = balanced - balanced.mean()
    balanced = balanced / balanced.square().mean().sqrt()
    other = torch.linspace(-1, 2, d, device=device).square()
    probes = torch.stack([balanced, torch.ones_like(balanced), other])
    # so long that the ε under the norm's root does not matter
    out = _normed(model, 64 * torch.cat([probes, -probes])).float()
    odd = (out[:3] - out[3:]) / 2
    gain = odd[0] / balanced

    def linear(rows: Tensor) -> Tensor:
        return rows * gain - rows.mean(dim=-1, keepdim=True) * (gain - odd[1])

    if torch.cosine_similarity(linear(other), odd[2], dim=0) < 0.99:
        raise ValueError(f"{model.name} has more than a norm between the last block and the unembedding")
    return linear(directions)
