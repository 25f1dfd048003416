"""One search, the same on every model: its parts against what they are made of."""

from collections import Counter

import pytest
import torch
from lm_fixtures import D_MODEL, FAMILIES, language_model, random_blocks

import sae_lib
from sae_experiments import null_models
from sae_experiments.concepts import NAMES, code_concepts
from sae_experiments.null_models import PARTS
from sae_experiments.testbed import contestant
from sae_lib import metrics
from sae_lib.corpora import Corpus, Document, token_blocks
from sae_lib.language_models import first_blocks, reinitialised

SOURCE = "def f(a, b1):\n    return [a, 'text'.join(b1)]  # why {}\n\n"


def corpus(n=12):
    documents = (Document(f"d{i}", SOURCE.format(i) * (3 + i % 4)) for i in range(n))
    return Corpus("code", "none", tuple(documents)).split(held_out=0.5)


def text(model, **sizes):
    return null_models.code_text(
        corpus(), model, **{"train": 6, "half": 3, "apart": 2, "block_size": 32} | sizes
    )


TRAINING = {"width": 24, "steps": 20, "batch_size": 32, "lr": 0.01}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_blocks_do_what_they_did(family):
    model, blocks = language_model(family), random_blocks()
    cut = first_blocks(model, 2)
    assert cut.n_layers == 2
    assert torch.equal(cut.activations(blocks, "resid_post.1"), model.activations(blocks, "resid_post.1"))
    with pytest.raises(ValueError, match=r"layer 2 of 2"):
        cut.activations(blocks, "resid_post.2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_may_keep_the_embedding(family):
    model = language_model(family)
    twin = reinitialised(model, 1, keep_embedding=True)
    weight = model.model.get_input_embeddings().weight
    assert torch.equal(twin.model.get_input_embeddings().weight, weight)
    plain = reinitialised(model, 1)
    assert not torch.equal(plain.model.get_input_embeddings().weight, weight)
    # the other weights are those of the same seed
    blocks = "layers.1." if family != "gpt2" else "h.1."
    drawn = plain.model.state_dict()
    inner = [name for name in drawn if blocks in name]
    assert inner
    assert all(torch.equal(twin.model.state_dict()[name], drawn[name]) for name in inner)


def test_first_blocks_refuses_a_number_it_does_not_have():
    model = language_model()
    for n in (0, 5):
        with pytest.raises(ValueError, match=rf"n is {n}; expected 1..4"):
            first_blocks(model, n)


def test_the_text_is_every_other_block_with_its_labels():
    model = language_model()
    found = text(model)
    train, held_out = corpus()
    for part, documents, begin in (("train", train, 0), ("choose", held_out, 0), ("score", held_out, 3)):
        stream = torch.stack(list(token_blocks(documents, model.tokenizer, 32, spread=False)))
        taken = stream[::2][begin : begin + len(found.blocks[part])]
        assert torch.equal(found.blocks[part], taken)
        marked = code_concepts(stream, model.tokenizer)[::2][begin : begin + len(taken)]
        keep = taken != model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        keep[:, :2] = False
        assert torch.equal(found.tokens[part], taken[keep])
        assert torch.equal(found.labels[part], marked[keep])
    with pytest.raises(ValueError, match=r"blocks of the 4000 needed; take fewer"):
        text(model, train=2000)


def test_rows_of_several_sites_are_those_of_each():
    model = language_model()
    read = text(model)
    together = null_models.rows_of(model, read, ["resid_post.0", "resid_post.2"])
    for site in together:
        alone = null_models.rows_of(model, read, [site])[site]
        for part in PARTS:
            assert torch.equal(together[site][part], alone[part])
            raw = model.activations(read.blocks[part], site)
            keep = read.blocks[part] != model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
            keep[:, :2] = False
            ratio = together[site][part] / raw[keep]
            assert ratio.std() < 1e-4
        norm = together[site]["train"].norm(dim=1).mean()
        assert 0.7 < norm < 1.5


def test_purity_counts_the_most_common_token():
    model = language_model()
    read = text(model)
    rows = null_models.rows_of(model, read, ["resid_post.1"])["resid_post.1"]["train"]
    sae = sae_lib.SparseAutoencoder(D_MODEL, 40, seed=1)
    codes = sae.encode(rows)
    expected = []
    for m in range(40):
        if (codes[:, m] > 0).sum() >= 20:
            top = codes[:, m].topk(20).indices
            expected.append(Counter(read.tokens["train"][top].tolist()).most_common(1)[0][1] / 20)
    assert null_models.purities(sae, rows, read.tokens["train"]).tolist() == pytest.approx(expected)
    sae.bias.data.fill_(-1e9)
    assert len(null_models.purities(sae, rows, read.tokens["train"])) == 0


def test_measure_says_what_the_metrics_say_and_repeats():
    model = reinitialised(language_model(), 3)
    read = text(model)
    rows = null_models.rows_of(model, read, ["resid_post.1"])["resid_post.1"]
    method = sae_lib.TopK(k=3, centre=True)
    found, sae = null_models.measure(rows, read, method, seed=5, **TRAINING)
    again, _ = null_models.measure(rows, read, method, seed=5, **TRAINING)
    assert found == again
    held_out = torch.cat([rows["choose"], rows["score"]])
    assert found["nmse"] == pytest.approx(metrics.reconstruction(sae, held_out).nmse, abs=1e-5)
    assert found["l0"] == pytest.approx(3, abs=0.2)
    assert len(found["phi"]) == len(found["latent"]) == len(NAMES)
    assert 0 < found["pw_mcc"] < 1
    other, _ = null_models.measure(rows, read, method, seed=6, **TRAINING)
    assert other["phi"] != found["phi"]


def test_probes_see_what_the_rows_hold():
    model = language_model()
    read = text(model, train=20)
    # rows that spell out the labels
    rows = {
        part: torch.cat([read.labels[part].float(), torch.zeros(len(read.labels[part]), 3)], dim=1)
        for part in PARTS
    }
    scores = dict(zip(NAMES, null_models.probe_scores(rows, read), strict=True))
    present = [name for i, name in enumerate(NAMES) if read.labels["score"][:, i].any()]
    assert min(scores[name] for name in present) > 0.95


def test_a_draw_is_the_whole_search_on_one_model(monkeypatch):
    model = language_model()
    read = text(model)
    monkeypatch.setattr(
        null_models, "opened", lambda blocks, train, half: (first_blocks(model, blocks), read)
    )
    settings = {"methods": {"gba": [0.2, 0.01], "topk": [3, 0.006]}, "layers": [0, 2], **TRAINING}
    del settings["lr"]
    for number, network, seed in ((None, model, 0), (4, None, 5)):
        found = null_models.draw(number, **settings)["found"]
        assert [(f["layer"], f["method"]) for f in found] == [
            (0, "gba"),
            (0, "topk"),
            (2, "gba"),
            (2, "topk"),
        ]
        network = network or reinitialised(first_blocks(model, 3), number)
        rows = null_models.rows_of(network, read, ["resid_post.2"])["resid_post.2"]
        alone, _ = null_models.measure(
            rows, read, contestant("topk", 3), seed=seed, **TRAINING | {"lr": 0.006}
        )
        assert found[3] == {"layer": 2, "method": "topk", **alone}
    embedded = null_models.draw(4, **settings, keep_embedding=True)["found"]
    assert embedded != found
    assert embedded == null_models.draw(4, **settings, keep_embedding=True)["found"]
