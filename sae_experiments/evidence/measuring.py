"""What is measured of an autoencoder on held-out rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.methods import Method
from sae_lib.methods.bias_adaptation import BiasRule, group_index, group_sums
from sae_lib.metrics import reconstruction
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder

# of the firing rates, over latents
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# below this rate a latent counts as rare
RARE = 1e-5
# latents whose nearest neighbour is looked for
SAMPLED = 2048


def short(value: float) -> float:
    """Return a number with six significant digits."""
    return float(f"{value:.6g}")


@torch.no_grad()
def nearest_cosine(directions: Tensor, sampled: int = SAMPLED) -> float:
    """Return the mean, over a sample of directions (M, d), of the largest |cos| with any other of them."""
    if len(directions) < 2:
        return 0.0
    unit = normalize(directions, dim=1)
    chosen = torch.randperm(len(unit), generator=generator(0, "nearest cosine"))[:sampled]
    largest = []
    for part in chosen.split(256):
        cosines = (unit[part] @ unit.T).abs()
        cosines[torch.arange(len(part)), part] = 0.0
        largest.append(cosines.amax(dim=1))
    return torch.cat(largest).double().mean().item()


def measured(sae: SparseAutoencoder, method: Method, rows: Tensor) -> dict[str, Any]:
    """Measure an autoencoder on held-out rows (N, d).

    ``fvu`` is the error over the spread about the mean row, ``nmse`` the error over the sum of squares;
    ``dead`` and ``rare`` are shares of latents. ``nearest_cosine`` is among latents that fire.
    """
    score = reconstruction(sae, rows)
    rate = score.firing_rate
    result: dict[str, Any] = {
        "l0": short(score.l0), "fvu": short(1 - score.explained_variance), "nmse": short(score.nmse),
        "dead": short(score.dead_share), "rare": short((rate < RARE).double().mean().item()),
        "rate_quantiles": [short(q) for q in torch.quantile(rate, rate.new_tensor(QUANTILES)).tolist()],
        "nearest_cosine": short(nearest_cosine(sae.directions[rate > 0])),
        "held_out_rows": len(rows),
    }  # fmt: skip
    if isinstance(method, BiasRule):
        group = group_index(sae.width, len(method.targets))
        number = torch.bincount(group, minlength=len(method.targets))
        result["group_target"] = [short(p) for p in method.targets.tolist()]
        result["group_rate"] = [short(p) for p in (group_sums(rate, group, len(number)) / number).tolist()]
    return result
