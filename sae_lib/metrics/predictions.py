"""Does intervening on a latent move the next tokens that its reading predicts?

A prediction is a set of tokens, for instance those a latent's direction promotes
(:func:`sae_lib.interventions.logit_weights`) or those that follow where it fires on other text
(:meth:`sae_lib.metrics.reading.TokenTable.typical`). They should gain when the latent is steered and lose
when it is ablated. The null is the same prediction scored on what another latent, or a random direction,
changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from sae_lib.language_models import LanguageModel


@torch.no_grad()
def next_token_changes(
    model: LanguageModel,
    blocks: Tensor,
    interventions: Iterable[AbstractContextManager[None]],
    positions: Tensor | None = None,
    *,
    layer: int = -1,
) -> Tensor:
    """Mean change of the next token's log-probabilities under each of n interventions: (n, vocabulary), nats.

    One clean pass serves all of them, and logits are computed only where they are asked for.

    blocks: tokens (B, T). interventions: not yet opened; they are used up.
    positions: bool (B, T), the predictions to average over; by default after the last token of every block.
    layer: the first block whose output an intervention changes; what comes before is computed once. −1: all.
    """
    if positions is None:
        positions = torch.zeros(blocks.shape, dtype=torch.bool)
        positions[:, -1] = True
    if positions.dtype != torch.bool or positions.shape != blocks.shape or not positions.any():
        raise ValueError(
            f"positions have shape {tuple(positions.shape)} and type {positions.dtype}; expected "
            f"torch.bool {tuple(blocks.shape)}, True somewhere"
        )

    def mean_log_probs() -> Tensor:
        return model.logits(blocks, positions).float().log_softmax(dim=-1).mean(dim=0)

    with model.resumed(layer, blocks) if layer >= 0 else nullcontext():
        clean, changes = mean_log_probs(), []
        for intervention in interventions:
            with intervention:
                changes.append((mean_log_probs() - clean).cpu())
    return torch.stack(changes)


def rank_scores(changes: Tensor, predictions: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Chance that a predicted token has gained more than one that is not predicted; ties count half.

    The area under the ROC curve: 1 if all predicted tokens gained more than all others, 0.5 by chance, 0 if
    they lost more than all others.

    changes: (m, V) log-probabilities under m interventions.
    predictions: n sets of different tokens, at least one each, not all.
    Returns (n, m), prediction i on intervention j. Where these are the same latents, the diagonal is each
    prediction on its own latent, and the rest of a row its null.
    """
    ranks = rankdata(changes.detach().cpu().numpy(), axis=1)
    scores = np.empty((len(predictions), len(ranks)))
    for i, predicted in enumerate(predictions):
        tokens = np.asarray(predicted, dtype=np.int64)
        n, others = len(tokens), ranks.shape[1] - len(tokens)
        if n == 0 or others < 1 or len(np.unique(tokens)) < n:
            raise ValueError(
                f"{n} predicted tokens of {ranks.shape[1]}; expected different ones, some but not all"
            )
        scores[i] = (ranks[:, tokens].sum(axis=1) - n * (n + 1) / 2) / (n * others)
    return scores
