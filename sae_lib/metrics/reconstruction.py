"""How well rows are reconstructed, and from how many latents."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lib.checks import matrix
from sae_lib.sae import SparseAutoencoder


@dataclass(frozen=True)
class Reconstruction:
    """Measurements of one autoencoder on one set of rows.

    Attributes:
        nmse: Σ‖x − f(x)‖² / Σ‖x‖².
        explained_variance: 1 − Σ‖x − f(x)‖² / Σ‖x − x̄‖², with x̄ the mean row.
        l0: Mean number of latents that fire on a row.
        firing_rate: (M,), share of rows on which each latent fires.
        dead_share: Share of latents that fire on no row.
        n_rows: Number of rows measured.
    """

    nmse: float
    explained_variance: float
    l0: float
    firing_rate: Tensor
    dead_share: float
    n_rows: int


@torch.no_grad()
def reconstruction(sae: SparseAutoencoder, rows: Tensor, *, batch_size: int = 4096) -> Reconstruction:
    """Measure ``sae`` on rows (N, d) as the model has them; sums are kept in float64.

    >>> sae = sae_lib.SparseAutoencoder(d_in=16, width=64, activation="topk", k=4)
    >>> measured = sae_lib.metrics.reconstruction(sae, torch.eye(16))
    >>> measured.l0, measured.nmse > 0, measured.firing_rate.shape
    (4.0, True, torch.Size([64]))
    """
    matrix(rows, sae.d_in)
    device = sae.weight.device
    error = torch.zeros((), dtype=torch.float64, device=device)
    fired = torch.zeros(sae.width, dtype=torch.int64, device=device)
    for x in rows.split(batch_size):
        x = x.to(device)
        codes = sae.encode(x)
        error += (sae.decode(codes, like=x) - x).double().square().sum()
        fired += (codes != 0).sum(dim=0)
    power = rows.double().square().sum().item()
    spread = (rows.double() - rows.double().mean(dim=0)).square().sum().item()
    return Reconstruction(
        nmse=error.item() / power if power else float("nan"),
        explained_variance=1 - error.item() / spread if spread else float("nan"),
        l0=fired.sum().item() / len(rows),
        firing_rate=(fired.double() / len(rows)).cpu(),
        dead_share=(fired == 0).double().mean().item(),
        n_rows=len(rows),
    )
