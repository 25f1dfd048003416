"""Faithfulness against plain cross-entropy and divergence in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from lm_fixtures import D_MODEL, FAMILIES, language_model, random_blocks

from sae_lib.corpora import separator_id
from sae_lib.metrics import faithfulness as module
from sae_lib.metrics.faithfulness import faithfulness

torch.set_num_threads(1)
SITES = ("resid_post.2", "attn_out.1", "mlp_out.3")


def score(lm, sae, site, blocks, **settings):
    """One autoencoder alone."""
    return faithfulness(lm, {"it": sae}, site, blocks, **settings)["it"]


class Reconstruct:
    def __init__(self, fn):
        self.reconstruct = fn


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_float64_on_every_family(family, site, monkeypatch):
    # chunks smaller than a batch, and not a divisor of it
    monkeypatch.setattr(module, "_CHUNK_ROWS", 7)
    lm, blocks, skip = language_model(family), random_blocks(5, 12), 2
    separator = separator_id(lm.tokenizer)
    blocks[1, 5] = blocks[4, 11] = separator
    keep = blocks != separator
    keep[:, :skip] = False
    shift = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    scores = score(lm, Reconstruct(lambda rows: rows + shift), site, blocks, skip_first=skip, batch_blocks=2)

    acts = lm.activations(blocks, site)
    mean = acts[keep].double().mean(dim=0).float()

    def reference(new):
        """Cross-entropy and divergence with the positions that are kept set to ``new``."""
        changed = torch.where(keep[..., None], new.expand_as(acts), acts)
        with lm.replaced(site, lambda _: changed):
            logits = lm.logits(blocks)[:, :-1][keep[:, :-1]].double()
        clean = lm.logits(blocks)[:, :-1][keep[:, :-1]].double()
        ce = F.cross_entropy(logits, blocks[:, 1:][keep[:, :-1]])
        kl = F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="batchmean")
        return ce.item(), kl.item()

    clean, spliced, ablated, zero = (reference(new) for new in (acts, acts + shift, mean, torch.zeros(1)))
    expected = {
        "ce_clean": clean[0], "ce_spliced": spliced[0], "ce_mean": ablated[0], "ce_zero": zero[0],
        "kl_spliced": spliced[1], "kl_mean": ablated[1], "kl_zero": zero[1],
        "ce_recovered": (ablated[0] - spliced[0]) / (ablated[0] - clean[0]),
        "kl_recovered": 1 - spliced[1] / ablated[1],
    }  # fmt: skip
    assert scores.n_tokens == keep[:, :-1].sum() < 5 * (12 - 1 - skip)
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_is_perfect_and_the_mean_recovers_nothing(family):
    lm, blocks = language_model(family), random_blocks(4, 16)
    perfect = score(lm, Reconstruct(lambda rows: rows), "resid_post.1", blocks)
    assert (perfect.ce_recovered, perfect.kl_spliced, perfect.kl_recovered) == (1, 0, 1)
    mean = lm.activations(blocks, "resid_post.1")[:, 1:].mean(dim=(0, 1))
    nothing = score(lm, Reconstruct(mean.expand_as), "resid_post.1", blocks, mean=mean)
    assert nothing.ce_recovered == 0
    assert nothing.kl_recovered == 0
    assert nothing.kl_mean > 0.01


def test_the_first_positions_are_left_alone():
    lm, blocks = language_model(), random_blocks(2, 10)
    seen = []

    def spoil(rows):
        seen.append(rows)
        return torch.zeros_like(rows)

    scores = score(lm, Reconstruct(spoil), "resid_post.1", blocks, skip_first=3, batch_blocks=2)
    assert torch.equal(torch.cat(seen), lm.activations(blocks, "resid_post.1")[:, 3:].flatten(0, 1))
    assert scores.ce_spliced == scores.ce_zero
    other = score(lm, Reconstruct(spoil), "resid_post.1", blocks, skip_first=0)
    assert other.kl_zero != pytest.approx(scores.kl_zero, rel=1e-3)


def test_batches_weigh_tokens_not_batches():
    lm, blocks = language_model(), random_blocks(5, 10)
    scores = [
        score(lm, Reconstruct(lambda rows: rows * 0.9), "mlp_out.1", blocks, batch_blocks=n)
        for n in (1, 2, 5)
    ]
    for name in ("ce_clean", "ce_mean", "kl_spliced"):
        assert [getattr(s, name) for s in scores] == pytest.approx([getattr(scores[0], name)] * 3, rel=1e-5)


def test_a_harmless_ablation_has_no_score():
    lm = language_model()
    # the site's output does not reach the stream
    lm.model.model.layers[1].mlp.down_proj.weight.zero_()
    scores = score(lm, Reconstruct(lambda rows: rows), "mlp_out.1", random_blocks())
    assert math.isnan(scores.ce_recovered)
    assert math.isnan(scores.kl_recovered)


def test_bfloat16_models_are_scored_too():
    lm = language_model()
    lm.model.to(torch.bfloat16)
    scores = score(lm, Reconstruct(lambda rows: rows), "resid_post.1", random_blocks())
    assert scores.ce_recovered == 1


@pytest.mark.parametrize(
    ("blocks", "kwargs", "message"),
    [
        (random_blocks(2, 4), {"skip_first": 3}, r"skip_first in 0\.\.T - 2"),
        (random_blocks(2, 4)[0], {}, r"expected \(B, T\)"),
        (random_blocks(2, 4)[:0], {}, "B at least 1"),
        (random_blocks(2, 4), {"mean": torch.zeros(3)}, r"expected \(32,\)"),
        (random_blocks(2, 4), {"site": "resid_post.9"}, r"allowed 0\.\.3"),
    ],
)
def test_bad_arguments_are_refused(blocks, kwargs, message):
    site = kwargs.pop("site", "resid_post.1") if "site" in kwargs else "resid_post.1"
    with pytest.raises(ValueError, match=message):
        score(language_model(), Reconstruct(lambda rows: rows), site, blocks, **kwargs)
