"""What weights alone say about a latent: the tokens it promotes, the latents nearest to it."""

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.interventions import logit_weights
from sae_lib.language_models import LanguageModel
from sae_lib.sae import SparseAutoencoder

# cosines or logit weights computed at a time
_NUMBERS = 2**24

Pairs: TypeAlias = tuple[tuple[int, float], ...]


def _pairs(numbers: Tensor, values: Tensor) -> list[Pairs]:
    return [
        tuple(zip(row, value, strict=True))
        for row, value in zip(numbers.tolist(), values.tolist(), strict=True)
    ]


@torch.no_grad()
def token_scores(
    model: LanguageModel, sae: SparseAutoencoder, numbers: np.ndarray, n: int
) -> list[tuple[Pairs, Pairs]]:
    """Return the n tokens that each latent promotes most when it fires, and the n that it demotes most."""
    scores: list[tuple[Pairs, Pairs]] = []
    # a latent whose output scale is negative writes against its decoder direction
    signs = torch.where(sae.scale < 0, -1.0, 1.0)
    for chunk in torch.from_numpy(numbers).split(max(1, _NUMBERS // model.vocabulary)):
        index = chunk.to(sae.weight.device)
        weights = logit_weights(model, sae, index) * signs[index][:, None].to(model.device)
        highest, lowest = weights.topk(n), weights.topk(n, largest=False)
        promoted, demoted = (_pairs(top.indices, top.values) for top in (highest, lowest))
        scores += zip(promoted, demoted, strict=True)
    return scores


@torch.no_grad()
def nearest(sae: SparseAutoencoder, numbers: np.ndarray, k: int) -> list[Pairs]:
    """Return the k latents whose signed decoder directions have the largest cosine with that of each."""
    directions = normalize(sae.directions.float(), dim=1)
    neighbours: list[Pairs] = []
    for chunk in torch.from_numpy(numbers).to(directions.device).split(max(1, _NUMBERS // sae.width)):
        cosines = directions[chunk] @ directions.T
        cosines[torch.arange(len(chunk)), chunk] = -torch.inf
        best = cosines.topk(k)
        neighbours += _pairs(best.indices, best.values)
    return neighbours
