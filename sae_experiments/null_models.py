"""The same search on a trained model and on its re-initialised twins, from the text to the statistics.

The null of arXiv 2512.18792: whatever a search finds in a model with fresh random weights owes nothing to
training. Every step is repeated for every model: harvest, normalise, train, choose, score.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sae_experiments.concept_search import phi, search
from sae_experiments.concepts import NAMES, code_concepts
from sae_experiments.probes import logistic_probes
from sae_experiments.testbed import contestant
from sae_lib import metrics
from sae_lib.activations.positions import forward, kept
from sae_lib.batches import Rows
from sae_lib.corpora import Corpus, standard_library, token_blocks
from sae_lib.language_models import LanguageModel, first_blocks, load, reinitialised
from sae_lib.methods import Method
from sae_lib.metrics.reading import purity
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder
from sae_lib.training import train

# to train on, to choose latents on, to score them on
PARTS = ("train", "choose", "score")
# a latent's strongest rows that its purity is read from; latents that fire on fewer are left out
STRONGEST = 20
# of the logistic probes
PENALTIES = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Text:
    """The tokens a search reads, the same for every model.

    blocks: by part, (B, T). tokens: by part, those of the rows, (N,). labels: by part, (N, F) bool.
    """

    blocks: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]


def code_text(
    corpus: tuple[Corpus, Corpus],
    model: LanguageModel,
    *,
    train: int = 16,
    half: int = 8,
    apart: int = 12,
    block_size: int = 256,
    skip_first: int = 2,
) -> Text:
    """Source code for a search: ``train`` blocks of the first corpus, twice ``half`` of the second.

    corpus: documents to train on and held-out ones, as from ``Corpus.split``.
    apart: only every ``apart``-th block of the stream is taken, so that few blocks come from many documents.
        The halves of the held-out stream share no document, but the one that may lie across their border.
    skip_first: as for :func:`sae_lib.activations.harvest`.
    """
    blocks: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    for documents, number in zip(corpus, (train, 2 * half), strict=True):
        stream = token_blocks(documents, model.tokenizer, block_size)
        whole = torch.stack(list(itertools.islice(stream, number * apart)))
        taken, marked = whole[::apart], code_concepts(whole, model.tokenizer)[::apart]
        if len(taken) < number:
            raise ValueError(
                f"{documents.name} gives {len(whole)} blocks of the {number * apart} needed; "
                "take fewer blocks, or less far apart"
            )
        if documents is corpus[0]:
            blocks["train"], labels["train"] = taken, marked
        else:
            blocks |= {"choose": taken[:half], "score": taken[half:]}
            labels |= {"choose": marked[:half], "score": marked[half:]}
    keep = {part: kept(model, blocks[part], skip_first) for part in PARTS}
    return Text(
        blocks,
        {part: blocks[part][keep[part]] for part in PARTS},
        {part: labels[part][keep[part]] for part in PARTS},
    )


def rows_of(
    model: LanguageModel,
    text: Text,
    sites: Sequence[str],
    *,
    normalisation: Normalisation | None = None,
    skip_first: int = 2,
    batch_blocks: int = 4,
) -> dict[str, dict[str, Tensor]]:
    """A model's activations on the text, by site and part, (N, d) float32, in one pass over it.

    normalisation: by default one constant for each site, fitted on its training rows.
    """
    raw: dict[str, dict[str, list[Tensor]]] = {site: {part: [] for part in PARTS} for site in sites}
    places = [model.site(site) for site in sites]
    for part in PARTS:
        for blocks in text.blocks[part].split(batch_blocks):
            read = forward(model, places, blocks, skip_first)
            for site, rows in zip(sites, read, strict=True):
                raw[site][part].append(rows.float().cpu())
    scaled = {}
    for site in sites:
        whole = {part: torch.cat(raw[site][part]) for part in PARTS}
        scale = normalisation or Normalisation.fit("scale", whole["train"])
        scaled[site] = {part: scale.apply(whole[part]) for part in PARTS}
    return scaled


def purities(sae: SparseAutoencoder, rows: Tensor, tokens: Tensor) -> Tensor:
    """Share of each latent's 20 strongest rows that stand on their most common token, (latents,) float64.

    rows: (N, d), as it was trained on. tokens: (N,). Latents that fire on fewer than 20 rows are left out.
    """
    codes = sae.encode(rows)
    often = ((codes > 0).sum(dim=0) >= STRONGEST).nonzero().flatten()
    if len(often) == 0:
        return torch.zeros(0, dtype=torch.float64)
    at = tokens[codes[:, often].topk(STRONGEST, dim=0).indices]
    return torch.from_numpy(purity(at.T.numpy()))


def measure(
    rows: Mapping[str, Tensor], text: Text, method: Method, *, seed: int = 0, **training: Any
) -> tuple[dict[str, Any], SparseAutoencoder]:
    """Train two autoencoders on a model's rows and make every statistic of the search.

    rows: of one site, from :func:`rows_of`. training: width, steps, batch_size, lr, as for
    :func:`sae_lib.train`. seed: of the first; the second has another and serves to compare the two.

    Returns plain values, and the first autoencoder: ``nmse``, ``explained_variance`` and ``l0`` on held-out
    rows; ``purity``, ``pure`` (mean purity of the latents on training rows, and their share at 0.9 or more);
    ``pw_mcc``, ``consistent`` (agreement with the second: matched cosine, and share of latents with a cosine
    above 0.9); ``phi`` (F,), the score of the latent found for each concept; ``latent`` (F,), which one.
    """
    data = Rows(rows["train"])
    sae, _ = train(data, method, seed=seed, progress=False, **training)
    other, _ = train(data, method, seed=seed + 1_000_000, progress=False, **training)
    fit = metrics.reconstruction(sae, torch.cat([rows["choose"], rows["score"]]))
    pure = purities(sae, rows["train"], text.tokens["train"])
    found = search(*halves(sae, rows, text))
    result: dict[str, Any] = {
        "nmse": fit.nmse,
        "explained_variance": fit.explained_variance,
        "l0": fit.l0,
        "purity": pure.mean().item() if len(pure) else 0.0,
        "pure": (pure >= 0.9).double().mean().item() if len(pure) else 0.0,
        "pw_mcc": metrics.pairwise_mcc([sae, other]),
        "consistent": (metrics.max_cosine_similarity(sae, other) > 0.9).double().mean().item(),
    }
    rounded = {name: round(value, 5) for name, value in result.items()}
    return rounded | {
        "phi": [round(x, 5) for x in found.score.tolist()], "latent": found.latent.tolist()
    }, sae  # fmt: skip


def halves(
    sae: SparseAutoencoder, rows: Mapping[str, Tensor], text: Text
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels and firings on the half to choose on, then on the half to score on, as ``search`` takes them."""
    fired = {part: sae.encode(rows[part]) > 0 for part in PARTS[1:]}
    return text.labels["choose"], fired["choose"], text.labels["score"], fired["score"]


def probe_scores(rows: Mapping[str, Tensor], text: Text) -> list[float]:
    """φ of a logistic probe for each concept, on the half that latents are scored on.

    Trained on the training rows; of the ``PENALTIES`` the best on the choosing half is taken, concept by
    concept: the same three parts of the text as the search has.
    """
    chosen: list[Tensor] = []
    scored: list[Tensor] = []
    for penalty in PENALTIES:
        probes = logistic_probes(rows["train"], text.labels["train"], penalty=penalty)
        for part, scores in (("choose", chosen), ("score", scored)):
            scores.append(phi(text.labels[part], probes.say(rows[part])).diagonal())
    best = torch.stack(chosen).argmax(dim=0)
    return [round(x, 5) for x in torch.stack(scored)[best, torch.arange(len(NAMES))].tolist()]


@cache
def opened(blocks: int, train: int, half: int) -> tuple[LanguageModel, Text]:
    """The first blocks of the default language model, and the text of a search; kept for the next call."""
    model = first_blocks(load(), blocks)
    return model, code_text(standard_library().split(held_out=0.1), model, train=train, half=half)


def draw(
    number: int | None,
    *,
    layers: Sequence[int],
    methods: Mapping[str, Sequence[float]],
    keep_embedding: bool = False,
    train: int = 16,
    half: int = 8,
    **training: Any,
) -> dict[str, Any]:
    """One model from its weights to its statistics: a run for :func:`sae_lib.sweeps.sweep`.

    number: of the re-initialised twin; None is the trained model.
    layers: read after these blocks, earliest first. methods: by name, the knob for
        :func:`sae_experiments.testbed.contestant` and the learning rate.
    train, half: as for :func:`code_text`. training: width, steps, batch_size.

    Returns ``{"found": [...]}``, one dictionary for each layer and method (see :func:`measure`).
    """
    model, text = opened(layers[-1] + 1, train, half)
    if number is not None:
        model = reinitialised(model, number, keep_embedding=keep_embedding)
    sites = [f"resid_post.{layer}" for layer in layers]
    rows = rows_of(model, text, sites)
    found = []
    for layer, site in zip(layers, sites, strict=True):
        for name, (knob, lr) in methods.items():
            seed = 0 if number is None else number + 1
            values, _ = measure(rows[site], text, contestant(name, knob), seed=seed, lr=lr, **training)
            found.append({"layer": layer, "method": name, **values})
    return {"found": found}
