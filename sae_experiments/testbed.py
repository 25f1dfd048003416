"""The testbed of Part IV of the book, defined once: a model, two corpora, three layers, seven methods.

The chapters and ``sae_experiments.records`` open the same activations, train at the same sizes and set the
same knobs to the values that the search of chapter 10 found.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from sae_lib import activations, corpora, language_models
from sae_lib.activations.store import ActivationStore
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
from sae_lib.sae import SparseAutoencoder

CORPORA = ("code", "wikipedia")
# of 30; the paper has 2, 13 and 26 of 28
LAYERS = {"early": 2, "middle": 14, "late": 26}
METHODS = ("gba", "ba", "topk", "batch_topk", "jumprelu", "matryoshka", "l1")
# where the stores are kept, seen from a chapter
FOLDER = "../runs/language"
# by profile: rows of a training store and of a held-out store; width, steps and batch of a training run
SIZES: dict[str, dict[str, int]] = {
    "quick": {"train": 36_000, "held_out": 5_000, "width": 1024, "steps": 400, "batch_size": 256},
    "full": {"train": 2_000_000, "held_out": 50_000, "width": 9216, "steps": 8000, "batch_size": 1024},
}
# which rows the stores hold: documents are read whole, and no row is dropped for its length
RULES: dict[str, Any] = {"skip_first": 2, "spread": False, "max_norm": None}


@dataclass(frozen=True)
class LanguageTestbed:
    """A language model with its activations on two corpora at three layers.

    Attributes:
        model: The language model.
        stores: Activations on training documents, by corpus and layer.
        held_out: Activations on other documents, by corpus and layer.
        width: Of one training run.
        steps: Of one training run.
        batch_size: Of one training run.
    """

    model: LanguageModel
    stores: Mapping[tuple[str, int], ActivationStore]
    held_out: Mapping[tuple[str, int], ActivationStore]
    width: int
    steps: int
    batch_size: int

    def test_rows(self, corpus: str, layer: int) -> Tensor:
        """Return all held-out rows (N, d) of that corpus and layer, as the model has them."""
        return all_rows(self.held_out[corpus, layer])

    def blocks(self, corpus: str, number: int) -> Tensor:
        """Return the first ``number`` blocks of held-out tokens (number, 256), those of the held-out rows."""
        text = corpora.token_blocks(texts(corpus)[1], self.model.tokenizer, spread=RULES["spread"])
        return torch.stack(list(itertools.islice(text, number)))

    @property
    def training(self) -> dict[str, int]:
        """Width, steps and batch size as arguments of :func:`sae_lib.train`."""
        return {"width": self.width, "steps": self.steps, "batch_size": self.batch_size}


def texts(corpus: str) -> tuple[corpora.Corpus, corpora.Corpus]:
    """Return documents to train on and a tenth held out, of ``"code"`` or ``"wikipedia"``."""
    documents = corpora.standard_library() if corpus == "code" else corpora.wikipedia_summaries()
    return documents.split(held_out=0.1)


def all_rows(store: ActivationStore) -> Tensor:
    """Return every row of a store (N, d), as the model has them."""
    return store.rows(torch.arange(store.n_rows))


def untrained(method: Method, store: ActivationStore, *, width: int, seed: int) -> SparseAutoencoder:
    """Make a null: an autoencoder as the method starts it, with its biases set on rows of the store."""
    sae = method.build(store.d_in, width, normalisation=store.normalisation, seed=seed)
    method.start(sae, store.normalisation.apply(store.sample(16_384)))
    return sae


def _at(folder: str | Path, profile: str, corpus: str, part: str, layer: int) -> Path:
    """Return the path of a store."""
    return Path(folder) / profile / corpus / part / f"layer-{layer}"


def _check(name: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(str, choices))}")


def check_parameters(profile: str, corpus: str = "code", layer: int = LAYERS["middle"]) -> None:
    """Refuse what the testbed does not have.

    >>> from sae_experiments import testbed
    >>> testbed.check_parameters("quick", corpus="prose")
    Traceback (most recent call last):
    ValueError: corpus is 'prose'; expected one of code, wikipedia

    Raises:
        ValueError: Another profile, corpus or layer; the message names the choices.
    """
    _check("profile", profile, tuple(SIZES))
    _check("corpus", corpus, CORPORA)
    _check("layer", layer, tuple(LAYERS.values()))


def open_testbed(
    profile: str = "quick",
    folder: str | Path = FOLDER,
    *,
    layers: Sequence[int] = tuple(LAYERS.values()),
    names: Sequence[str] = CORPORA,
    device: str | torch.device = "cpu",
    model_dtype: str = "float32",
) -> LanguageTestbed:
    """Open the testbed and harvest first what is missing of its activations (quick: three minutes).

    Args:
        profile: ``"quick"`` or ``"full"``, see ``SIZES``.
        folder: Holds the stores, one folder a profile, corpus, part and layer.
        layers: Some of the layers.
        names: Some of the corpora.
        device: Of the language model.
        model_dtype: Of the language model: ``"float32"``, ``"bfloat16"`` or ``"auto"``; a store is refused if
            it was made with another.

    Raises:
        ValueError: Another profile or corpus; the message names the choices.
    """
    _check("profile", profile, tuple(SIZES))
    for name in names:
        _check("corpus", name, CORPORA)
    size = SIZES[profile]
    model = language_models.load(device=device, dtype=model_dtype)
    opened: dict[str, dict[tuple[str, int], ActivationStore]] = {"train": {}, "held_out": {}}
    root = Path(folder) / profile
    root.mkdir(parents=True, exist_ok=True)
    # chapters that open it at the same time wait for each other, or for the one that harvests
    with FileLock(root / ".lock"):
        for name in names:
            for part, corpus in zip(opened, texts(name), strict=True):
                # all layers in one pass of the model
                folders = {f"resid_post.{layer}": _at(folder, profile, name, part, layer) for layer in layers}
                stores = activations.harvest_sites(model, corpus, folders, n_tokens=size[part], **RULES)
                opened[part] |= {(name, layer): stores[f"resid_post.{layer}"] for layer in layers}
    return LanguageTestbed(
        model, opened["train"], opened["held_out"], size["width"], size["steps"], size["batch_size"]
    )


def open_place(
    corpus: str, layer: int, folder: str | Path = FOLDER, *, store: ActivationStore | None = None
) -> tuple[ActivationStore, Tensor]:
    """Open one corpus and layer of the quick testbed without the model: training store, held-out rows (N, d).

    With ``store`` this is the training store, in place of the testbed's.

    Raises:
        FileNotFoundError: :func:`open_testbed` has not harvested them in ``folder``.
    """
    if store is None:
        store = ActivationStore.open(_at(folder, "quick", corpus, "train", layer))
    return store, all_rows(ActivationStore.open(_at(folder, "quick", corpus, "held_out", layer)))


def searched_places(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Return corpora and layers for which chapter 10's search has settings of all methods, in order.

    ``rows`` are those of its record, ``book/records/10_search.json``.
    """
    has = {(row["corpus"], row["layer"], row["method"]) for row in rows if row["chosen"]}
    places = itertools.product(CORPORA, LAYERS.values())
    return [place for place in places if all((*place, method) in has for method in METHODS)]


def settings(rows: Sequence[Mapping[str, Any]], corpus: str, layer: int) -> dict[str, dict[str, Any]]:
    """Return by method what chapter 10's search chose at a place: a row of its record, with ``lr``, ``knob``.

    ``rows`` are those of the record, ``book/records/10_search.json``.

    Raises:
        ValueError: The search did not go to this place; the message names those it went to.
    """
    if (corpus, layer) not in (places := searched_places(rows)):
        searched = "; ".join(f"{name}, {at}" for name, at in places) or "none"
        raise ValueError(
            f"corpus, layer is {corpus!r}, {layer!r}; the search of chapter 10 has settings for {searched}"
        )
    chosen = (row for row in rows if row["chosen"] and (row["corpus"], row["layer"]) == (corpus, layer))
    return {row["method"]: dict(row) for row in chosen}


def contestant(name: str, knob: float, **settings: Any) -> Method:
    """Return a method by its name and its one knob for sparsity, centred as a language model's rows require.

    JumpReLU's thresholds start at √(2λ), the code whose gain ½z² pays its price λ, and its bandwidth is 0.05:
    the published 0.001 of both is for runs a hundred times as long; here thresholds stay near their start.

    Args:
        name: One of ``METHODS``.
        knob: Highest target frequency of GBA (the lowest is a hundredth of it), the target frequency of BA, K
            of the TopK family, λ of L1 and JumpReLU.
        **settings: Further settings of the method.

    Raises:
        ValueError: Unknown name.
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
