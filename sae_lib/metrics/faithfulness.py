"""How well a language model still predicts when a reconstruction replaces its activations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_lib.activations.positions import forward, kept
from sae_lib.language_models import LanguageModel, Site

# rows of logits converted to float32 log-probabilities at a time: 256 × 49,152 numbers are 50 MB
_CHUNK_ROWS = 256


class Reconstructor(Protocol):
    """Whatever maps rows (N, d) in the model's units to their reconstruction (N, d)."""

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return the reconstruction (N, d) of rows (N, d)."""


@dataclass(frozen=True)
class Faithfulness:
    """Losses in nats a token, and two scores computed from them.

    Attributes:
        ce_clean: Cross-entropy of the next token with unchanged activations.
        ce_spliced: Cross-entropy with the reconstruction.
        ce_mean: Cross-entropy with the mean activation.
        ce_zero: Cross-entropy with zeros.
        kl_spliced: Kullback–Leibler divergence from the clean predictions of those with the reconstruction.
        kl_mean: Divergence with the mean activation.
        kl_zero: Divergence with zeros.
        n_tokens: Number of predictions counted.
    """

    ce_clean: float
    ce_spliced: float
    ce_mean: float
    ce_zero: float
    kl_spliced: float
    kl_mean: float
    kl_zero: float
    n_tokens: int

    @property
    def ce_recovered(self) -> float:
        """(ce_mean − ce_spliced) / (ce_mean − ce_clean): 1 perfect, 0 like the mean, NaN for 0/0."""
        cost = self.ce_mean - self.ce_clean
        return (self.ce_mean - self.ce_spliced) / cost if cost else math.nan

    @property
    def kl_recovered(self) -> float:
        """1 − kl_spliced / kl_mean: 1 perfect, 0 as bad as the mean; NaN if the mean changes nothing."""
        return 1 - self.kl_spliced / self.kl_mean if self.kl_mean else math.nan


def _losses(clean: Tensor, changed: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return summed cross-entropy of ``changed`` (N, V) and summed divergence from ``clean`` (N, V)."""
    cross_entropy = divergence = 0.0
    for i in range(0, len(targets), _CHUNK_ROWS):
        chunk = slice(i, i + _CHUNK_ROWS)
        log_p, log_q = (logits[chunk].float().log_softmax(dim=-1) for logits in (clean, changed))
        cross_entropy -= log_q.gather(1, targets[chunk, None]).sum(dtype=torch.float64).item()
        divergence += (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64).item()
    return cross_entropy, divergence


@torch.no_grad()
def faithfulness(
    model: LanguageModel,
    saes: Mapping[str, Reconstructor],
    site: str | Site,
    blocks: Tensor,
    *,
    mean: Tensor | None = None,
    skip_first: int = 2,
    batch_blocks: int = 4,
) -> dict[str, Faithfulness]:
    """Measure cross-entropy and divergence with a site's activations reconstructed, and ablated to compare.

    >>> from sae_lib.metrics.faithfulness import faithfulness
    >>> saes = {"untrained": sae_lib.SparseAutoencoder(model.d_model, width=64)}
    >>> measured = faithfulness(model, saes, "resid_post.1", torch.arange(40).view(2, 20))
    >>> measured["untrained"].ce_spliced == measured["untrained"].ce_clean
    False

    Args:
        model: The language model.
        saes: By name, anything with ``reconstruct(rows (N, d)) -> (N, d)``; rows are float32 in the model's
            units. All of them share the clean and the ablated runs.
        site: Where activations are replaced.
        blocks: Held-out tokens (B, T).
        mean: (d,), the activation that mean ablation puts in; by default the mean over these blocks.
        skip_first: First positions of a block that stay unchanged and whose predictions do not count, like
            separators: rows that are not harvested either (:func:`sae_lib.activations.kept`).
        batch_blocks: Blocks in one forward pass; memory grows with batch_blocks · T · vocabulary.

    Returns:
        The measurements by name of the autoencoder.

    Raises:
        ValueError: Blocks with no prediction to count, or a mean of another shape.
    """
    site = model.site(site)
    if blocks.ndim != 2 or not 0 <= skip_first < blocks.shape[1] - 1 or len(blocks) == 0:
        raise ValueError(
            f"blocks have shape {tuple(blocks.shape)} and skip_first is {skip_first}; expected (B, T) "
            "with B at least 1 and skip_first in 0..T - 2, so that a prediction is left to count"
        )
    batches = list(blocks.split(batch_blocks))
    if mean is None:
        total, n_rows = torch.zeros(model.d_model, dtype=torch.float64), 0
        for batch in batches:
            (rows,) = forward(model, [site], batch, skip_first)
            total += rows.float().sum(dim=0).cpu()
            n_rows += len(rows)
        mean = (total / n_rows).float()
    if mean.shape != (model.d_model,):
        raise ValueError(f"mean has shape {tuple(mean.shape)}; expected ({model.d_model},)")
    mean = mean.to(model.device)

    def at(places: Tensor, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def replace(acts: Tensor) -> Tensor:
            flat = acts.flatten(0, 1).clone()
            flat[places] = change(flat[places].float()).to(acts.dtype)
            return flat.view_as(acts)

        return replace

    # run → change of the rows; names of autoencoders carry a prefix, so that they cannot clash
    changes: dict[str, Callable[[Tensor], Tensor]]
    changes = {f"sae {name}": sae.reconstruct for name, sae in saes.items()}
    changes |= {"mean": lambda rows: mean.expand_as(rows), "zero": torch.zeros_like}
    ce, kl = dict.fromkeys(("clean", *changes), 0.0), dict.fromkeys(changes, 0.0)
    n_tokens = 0
    for batch in batches:
        keep = kept(model, batch, skip_first)
        places = keep.flatten().nonzero().squeeze(1).to(model.device)
        counted = keep[:, :-1].to(model.device)
        targets = batch[:, 1:].to(model.device)[counted].long()
        n_tokens += len(targets)
        clean = model.logits(batch)[:, :-1][counted]
        ce["clean"] += _losses(clean, clean, targets)[0]
        for run, change in changes.items():
            with model.replaced(site, at(places, change)):
                changed = model.logits(batch)[:, :-1][counted]
            cross_entropy, divergence = _losses(clean, changed, targets)
            ce[run] += cross_entropy
            kl[run] += divergence
    ce, kl = ({run: total / n_tokens for run, total in sums.items()} for sums in (ce, kl))
    return {
        name: Faithfulness(
            ce["clean"], ce[f"sae {name}"], ce["mean"], ce["zero"],
            kl[f"sae {name}"], kl["mean"], kl["zero"], n_tokens,
        )
        for name in saes
    }  # fmt: skip
