"""What Part IV of the book measures on, defined once: a model, two corpora, three layers, seven methods.

The chapters and ``benchmarks`` open the same activations, train at the same sizes and turn the same knobs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from sae_lib import activations, corpora, language_models
from sae_lib.language_models import LanguageModel
from sae_lib.methods import (
    L1,
    BatchTopK,
    BiasAdaptation,
    GroupBiasAdaptation,
    JumpReLU,
    Matryoshka,
    Method,
    TopK,
)
from sae_lib.store import ActivationStore

CORPORA = ("code", "wikipedia")
# of 30; the paper has 2, 13 and 26 of 28
LAYERS = {"early": 2, "middle": 14, "late": 26}
METHODS = ("gba", "ba", "topk", "batch_topk", "jumprelu", "matryoshka", "l1")
# by profile: rows of a training store and of a held-out store; width, steps and batch of a training run
SIZES: dict[str, dict[str, int]] = {
    "quick": {"train": 36_000, "held_out": 5_000, "width": 1024, "steps": 400, "batch_size": 256},
    "full": {"train": 2_000_000, "held_out": 50_000, "width": 9216, "steps": 8000, "batch_size": 1024},
}


@dataclass(frozen=True)
class LanguageTestbed:
    """A language model with its activations on two corpora at three layers.

    stores, held_out: by corpus and layer; training documents, and others.
    width, steps, batch_size: of one training run.
    """

    model: LanguageModel
    stores: Mapping[tuple[str, int], ActivationStore]
    held_out: Mapping[tuple[str, int], ActivationStore]
    width: int
    steps: int
    batch_size: int

    def test_rows(self, corpus: str, layer: int) -> Tensor:
        """All held-out rows (N, d), normalised as the training rows of that corpus and layer."""
        store = self.held_out[corpus, layer]
        return self.stores[corpus, layer].normalisation.apply(store.rows(torch.arange(store.n_rows)))

    def blocks(self, corpus: str, number: int) -> Tensor:
        """The first ``number`` blocks of held-out tokens (number, 256): those the held-out rows come from."""
        text = corpora.token_blocks(_parts(corpus)[1], self.model.tokenizer)
        return torch.stack(list(itertools.islice(text, number)))

    @property
    def training(self) -> dict[str, int]:
        """Width, steps and batch size as arguments of :func:`sae_lib.train`."""
        return {"width": self.width, "steps": self.steps, "batch_size": self.batch_size}


def _parts(corpus: str) -> tuple[corpora.Corpus, corpora.Corpus]:
    whole = corpora.standard_library() if corpus == "code" else corpora.wikipedia_summaries()
    return whole.split(held_out=0.1)


def open_testbed(
    profile: str = "quick",
    folder: str | Path = "../runs/language",
    *,
    layers: Sequence[int] = tuple(LAYERS.values()),
    names: Sequence[str] = CORPORA,
    device: str | torch.device = "cpu",
) -> LanguageTestbed:
    """Open the testbed; what is missing of its activations is harvested first (quick: three minutes).

    profile: ``"quick"`` or ``"full"``, see ``SIZES``.
    folder: where the stores are kept, one folder a profile, corpus, part and layer.
    layers, names: which of the layers and corpora.
    """
    if profile not in SIZES:
        raise ValueError(f"profile is {profile!r}; expected one of {', '.join(SIZES)}")
    if unknown := [name for name in names if name not in CORPORA]:
        raise ValueError(f"corpus is {unknown[0]!r}; expected one of {', '.join(CORPORA)}")
    size = SIZES[profile]
    model = language_models.load(device=device)
    found: dict[str, dict[tuple[str, int], ActivationStore]] = {"train": {}, "held_out": {}}
    root = Path(folder) / profile
    root.mkdir(parents=True, exist_ok=True)
    # chapters that open it at the same time wait for each other, or for the one that harvests
    with FileLock(root / ".lock"):
        for name in names:
            for part, corpus in zip(found, _parts(name), strict=True):
                # all layers in one pass of the model
                folders = {f"resid_post.{layer}": root / name / part / f"layer-{layer}" for layer in layers}
                stores = activations.harvest_sites(model, corpus, folders, n_tokens=size[part])
                found[part] |= {(name, layer): stores[f"resid_post.{layer}"] for layer in layers}
    return LanguageTestbed(
        model, found["train"], found["held_out"], size["width"], size["steps"], size["batch_size"]
    )


def contestant(name: str, knob: float, **settings: Any) -> Method:
    """A method by its name with its one knob for sparsity, centred as rows of a language model need it.

    knob: highest target frequency of GBA (the lowest is a hundredth of it), the target frequency of BA, K of
        the TopK family, λ of L1 and JumpReLU.
    settings: further settings of the method.

    JumpReLU's thresholds start at √(2λ), the code whose gain ½z² pays its price λ, and its bandwidth is 0.05:
    the published 0.001 of both is for runs a hundred times as long; here thresholds stay near their start.
    """
    common = {"centre": True, **settings}
    if name == "gba":
        return GroupBiasAdaptation(htf=knob, ltf=knob / 100, **common)
    if name == "ba":
        return BiasAdaptation(target_frequency=knob, **common)
    if name == "l1":
        return L1(coefficient=knob, **common)
    if name == "jumprelu":
        return JumpReLU(coefficient=knob, **{"bandwidth": 0.05, "threshold": math.sqrt(2 * knob)} | common)
    if name == "topk":
        return TopK(k=round(knob), **common)
    if name == "batch_topk":
        return BatchTopK(k=round(knob), **common)
    if name == "matryoshka":
        return Matryoshka(k=round(knob), **common)
    raise ValueError(f"method is {name!r}; expected one of {', '.join(METHODS)}")
