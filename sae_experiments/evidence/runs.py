"""One run: what is trained, on what, how long; its name, its method and the knob that sets its L0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sae_experiments.records.common import HIGHEST, K_METHODS, SLOPES, TRIAL_SEED, setting, towards
from sae_lib.methods import METHODS, Method

# the setting of each method that decides its L0
KNOBS = {
    "gba": "htf", "ba": "target_frequency", "l1": "coefficient", "jumprelu": "coefficient",
    **dict.fromkeys(K_METHODS, "k"),
}  # fmt: skip
# where the search for a knob begins, by method and whether it is tied: for L0 = 32 at 4,096 latents
STARTS = {
    ("gba", False): 0.16, ("gba", True): 0.055, ("ba", False): 0.08, ("ba", True): 0.05, ("l1", False): 0.045,
    ("jumprelu", False): 1.1e-3, ("matryoshka", False): 30, ("matryoshka", True): 30,
}  # fmt: skip
# rows of a training that searches a knob: a twelfth of the run, but no fewer than these
TRIAL_ROWS = 150_000
# seconds between two checkpoints, and those of a step of a thousand rows for each latent: a cautious guess
BETWEEN, STEP = 90, 7e-5


@dataclass(frozen=True)
class Run:
    """A training run and its measurement on held-out rows.

    Attributes:
        stage: The stage that asked for it; not part of its name.
        method: Name in ``sae_lib.methods.METHODS``.
        width: Latents.
        rows: Training rows seen; more than the store has are several passes.
        lr: Peak learning rate.
        settings: Of the method. Where its knob is not among them, a short search sets it.
        l0: Wanted L0.
        seed: Of initial weights and order.
        corpus: ``"code"`` or ``"wikipedia"``.
        layer: Whose residual stream is read.
        ladder: Of GBA, highest over lowest target frequency.
        batch_size: Rows of a step.
    """

    stage: str
    method: str
    width: int
    rows: int
    lr: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    l0: int = 32
    seed: int = 0
    corpus: str = "code"
    layer: int = 14
    ladder: float = 100.0
    batch_size: int = 1024

    @property
    def tied(self) -> bool:
        """Whether encoder and decoder share their rows."""
        return bool(self.settings.get("tied", False))

    @property
    def name(self) -> str:
        """Name of its folder and key of its row, from all that decides its result."""
        thousands, rest = divmod(self.rows, 1000)
        parts = [
            f"{self.corpus}{self.layer}", self.method, "tied" if self.tied else "untied", f"l{self.l0}",
            f"m{self.width}", f"{self.rows}" if rest else f"{thousands}k", f"lr{self.lr:g}",
        ]  # fmt: skip
        parts += [
            f"{name.replace('_', '')}{value:g}"
            for name, value in sorted(self.settings.items())
            if name != "tied"
        ]
        parts += [f"ladder{self.ladder:g}"] * (self.ladder != 100)
        parts += [f"b{self.batch_size}"] * (self.batch_size != 1024)
        return "-".join([*parts, f"s{self.seed}"])

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.rows // self.batch_size

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints, so that a crash costs about two minutes at most."""
        return max(1, round(BETWEEN / (STEP * self.width * self.batch_size / 1024)))

    @property
    def knob(self) -> str:
        """Name of the setting that decides L0."""
        return KNOBS[self.method]

    @property
    def is_set(self) -> bool:
        """Whether the knob needs no search."""
        return self.knob in self.settings

    def with_knob(self, value: float) -> Run:
        """Return the run with its knob set."""
        return replace(self, settings={**self.settings, self.knob: value})

    def trial(self, value: float) -> Run:
        """Return the short run that tries a value of the knob, on a seed used for nothing else."""
        rows = min(self.rows, max(TRIAL_ROWS, self.rows // 12))
        return replace(self.with_knob(value), stage="trial", rows=rows, seed=TRIAL_SEED)

    @property
    def start(self) -> float:
        """Knob of the first trial."""
        known = STARTS.get((self.method, self.tied), float(self.l0))
        if self.method in ("gba", "ba"):
            # a guess between a share of all latents and a number of latents
            known = min(known * math.sqrt(4096 / self.width), HIGHEST[self.method])
        return setting(self.method, towards(known, 32, self.l0, SLOPES[self.method]))

    def build(self) -> Method:
        """Return the method, centred as a language model's rows require; its knob must be set."""
        settings: dict[str, Any] = {"centre": True, **self.settings}
        if self.method == "gba":
            settings.setdefault("ltf", float(f"{settings['htf'] / self.ladder:.6g}"))
        if self.method == "jumprelu":
            # as in ``testbed.contestant``, which says why
            settings = {"bandwidth": 0.05, "threshold": math.sqrt(2 * settings["coefficient"])} | settings
        return METHODS[self.method](**settings)
