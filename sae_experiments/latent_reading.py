"""Reading autoencoders at one place of Part IV's testbed: codes beside tokens, and what they predict."""

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

# tokens of a context that an intervention is tried on, and those of its opening that are not counted
WINDOW, OPENING = 24, 8
RANDOM_DIRECTIONS = 8
# a class counts where its probe is this good on held-out rows, and so many of them belong to it
PROBE_F1, CLASS_ROWS = 0.8, 30


class Place:
    """A corpus and layer of the testbed: its rows, with the token of each and the one after it.

    rows, test: (N, d), training and held-out. tokens, following: (N,) of the training rows; −1 where the
    block ends. test_tokens: of the held-out rows.
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
        """The last ``WINDOW`` tokens up to each held-out row, without rows too near to a block's opening."""
        windows = self.held_out.windows(torch.from_numpy(rows), before=WINDOW - 1)[0]
        return windows[(windows >= 0).all(dim=1)]

    @cached_property
    def classes(self) -> list[TokenClass]:
        """The token classes that a linear probe recognises: F1 ≥ 0.8, on 30 held-out rows or more."""
        tokenizer = self.bed.model.tokenizer
        labels, test_labels = (token_classes(tokenizer, t) for t in (self.tokens, self.test_tokens))
        labels = {name: label for name, label in labels.items() if label.any()}
        # the penalty is measured against rows of norm 1
        scaled = self.store.normalisation.apply
        probes = ridge_probes(scaled(self.rows), torch.from_numpy(np.stack(list(labels.values()), axis=1)))
        said = probes.say(scaled(self.test)).numpy().T
        found = []
        for i, (name, label) in enumerate(labels.items()):
            there = test_labels[name]
            f1 = 2 * (there & said[i]).sum() / max(there.sum() + said[i].sum(), 1)
            if f1 >= PROBE_F1 and there.sum() >= CLASS_ROWS:
                found.append(TokenClass(name, float(f1), label, there, said[i], probes.direction[i]))
        return found

    def absorption(
        self, sae: SparseAutoencoder, codes: csr_array, test_codes: csr_array
    ) -> list[ClassAbsorption]:
        """Absorption of each of the ``classes``, with its null; codes as in :class:`Read`."""
        null, found = reading.scattered(test_codes), []
        for c in self.classes:
            given = (sae, (codes, c.label), test_codes, c.test_label, c.recognised, c.direction)
            real = splitting.absorption(*given)
            chance = splitting.absorption(*given, others=null)
            found.append(ClassAbsorption(c.name, c.probe_f1, real, chance.absorbed))
        return found


@dataclass(frozen=True)
class TokenClass:
    """A class of tokens: its probe's F1 on held-out rows, which rows belong to it, which the probe names."""

    name: str
    probe_f1: float
    label: np.ndarray
    test_label: np.ndarray
    recognised: np.ndarray
    direction: Tensor


@dataclass(frozen=True)
class ClassAbsorption:
    """Absorption of one class, and how many rows count as absorbed where the other latents fire at random."""

    name: str
    probe_f1: float
    measured: splitting.Absorption
    null_absorbed: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for records."""
        own = asdict(self)
        return {**own.pop("measured"), **own}


@dataclass(frozen=True)
class Read:
    """An autoencoder's codes at a place.

    codes, test_codes: (N, M) on training and held-out rows, times |a_m|.
    latents: (n,) those that fire on at least 20 training rows (or what :meth:`Place.read` was told).
    strongest: (n, 20) the tokens of their 20 strongest rows; purity: (n,) the share of the commonest.
    """

    sae: SparseAutoencoder
    codes: csr_array
    test_codes: csr_array
    latents: np.ndarray
    strongest: np.ndarray
    purity: np.ndarray

    def choose(self, n: int = 20, *, min_test_firings: int = 0) -> np.ndarray:
        """``n`` latents evenly spaced by rank of purity, the purest first (the rule of chapter 12).

        min_test_firings: among those that fire on at least so many held-out rows.
        """
        firings = np.diff(csc_array(self.test_codes).indptr)
        may = np.flatnonzero(firings[self.latents] >= min_test_firings)
        return self.latents[may[reading.evenly_spaced(self.purity[may], n)]]


@dataclass(frozen=True)
class Interventions:
    """What steering and ablating n latents does to the next token, and what their readings said before.

    latents: (n,).
    predicted: by kind of reading, for each latent up to ten tokens: ``"logit weights"``, those its decoder
        direction promotes; ``"followers"``, those that follow where it fires on training text.
    steered: (n, V) mean change of log-probabilities on held-out text when its direction is added, in the size
        of its 20 strongest codes.
    ablated: (n, V) when it is set to 0, after the contexts of held-out text on which it fires most strongly;
        0 where these are all too short.
    steered_random: (r, V) when one of up to 8 random directions is added, in the median of those sizes.
    ablated_random: (n, V) when, after the same contexts, its code is taken off along a random direction.
    predicted_random: for each of the r random directions the ten tokens that it promotes itself.
    """

    latents: np.ndarray
    predicted: dict[str, list[np.ndarray]]
    steered: Tensor
    ablated: Tensor
    steered_random: Tensor
    ablated_random: Tensor
    predicted_random: list[np.ndarray]

    def scores(self, kind: str) -> dict[str, np.ndarray]:
        """Rank scores (n,) of one kind of reading, 0.5 by chance (:func:`predictions.rank_scores`).

        ``steered`` and ``ablated``: own latent, turned round for ablation, so that 1 is "as predicted".
        ``steered other``, ``ablated other``: the same prediction on what the other latents change, mean.
        ``steered random``, ``ablated random``: on what random directions change.
        ``own random``, of logit weights only: (r,), those of random directions on their own changes.
        """
        said, found = self.predicted[kind], {}
        for name, changes in {"steered": self.steered, "ablated": -self.ablated}.items():
            table = predictions.rank_scores(changes, said)
            own = np.diag(table)
            found[name], found[f"{name} other"] = own, (table.sum(axis=1) - own) / (len(table) - 1)
        found["steered random"] = predictions.rank_scores(self.steered_random, said).mean(axis=1)
        found["ablated random"] = np.diag(predictions.rank_scores(-self.ablated_random, said))
        if kind == "logit weights":
            own = predictions.rank_scores(self.steered_random, self.predicted_random)
            found["own random"] = np.diag(own)
        return found


def intervene(place: Place, read: Read, n: int = 20, *, contexts: int = 4, seed: int = 0) -> Interventions:
    """Steer and ablate ``n`` latents chosen by purity, among those that fire on 8 held-out rows or more.

    contexts: of 24 tokens each, for steering the same random ones for all latents, for ablating the strongest
        of each. Steering acts on every token and is read off from the ninth on; ablation after the last.
    """
    sae, model, site = read.sae, place.bed.model, place.site
    latents = read.choose(n, min_test_firings=8)
    following = place.following >= 0
    table = reading.TokenTable(
        read.codes[np.flatnonzero(following)], place.following[following], model.vocabulary
    )
    # those chosen fire, so that none has a scale of 0
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
