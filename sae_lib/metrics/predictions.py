"""Does intervening on a latent move the next tokens that its reading predicts?

A prediction is a set of tokens, for instance those a latent's direction promotes
(:func:`sae_lib.interventions.logit_weights`) or those that follow where it fires on other text
(:meth:`sae_lib.metrics.reading.TokenTable.typical`). They should gain when the latent is steered and lose
when it is ablated. The null is the same prediction scored on what another latent, or a random direction,
changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

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
) -> Tensor:
    """Mean change of the next token's log-probabilities under each of n interventions: (n, vocabulary), nats.

    As :func:`sae_lib.interventions.log_prob_changes`, with one clean pass for all of them.

    blocks: tokens (B, T). interventions: not yet opened; they are used up.
    positions: bool (B, T), the predictions to average over; by default after the last token of every block.
    """
    if positions is None:
        positions = torch.zeros(blocks.shape, dtype=torch.bool)
        positions[:, -1] = True
    if positions.dtype != torch.bool or positions.shape != blocks.shape or not positions.any():
        raise ValueError(
            f"positions have shape {tuple(positions.shape)} and type {positions.dtype}; expected "
            f"torch.bool {tuple(blocks.shape)}, True somewhere"
        )
    mask = positions.to(model.device)

    def mean_log_probs() -> Tensor:
        return model.logits(blocks)[mask].float().log_softmax(dim=-1).mean(dim=0)

    clean, changes = mean_log_probs(), []
    for intervention in interventions:
        with intervention:
            changes.append((mean_log_probs() - clean).cpu())
    return torch.stack(changes)


def rank_score(changes: Tensor, predicted: Sequence[int] | np.ndarray) -> float:
    """Chance that a predicted token has gained more than one that is not predicted; ties count half.

    The area under the ROC curve: 1 if all predicted tokens gained more than all others, 0.5 by chance, 0 if
    they lost more than all others. changes: (V,). predicted: different tokens, at least one, not all.
    """
    values, chosen = changes.detach().cpu().numpy(), np.asarray(predicted, dtype=np.int64)
    n, others = len(chosen), len(values) - len(chosen)
    if n == 0 or others < 1 or len(np.unique(chosen)) < n:
        raise ValueError(f"{n} predicted tokens of {len(values)}; expected different ones, some but not all")
    return float((rankdata(values)[chosen].sum() - n * (n + 1) / 2) / (n * others))


def agreement(changes: Tensor, predictions: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Rank score of every prediction i on the changes made by every latent j: (n, n), row i, column j.

    The diagonal is each prediction on its own latent; the mean of the rest of a row is its null.
    changes: (n, V). predictions: n sets of tokens.
    """
    if len(changes) != len(predictions):
        raise ValueError(f"changes of {len(changes)} latents, {len(predictions)} predictions; need equal")
    return np.array([[rank_score(change, tokens) for change in changes] for tokens in predictions])
