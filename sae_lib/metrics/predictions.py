"""Whether intervening on a latent moves the next tokens that its reading predicts.

A prediction is a set of tokens, for instance those a latent's direction promotes
(:func:`sae_lib.interventions.logit_weights`) or those that follow where it fires on other text
(:meth:`sae_lib.metrics.reading.TokenTable.typical`). They should gain when the latent is steered and lose
when it is ablated. The null scores the same prediction on the changes made by another latent, or by a random
direction.
"""

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
    """Measure the mean change of next-token log-probabilities under n interventions: (n, vocabulary), nats.

    One clean pass serves all interventions, and logits are computed only at the positions.

    Args:
        model: The language model.
        blocks: Tokens (B, T).
        interventions: Unopened interventions; each is used once.
        positions: Bool (B, T), predictions to average over; by default after the last token of every block.
        layer: First layer whose output an intervention changes; earlier ones run once. −1 repeats all.

    Raises:
        ValueError: Positions of another shape or type, or none.
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
    """Return the chance that a predicted token gains more than an unpredicted one; ties count half.

    This is the area under the ROC curve: 1 if all predicted tokens gained more than all others, 0.5 by
    chance, 0 if they lost more than all others.

    Args:
        changes: (m, V), changes of log-probabilities under m interventions.
        predictions: n sets of distinct tokens, at least one each, not all.

    Returns:
        (n, m), prediction i on intervention j. If both belong to the same latents, the diagonal scores each
        prediction on its own latent, and the rest of a row is its null.

    Raises:
        ValueError: A prediction with repeated tokens, with none, or with all.
    """
    ranks = rankdata(changes.detach().cpu().numpy(), axis=1)
    scores = np.empty((len(predictions), len(ranks)))
    for i, predicted in enumerate(predictions):
        tokens = np.asarray(predicted, dtype=np.int64)
        n, others = len(tokens), ranks.shape[1] - len(tokens)
        if n == 0 or others < 1 or len(np.unique(tokens)) < n:
            raise ValueError(
                f"{n} predicted tokens of {ranks.shape[1]}; expected distinct ones, some but not all"
            )
        scores[i] = (ranks[:, tokens].sum(axis=1) - n * (n + 1) / 2) / (n * others)
    return scores
