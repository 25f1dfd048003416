"""Feature dashboards: what a reader needs to say what a latent stands for, and to doubt it."""

from sae_lib.dashboards.data import Context, Dashboards, Latent
from sae_lib.dashboards.measuring import measure
from sae_lib.dashboards.tokens import visible

__all__ = ["Context", "Dashboards", "Latent", "measure", "visible"]
