"""How well a language model still predicts when a reconstruction takes the place of its activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_lib.activations.positions import forward, kept
from sae_lib.language_models import LanguageModel, Site

# rows of logits turned to float32 log-probabilities at a time: 256 × 49,152 numbers are 50 MB
_CHUNK_ROWS = 256


class Reconstructor(Protocol):
    """What is measured: rows (N, d) in the model's units to their reconstruction (N, d)."""

    def reconstruct(self, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Faithfulness:
    """Losses in nats a token, and the two scores made from them.

    ce_*: cross-entropy of the next token with the activations left alone, reconstructed, replaced by their
        mean, by zero.
    kl_*: Kullback–Leibler divergence of the changed predictions from the clean ones.
    ce_recovered: (ce_mean − ce_spliced) / (ce_mean − ce_clean): 1 is perfect, 0 no better than the mean.
    kl_recovered: 1 − kl_spliced / kl_mean. Both are NaN where replacing by the mean changes nothing.
    n_tokens: predictions that were counted.
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
        """Share of the loss that mean ablation costs and the reconstruction saves."""
        cost = self.ce_mean - self.ce_clean
        return (self.ce_mean - self.ce_spliced) / cost if cost else math.nan

    @property
    def kl_recovered(self) -> float:
        """Share of the divergence that mean ablation causes and the reconstruction avoids."""
        return 1 - self.kl_spliced / self.kl_mean if self.kl_mean else math.nan


def _mean_activation(model: LanguageModel, site: Site, batches: list[Tensor], skip_first: int) -> Tensor:
    total = torch.zeros(model.d_model, dtype=torch.float64)
    n = 0
    for blocks in batches:
        (rows,) = forward(model, [site], blocks, skip_first)
        total += rows.float().sum(dim=0).cpu()
        n += len(rows)
    return (total / n).float()


def _losses(clean: Tensor, changed: Tensor, targets: Tensor) -> tuple[float, float]:
    """Summed cross-entropy of ``changed`` (N, V) and its summed divergence from ``clean`` (N, V)."""
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
    """Cross-entropy and divergence with the site's activations reconstructed, and ablated for comparison.

    >>> from sae_lib.metrics.faithfulness import faithfulness
    >>> saes = {"untrained": sae_lib.SparseAutoencoder(model.d_model, width=64)}
    >>> measured = faithfulness(model, saes, "resid_post.1", torch.arange(40).view(2, 20))
    >>> measured["untrained"].ce_spliced == measured["untrained"].ce_clean
    False

    saes: by name, anything with ``reconstruct(rows (N, d)) -> (N, d)``; rows are float32 in the model's own
        units. Several together share the clean and the ablated runs.
    blocks: held-out tokens (B, T).
    mean: (d,), what mean ablation puts in; by default the mean over these blocks.
    skip_first: positions of every block left as they are in all runs, as are separators: the rows that are
        not harvested either (:func:`sae_lib.activations.kept`). Their predictions are not counted.
    batch_blocks: blocks in one forward pass; memory grows with batch_blocks · T · vocabulary.
    """
    site = model.site(site)
    if blocks.ndim != 2 or not 0 <= skip_first < blocks.shape[1] - 1 or len(blocks) == 0:
        raise ValueError(
            f"blocks have shape {tuple(blocks.shape)} and skip_first is {skip_first}; expected (B, T) "
            "with B at least 1 and skip_first in 0..T - 2, so that a prediction is left to count"
        )
    batches = list(blocks.split(batch_blocks))
    if mean is None:
        mean = _mean_activation(model, site, batches, skip_first)
    if mean.shape != (model.d_model,):
        raise ValueError(f"mean has shape {tuple(mean.shape)}; expected ({model.d_model},)")
    mean = mean.to(model.device)

    def at(places: Tensor, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def replace(acts: Tensor) -> Tensor:
            flat = acts.flatten(0, 1).clone()
            flat[places] = change(flat[places].float()).to(acts.dtype)
            return flat.view_as(acts)

        return replace

    # one run a row of this table; keys of autoencoders carry a prefix, so that no name can clash
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
    return {
        name: Faithfulness(
            ce_clean=ce["clean"] / n_tokens,
            ce_spliced=ce[f"sae {name}"] / n_tokens,
            ce_mean=ce["mean"] / n_tokens,
            ce_zero=ce["zero"] / n_tokens,
            kl_spliced=kl[f"sae {name}"] / n_tokens,
            kl_mean=kl["mean"] / n_tokens,
            kl_zero=kl["zero"] / n_tokens,
            n_tokens=n_tokens,
        )
        for name in saes
    }
