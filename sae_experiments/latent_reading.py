"""Autoencoders read at one place of Part IV's testbed: codes beside tokens, and what they predict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from sae_experiments.probes import ridge_probes
from sae_experiments.testbed import LanguageTestbed
from sae_experiments.token_classes import token_classes
from sae_lib import interventions
from sae_lib.metrics import predictions, reading, splitting
from sae_lib.randomness import generator
from sae_lib.sae import SparseAutoencoder

# tokens of a context that an intervention is tried on, and how many of its first do not count
WINDOW, OPENING = 24, 8
RANDOM_DIRECTIONS = 8
# a class counts if its probe is this good on held-out rows, and at least so many of them belong to it
PROBE_F1, CLASS_ROWS = 0.8, 30


class Place:
    """A corpus and layer of the testbed: its rows, with the token of each and the one after it.

    Args:
        bed: The opened testbed.
        corpus: One of its corpora.
        layer: One of its layers.

    Attributes:
        rows: Training rows (N, d).
        test: Held-out rows (N', d).
        tokens: Those of the training rows, (N,).
        following: The tokens after them, (N,); −1 where the block ends.
        test_tokens: Those of the held-out rows, (N',).
    """

    def __init__(self, bed: LanguageTestbed, corpus: str, layer: int) -> None:
        self.bed, self.layer, self.site = bed, layer, f"resid_post.{layer}"
        self.store, self.held_out = bed.stores[corpus, layer], bed.held_out[corpus, layer]
        every = torch.arange(self.store.n_rows)
        self.rows = self.store.rows(every)
        self.test = bed.test_rows(corpus, layer)
        self.tokens, self.following = self.store.windows(every, after=1)[0].numpy().T
        self.test_tokens = self.held_out.windows(torch.arange(len(self.test)))[0].numpy()[:, 0]

    def read(self, sae: SparseAutoencoder, *, min_firings: int = 20) -> Read:
        """Encode all rows; see :class:`Read`."""
        codes, test_codes = reading.code_table(sae, self.rows), reading.code_table(sae, self.test)
        latents = np.flatnonzero(np.diff(csc_array(codes).indptr) >= min_firings)
        tokens = self.tokens[reading.strongest_rows(codes, latents, top=20)]
        return Read(sae, codes, test_codes, latents, tokens, reading.purity(tokens))

    def contexts(self, rows: np.ndarray) -> Tensor:
        """Return the last ``WINDOW`` tokens up to each held-out row, except rows too near a block's start."""
        windows = self.held_out.windows(torch.from_numpy(rows), before=WINDOW - 1)[0]
        return windows[(windows >= 0).all(dim=1)]

    @cached_property
    def classes(self) -> list[TokenClass]:
        """Token classes that a linear probe recognises: F1 ≥ 0.8, on 30 held-out rows or more."""
        tokenizer = self.bed.model.tokenizer
        labels, test_labels = (token_classes(tokenizer, t) for t in (self.tokens, self.test_tokens))
        labels = {name: label for name, label in labels.items() if label.any()}
        # the penalty is measured against rows of norm 1
        scaled = self.store.normalisation.apply
        probes = ridge_probes(scaled(self.rows), torch.from_numpy(np.stack(list(labels.values()), axis=1)))
        recognised = probes.say(scaled(self.test)).numpy().T
        classes = []
        for i, (name, label) in enumerate(labels.items()):
            truth, answer = test_labels[name], recognised[i]
            f1 = 2 * (truth & answer).sum() / max(truth.sum() + answer.sum(), 1)
            if f1 >= PROBE_F1 and truth.sum() >= CLASS_ROWS:
                classes.append(TokenClass(name, float(f1), label, truth, answer, probes.direction[i]))
        return classes

    def absorption(
        self, sae: SparseAutoencoder, codes: csr_array, test_codes: csr_array
    ) -> list[ClassAbsorption]:
        """Measure the absorption of each of the ``classes``, with its null; codes as in :class:`Read`."""
        null, absorptions = reading.scattered(test_codes), []
        for c in self.classes:
            arguments = (sae, (codes, c.label), test_codes, c.test_label, c.recognised, c.direction)
            real = splitting.absorption(*arguments)
            chance = splitting.absorption(*arguments, others=null)
            absorptions.append(ClassAbsorption(c.name, c.probe_f1, real, chance.absorbed))
        return absorptions


@dataclass(frozen=True)
class TokenClass:
    """A class of tokens: its probe's F1 on held-out rows, rows that belong to it, rows the probe names."""

    name: str
    probe_f1: float
    label: np.ndarray
    test_label: np.ndarray
    recognised: np.ndarray
    direction: Tensor


@dataclass(frozen=True)
class ClassAbsorption:
    """Absorption of one class, and the rows that count as absorbed if the other latents fire at random."""

    name: str
    probe_f1: float
    measured: splitting.Absorption
    null_absorbed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for records."""
        fields = asdict(self)
        return {**fields.pop("measured"), **fields}


@dataclass(frozen=True)
class Read:
    """An autoencoder's codes at a place.

    Attributes:
        sae: The autoencoder.
        codes: (N, M) on training rows, times |a_m|.
        test_codes: (N', M) on held-out rows, times |a_m|.
        latents: (n,) those that fire on at least 20 training rows, or as many as :meth:`Place.read` asks.
        strongest: (n, 20) the tokens of their 20 strongest rows.
        purity: (n,) the share of the commonest among these.
    """

    sae: SparseAutoencoder
    codes: csr_array
    test_codes: csr_array
    latents: np.ndarray
    strongest: np.ndarray
    purity: np.ndarray

    def choose(self, n: int = 20, *, min_test_firings: int = 0) -> np.ndarray:
        """Choose ``n`` latents evenly spaced by rank of purity, the purest first (the rule of chapter 12).

        Latents that fire on fewer than ``min_test_firings`` held-out rows are left out.
        """
        firings = np.diff(csc_array(self.test_codes).indptr)
        eligible = np.flatnonzero(firings[self.latents] >= min_test_firings)
        return self.latents[eligible[reading.evenly_spaced(self.purity[eligible], n)]]


@dataclass(frozen=True)
class Interventions:
    """The effect of steering and ablating n latents on the next token, and what their readings predicted.

    Changes are mean changes of log-probabilities (…, V) on held-out text.

    Attributes:
        latents: (n,).
        predicted: By kind of reading, up to ten tokens for each latent: ``"logit weights"``, those its
            decoder direction promotes; ``"followers"``, those that follow where it fires on training text.
        steered: (n, V) when its direction is added, in the size of its 20 strongest codes.
        ablated: (n, V) when it is set to 0, after the contexts on which it fires most strongly; 0 where these
            are all too short.
        steered_random: (r, V) when one of up to 8 random directions is added, in the median of those sizes.
        ablated_random: (n, V) when, after the same contexts, its code is subtracted along a random direction.
        predicted_random: For each of the r random directions the ten tokens that it promotes itself.
    """

    latents: np.ndarray
    predicted: dict[str, list[np.ndarray]]
    steered: Tensor
    ablated: Tensor
    steered_random: Tensor
    ablated_random: Tensor
    predicted_random: list[np.ndarray]

    def scores(self, kind: str) -> dict[str, np.ndarray]:
        """Return rank scores (n,) of one kind of reading, 0.5 by chance (:func:`predictions.rank_scores`).

        ``steered`` and ``ablated``: on its own latent, negated for ablation, so that 1 is "as predicted".
        ``steered other``, ``ablated other``: the same prediction on changes by the other latents, mean.
        ``steered random``, ``ablated random``: on changes by random directions.
        ``own random``, of logit weights only: (r,), those of random directions on their own changes.
        """
        predicted, scores = self.predicted[kind], {}
        for name, changes in {"steered": self.steered, "ablated": -self.ablated}.items():
            table = predictions.rank_scores(changes, predicted)
            matched = np.diag(table)
            scores[name], scores[f"{name} other"] = matched, (table.sum(axis=1) - matched) / (len(table) - 1)
        scores["steered random"] = predictions.rank_scores(self.steered_random, predicted).mean(axis=1)
        scores["ablated random"] = np.diag(predictions.rank_scores(-self.ablated_random, predicted))
        if kind == "logit weights":
            table = predictions.rank_scores(self.steered_random, self.predicted_random)
            scores["own random"] = np.diag(table)
        return scores


def intervene(place: Place, read: Read, n: int = 20, *, contexts: int = 4, seed: int = 0) -> Interventions:
    """Steer and ablate ``n`` latents chosen by purity, among those that fire on 8 held-out rows or more.

    Steering acts on every token of a context and is read from the ninth on; ablation is read after the last.

    Args:
        place: Where the latents were read.
        read: The autoencoder and its codes.
        n: Number of latents.
        contexts: Contexts of 24 tokens each: the same random ones for steering all latents, the strongest of
            each for ablating.
        seed: Of the random contexts and directions.
    """
    sae, model, site = read.sae, place.bed.model, place.site
    latents = read.choose(n, min_test_firings=8)
    followed = place.following >= 0
    table = reading.TokenTable(
        read.codes[np.flatnonzero(followed)], place.following[followed], model.vocabulary
    )
    # the chosen ones fire, so none has scale 0
    sign = torch.where(sae.scale < 0, -1.0, 1.0).cpu()[latents]
    written = (
        interventions.logit_weights(model, sae, torch.from_numpy(latents)).detach().cpu() * sign[:, None]
    )
    predicted = {
        "logit weights": [row.topk(10).indices.numpy() for row in written],
        "followers": [table.typical(int(latent), 10) for latent in latents],
    }
    strongest = reading.strongest_rows(read.codes, latents, top=20)
    columns = csc_array(read.codes)
    size = np.array(
        [columns[:, [m]].toarray()[rows, 0].mean() for m, rows in zip(latents, strongest, strict=True)]
    )

    dice = generator(seed, "contexts")
    common = place.contexts(torch.randperm(len(place.test), generator=dice).numpy()[: 4 * contexts])[
        :contexts
    ]
    counted = torch.ones(common.shape, dtype=torch.bool)
    counted[:, :OPENING] = False
    # unit rows of an untrained autoencoder are random directions
    null = SparseAutoencoder(sae.d_in, min(n, RANDOM_DIRECTIONS), normalisation=sae.normalisation, seed=seed)
    null = null.to(sae.weight.device)
    steers = [
        interventions.steer(model, site, sae, int(m), float(s * a))
        for m, s, a in zip(latents, size, sign, strict=True)
    ]
    steers += [interventions.steer(model, site, null, j, float(np.median(size))) for j in range(null.width)]
    changes = predictions.next_token_changes(model, common, steers, counted, layer=place.layer)
    ablated = torch.zeros(2, n, model.vocabulary)
    for i, rows in enumerate(reading.strongest_rows(read.test_codes, latents, top=8)):
        blocks = place.contexts(rows)[:contexts]
        if len(blocks) == 0:
            continue
        last = torch.zeros(blocks.shape, dtype=torch.bool)
        last[:, -1] = True
        code = float(read.test_codes[rows][:, [latents[i]]].toarray().mean())
        silence = interventions.ablate(model, site, sae, latents[i : i + 1].tolist())
        random = interventions.steer(model, site, null, i % null.width, -code, positions=last)
        ablated[:, i] = predictions.next_token_changes(
            model, blocks, [silence, random], last, layer=place.layer
        )
    chance = interventions.logit_weights(model, null, range(null.width)).detach().cpu()
    promoted = [row.topk(10).indices.numpy() for row in chance]
    return Interventions(latents, predicted, changes[:n], ablated[0], changes[n:], ablated[1], promoted)
