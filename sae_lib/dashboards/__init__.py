"""Feature dashboards: the evidence for judging what a latent stands for, and for doubting it."""

from sae_lib.dashboards.data import Context, Dashboards, Latent
from sae_lib.dashboards.figures import figure
from sae_lib.dashboards.fragments import fragment, side_by_side
from sae_lib.dashboards.matching import Match, match
from sae_lib.dashboards.measuring import measure
from sae_lib.dashboards.page import html
from sae_lib.dashboards.tokens import visible

__all__ = [
    "Context", "Dashboards", "Latent", "Match", "figure", "fragment", "html", "match", "measure",
    "side_by_side", "visible",
]  # fmt: skip
