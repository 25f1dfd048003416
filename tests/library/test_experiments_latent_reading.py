"""Reading at a place of the testbed, on a tiny random model, against one step at a time; token classes."""

import lm_fixtures
import numpy as np
import pytest
import torch

from sae_experiments.latent_reading import OPENING, WINDOW, Place, intervene
from sae_experiments.records import reading as benchmark
from sae_experiments.testbed import RULES, LanguageTestbed
from sae_experiments.token_classes import CLASSES, token_classes
from sae_lib import SparseAutoencoder, activations, interventions
from sae_lib.metrics.cooccurrence import cooccurrence
from sae_lib.metrics.predictions import rank_scores
from sae_lib.metrics.splitting import main_latent
from sae_lib.randomness import generator

LAYER = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    model, folder = lm_fixtures.language_model(), tmp_path_factory.mktemp("stores")
    stores = {
        part: activations.harvest(
            model, lm_fixtures.text_corpus(seed=seed), f"resid_post.{LAYER}", folder / part,
            n_tokens=1200, block_size=64, batch_blocks=4, **RULES,
        )
        for part, seed in (("train", 0), ("test", 1))
    }  # fmt: skip
    key = ("letters", LAYER)
    bed = LanguageTestbed(model, {key: stores["train"]}, {key: stores["test"]}, 32, 10, 16)
    return Place(bed, *key)


@pytest.fixture(scope="module")
def read(place):
    sae = SparseAutoencoder(
        lm_fixtures.D_MODEL, 32, activation="relu", normalisation=place.store.normalisation, seed=0
    )
    with torch.no_grad():
        sae.bias.fill_(-0.15)
        sae.scale[::2] = -0.5
    return place.read(sae)


def test_a_place_has_the_token_of_each_row_and_the_next(place):
    contexts = [place.store.context(row) for row in range(place.store.n_rows)]
    assert place.tokens.tolist() == [int(context[-1]) for context in contexts]
    for row in range(place.store.n_rows - 1):
        if len(contexts[row + 1]) == len(contexts[row]) + 1:
            assert place.following[row] == contexts[row + 1][-1]
        if len(contexts[row]) == 64:
            assert place.following[row] == -1
    assert place.test_tokens.tolist() == [int(place.held_out.context(r)[-1]) for r in range(len(place.test))]
    rows = np.array([0, 40, 41])
    expected = [c[-WINDOW:] for c in map(place.held_out.context, rows.tolist()) if len(c) >= WINDOW]
    torch.testing.assert_close(place.contexts(rows), torch.stack(expected))


def test_latents_are_chosen_by_rank_of_purity(read):
    assert (np.diff(read.codes.tocsc().indptr)[read.latents] >= 20).all()
    chosen = read.choose(5)
    purity = dict(zip(read.latents.tolist(), read.purity.tolist(), strict=True))
    got = [purity[latent] for latent in chosen.tolist()]
    assert got == sorted(got, reverse=True)
    assert got[0] == max(read.purity)
    assert got[-1] == min(read.purity)
    often = np.diff(read.test_codes.tocsc().indptr)
    least = int(np.median(often))
    assert (often[read.choose(4, min_test_firings=least)] >= least).all()


def test_interventions_are_those_of_the_library_one_by_one(place, read):
    tried = intervene(place, read, n=4, contexts=2, seed=3)
    again = intervene(place, read, n=4, contexts=2, seed=3)
    torch.testing.assert_close(tried.steered, again.steered)
    sae, model, site = read.sae, place.bed.model, place.site
    # 300 tokens, 32 latents, as many random directions as latents
    assert tried.steered.shape == tried.ablated.shape == tried.ablated_random.shape == (4, 300)
    assert tried.steered_random.shape == (4, 300)
    order = torch.randperm(len(place.test), generator=generator(3, "contexts")).numpy()
    common = place.contexts(order[:8])[:2]
    counted = torch.ones(common.shape, dtype=torch.bool)
    counted[:, :OPENING] = False
    for i, latent in enumerate(tried.latents.tolist()):
        # the sign of the scale turns the direction
        sign = float(sae.scale[latent].sign().detach())
        size = sign * np.sort(read.codes.toarray()[:, latent])[-20:].mean()
        steer = interventions.steer(model, site, sae, latent, size)
        expected = lm_fixtures.log_prob_changes(model, common, steer, counted)
        torch.testing.assert_close(tried.steered[i], expected, rtol=1e-4, atol=1e-5)
        promoted = interventions.logit_weights(model, sae, [latent])[0] * sign
        assert tried.predicted["logit weights"][i].tolist() == promoted.topk(10).indices.tolist()
        rows = np.argsort(-read.test_codes.toarray()[:, latent], kind="stable")[:8]
        blocks = place.contexts(rows)[:2]
        if len(blocks):
            silence = interventions.ablate(model, site, sae, [latent])
            expected = lm_fixtures.log_prob_changes(model, blocks, silence)
            torch.testing.assert_close(tried.ablated[i], expected, rtol=1e-4, atol=1e-5)
    # untrained, with the seed of the interventions: the random directions, each read by its own logit weights
    null = SparseAutoencoder(sae.d_in, 4, normalisation=sae.normalisation, seed=3)
    promoted = [interventions.logit_weights(model, null, [j])[0].topk(10).indices.numpy() for j in range(4)]
    alone = [rank_scores(tried.steered_random[j : j + 1], [promoted[j]])[0, 0] for j in range(4)]
    assert tried.scores("logit weights")["own random"] == pytest.approx(np.array(alone))
    scores = tried.scores("followers")
    assert set(scores) == {
        f"{what}{null}" for what in ("steered", "ablated") for null in ("", " other", " random")
    }  # fmt: skip
    said = tried.predicted["followers"]
    # a gain in rank is a loss of the same prediction turned round
    assert scores["steered"][1] == pytest.approx(rank_scores(tried.steered[1:2], [said[1]])[0, 0])
    assert scores["ablated"][1] == pytest.approx(1 - rank_scores(tried.ablated[1:2], [said[1]])[0, 0])
    others = rank_scores(tried.steered[[0, 2, 3]], [said[1]])
    assert scores["steered other"][1] == pytest.approx(others.mean())
    random = rank_scores(tried.ablated_random[2:3], [said[2]])[0, 0]
    assert scores["ablated random"][2] == pytest.approx(1 - random)


def test_absorption_asks_of_the_classes_that_a_probe_recognises(place, read):
    assert place.classes
    for c in place.classes:
        letter = c.name.removeprefix("first letter ")
        expected = [place.bed.model.tokenizer.decode([t]) == letter for t in place.test_tokens.tolist()]
        assert c.test_label.tolist() == expected
        assert c.test_label.sum() >= 30
        hits = (c.test_label & c.recognised).sum()
        precision, recall = hits / c.recognised.sum(), hits / c.test_label.sum()
        assert c.probe_f1 == pytest.approx(2 * precision * recall / (precision + recall))
        assert c.probe_f1 >= 0.8
    found = place.absorption(read.sae, read.codes, read.test_codes)
    assert [row.name for row in found] == [c.name for c in place.classes]
    for c, row in zip(place.classes, found, strict=True):
        assert row.measured.found == (c.test_label & c.recognised).sum()
        main = main_latent(read.codes, c.label)
        assert (row.measured.main, row.measured.f1) == main[:2]
        assert row.to_dict() | {"main": main[0]} == row.to_dict()
        assert 0 <= row.null_absorbed <= row.measured.missed


class Words:
    """A tokenizer of whole words, as far as token_classes needs one."""

    words = (" def", "Path", "HTTP", "12", "\n    ", "__init__", "):", "((", " +=", ' "', "été", "naïve9", "")

    def decode(self, tokens):
        return self.words[tokens[0]]


def test_token_classes_by_hand():
    found = token_classes(Words(), [*range(len(Words.words)), 0])
    held = {name: np.flatnonzero(label).tolist() for name, label in found.items()}
    assert set(held) == set(CLASSES)
    assert held["keyword"] == held["first letter d"] == [0, 13]
    assert held["Capitalised"] == held["first letter p"] == [1]
    assert held["CAPITALS"] == held["first letter h"] == [2]
    assert held["digits"] == [3]
    assert held["white space"] == [4, 12]
    assert held["underscore"] == [5]
    assert held["bracket"] == [7]
    assert held["operator"] == [8]
    assert held["quote"] == [9]
    assert held["first letter n"] == [11]
    assert held["first letter e"] == []


def test_the_record_of_readings_scores_them_row_by_row(place, read):
    found = benchmark.verdicts(place, read)
    fires = read.test_codes.toarray() != 0
    kept = [i for i, m in enumerate(read.latents) if fires[:, m].sum() >= 5]
    assert len(kept) > 2
    top = [set(read.strongest[i].tolist()) for i in kept]
    for kind, lists in (("its strongest tokens", top), ("another latent's", top[1:] + top[:1])):
        scores = []
        for i, tokens in zip(kept, lists, strict=True):
            said = np.array([token in tokens for token in place.test_tokens.tolist()])
            hits = (said & fires[:, read.latents[i]]).sum()
            precision, recall = hits / max(said.sum(), 1), hits / fires[:, read.latents[i]].sum()
            scores.append((precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)))
        expected = np.mean(scores, axis=0)
        assert [found[kind][name] for name in ("precision", "recall", "f1")] == pytest.approx(expected)


def test_the_record_of_readings_tells_of_latents_that_fire_together(read):
    found = benchmark.together(cooccurrence(read.codes).rho2(min_firings=50))
    fires = read.codes.toarray() != 0
    often = [m for m in range(32) if fires[:, m].sum() >= 50]
    given = {(i, j): fires[fires[:, i], j].mean() for i in often for j in often if i != j}
    largest = [max(given[i, j] for j in often if j != i) for i in often]
    assert found["latents"] == len(often) > 2
    assert found["largest"] == pytest.approx(np.median(largest))
    assert found["mean"] == pytest.approx(np.mean(list(given.values())))
    assert found["rho2_sqrt_n"] == pytest.approx(max(largest) * len(often) ** 0.5)
