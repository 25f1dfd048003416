"""One search on a trained model and on its re-initialised twins, from the text to the statistics.

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
# strongest rows of a latent that give its purity; latents that fire on fewer are left out
STRONGEST = 20
# of the logistic probes
PENALTIES = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Text:
    """The tokens a search reads, the same for every model.

    Attributes:
        blocks: By part, (B, T).
        tokens: By part, those of the rows, (N,).
        labels: By part, (N, F) bool.
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
    """Take source code for a search.

    The halves of the held-out stream share no document, except one that may lie across their border.

    Args:
        corpus: Documents to train on and held-out ones, as from ``Corpus.split``.
        model: Its tokenizer makes the tokens.
        train: Blocks to train on.
        half: Blocks to choose latents on, and as many to score them on.
        apart: Take every ``apart``-th block of the stream, so that few blocks come from many documents.
        block_size: Tokens of a block.
        skip_first: As for :func:`sae_lib.activations.harvest`.

    Raises:
        ValueError: A corpus is too short.
    """
    blocks: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    for documents, number in zip(corpus, (train, 2 * half), strict=True):
        stream = token_blocks(documents, model.tokenizer, block_size, spread=False)
        dense = torch.stack(list(itertools.islice(stream, number * apart)))
        picked, marked = dense[::apart], code_concepts(dense, model.tokenizer)[::apart]
        if len(picked) < number:
            raise ValueError(
                f"{documents.name} gives {len(dense)} blocks of the {number * apart} needed; "
                "take fewer blocks, or less far apart"
            )
        if documents is corpus[0]:
            blocks["train"], labels["train"] = picked, marked
        else:
            blocks |= {"choose": picked[:half], "score": picked[half:]}
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
    """Return a model's activations on the text, by site and part, (N, d) float32, in one pass over it.

    They are scaled by ``normalisation``, by default one constant a site, fitted on its training rows.
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
        rows_by_part = {part: torch.cat(raw[site][part]) for part in PARTS}
        scale = normalisation or Normalisation.fit("scale", rows_by_part["train"])
        scaled[site] = {part: scale.apply(rows_by_part[part]) for part in PARTS}
    return scaled


def purities(sae: SparseAutoencoder, rows: Tensor, tokens: Tensor) -> Tensor:
    """Return the share of each latent's 20 strongest rows on their most common token, (latents,) float64.

    Latents that fire on fewer than 20 of the rows (N, d), with tokens (N,), are left out.
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
    """Train two autoencoders on a model's rows and compute every statistic of the search.

    Args:
        rows: Of one site, from :func:`rows_of`.
        text: What the rows were read on.
        method: Trains both.
        seed: Of the first; the second has another and serves to compare the two.
        **training: width, steps, batch_size, lr, as for :func:`sae_lib.train`.

    Returns:
        Plain values, and the first autoencoder: ``nmse``, ``explained_variance`` and ``l0`` on held-out rows;
        ``purity``, ``pure`` (mean purity of the latents on training rows, and their share at 0.9 or more);
        ``pw_mcc``, ``consistent`` (agreement with the second: matched cosine, and share of latents with a
        cosine above 0.9); ``phi`` (F,), the score of each concept's latent; ``latent`` (F,), its number.
    """
    data = Rows(rows["train"])
    sae, _ = train(data, method, seed=seed, progress=False, **training)
    other, _ = train(data, method, seed=seed + 1_000_000, progress=False, **training)
    fit = metrics.reconstruction(sae, torch.cat([rows["choose"], rows["score"]]))
    pure = purities(sae, rows["train"], text.tokens["train"])
    answer = search(*halves(sae, rows, text))
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
        "phi": [round(x, 5) for x in answer.score.tolist()], "latent": answer.latent.tolist()
    }, sae  # fmt: skip


def halves(
    sae: SparseAutoencoder, rows: Mapping[str, Tensor], text: Text
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels and firings on the half to choose on, then on that to score on: ``search`` takes them."""
    fired = {part: sae.encode(rows[part]) > 0 for part in PARTS[1:]}
    return text.labels["choose"], fired["choose"], text.labels["score"], fired["score"]


def probe_scores(rows: Mapping[str, Tensor], text: Text) -> list[float]:
    """Return φ of a logistic probe for each concept, on the half that latents are scored on.

    Probes are trained on the training rows; the best of the ``PENALTIES`` on the choosing half counts,
    concept by concept: the same three parts of the text as in the search.
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
    """Load the first blocks of the default language model and the text of a search; both stay in memory."""
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
    """Take one model from its weights to its statistics: a run for :func:`sae_lib.sweeps.sweep`.

    Args:
        number: Of the re-initialised twin; None is the trained model.
        layers: Read after these blocks, earliest first.
        methods: By name, the knob for :func:`sae_experiments.testbed.contestant` and the learning rate.
        keep_embedding: Of the twin: whether it keeps the trained embedding.
        train: As for :func:`code_text`.
        half: As for :func:`code_text`.
        **training: width, steps, batch_size.

    Returns:
        ``{"found": [...]}``, one dictionary for each layer and method (see :func:`measure`).
    """
    model, text = opened(layers[-1] + 1, train, half)
    if number is not None:
        model = reinitialised(model, number, keep_embedding=keep_embedding)
    sites = [f"resid_post.{layer}" for layer in layers]
    rows = rows_of(model, text, sites)
    statistics = []
    for layer, site in zip(layers, sites, strict=True):
        for name, (knob, lr) in methods.items():
            seed = 0 if number is None else number + 1
            values, _ = measure(rows[site], text, contestant(name, knob), seed=seed, lr=lr, **training)
            statistics.append({"layer": layer, "method": name, **values})
    return {"found": statistics}
