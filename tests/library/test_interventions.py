"""Splicing, ablating and steering on five architectures, against the same change made by hand."""

import pytest
import torch
import torch.nn.functional as F
from lm_fixtures import D_MODEL, FAMILIES, N_LAYERS, language_model, random_blocks

from sae_lib.activations import kept
from sae_lib.interventions import ablate, logit_weights, splice, steer
from sae_lib.metrics.faithfulness import faithfulness
from sae_lib.metrics.predictions import next_token_changes
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder

torch.set_num_threads(1)
SITES = ("resid_post.2", "attn_out.1", "mlp_out.3")
SCALINGS = (Normalisation(), Normalisation("scale", 0.25), Normalisation("unit"))
WIDTH = 2 * D_MODEL


@pytest.fixture(params=FAMILIES)
def lm(request):
    return language_model(request.param)


@pytest.fixture(params=SCALINGS, ids=lambda n: n.kind)
def scaling(request):
    return request.param


def identity(scaling=SCALINGS[1], centre=0.1):
    """z = (max(0, x − c), max(0, c − x)): the reconstruction is perfect."""
    sae = SparseAutoencoder(D_MODEL, WIDTH, activation="relu", normalisation=scaling)
    sae.weight.data = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    sae.pre_bias.data.fill_(centre)
    return sae


def random_sae(scaling=SCALINGS[1], activation="relu", seed=3):
    """Untied, with output scales: nowhere near a perfect reconstruction."""
    k = 5 if activation == "topk" else None
    sae = SparseAutoencoder(
        D_MODEL, WIDTH, tied=False, activation=activation, k=k, normalisation=scaling, seed=seed
    )
    other = SparseAutoencoder(D_MODEL, WIDTH, seed=seed + 1)
    sae.decoder.data = other.weight.data
    sae.scale.data = torch.linspace(0.5, 2, WIDTH)
    sae.pre_bias.data = torch.linspace(-0.2, 0.2, D_MODEL)
    return sae


def with_logits(lm, intervention, blocks):
    with intervention:
        return lm.logits(blocks)


def same_bits(a, b):
    """Equal, the sign of zeros included."""
    return torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


# ---- no-ops


@pytest.mark.parametrize("site", SITES)
def test_a_perfect_reconstruction_leaves_the_logits(lm, site, scaling):
    blocks = random_blocks()
    spliced = with_logits(lm, splice(lm, site, identity(scaling)), blocks)
    torch.testing.assert_close(spliced, lm.logits(blocks), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("site", SITES)
def test_doing_nothing_keeps_every_bit(lm, site, dtype):
    lm.model.to(dtype)
    blocks = random_blocks()
    clean = lm.logits(blocks)
    for sae in (random_sae(scaling) for scaling in SCALINGS):
        for nothing in (
            splice(lm, site, sae, error="kept"),
            ablate(lm, site, sae, []),
            steer(lm, site, sae, 7, 0.0),
            steer(lm, site, sae, 7, -0.0),
            ablate(lm, site, sae, [1, 2], error="dropped", positions=torch.zeros(3, 20, dtype=torch.bool)),
        ):
            assert same_bits(with_logits(lm, nothing, blocks), clean)


def test_negative_zeros_stay():
    lm, sae = language_model(), random_sae()
    lm.model.model.layers[1].register_forward_hook(lambda _m, _i, output: -torch.zeros_like(output))
    blocks, negative = random_blocks(), torch.ones(3, 20, D_MODEL, dtype=torch.bool)
    for nothing in (steer(lm, "resid_post.1", sae, 0, 0.0), ablate(lm, "resid_post.1", sae, [])):
        with nothing:
            assert torch.equal(lm.activations(blocks, "resid_post.1").signbit(), negative)


# ---- ablation


@pytest.mark.parametrize("site", SITES)
def test_ablating_everything_gives_the_mean_ablation_loss(lm, site):
    blocks, sae = random_blocks(4, 16), random_sae()
    keep = kept(lm, blocks, skip_first=2)
    mean = lm.activations(blocks, site)[keep].mean(dim=0)
    sae.pre_bias.data = sae.normalisation.apply(mean)
    ablated = ablate(lm, site, sae, range(WIDTH), error="dropped", positions=keep)
    counted = keep[:, :-1]
    loss = F.cross_entropy(with_logits(lm, ablated, blocks)[:, :-1][counted], blocks[:, 1:][counted])
    expected = faithfulness(lm, {"it": sae}, site, blocks, skip_first=2)["it"]
    assert loss.item() == pytest.approx(expected.ce_mean, abs=1e-5)
    assert abs(expected.ce_mean - expected.ce_clean) > 1e-3


@pytest.mark.parametrize("error", ["kept", "dropped"])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_ablation_sets_the_codes_as_by_hand(lm, scaling, activation, error):
    site, blocks, sae = "resid_post.1", random_blocks(), random_sae(scaling, activation)
    acts = lm.activations(blocks, site).flatten(0, 1)
    codes = sae.encode(acts)
    latents = codes.mean(dim=0).topk(3).indices
    values = torch.tensor([0.0, 1.5, 3.0])
    changed = codes.clone()
    changed[:, latents] = values
    expected = sae.decode(changed, like=acts)
    if error == "kept":
        expected += acts - sae.reconstruct(acts)
    expected = with_logits(lm, lm.replaced(site, lambda a: expected.view_as(a)), blocks)
    got = with_logits(lm, ablate(lm, site, sae, latents, values, error=error), blocks)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, lm.logits(blocks), atol=1e-2)


def test_an_ablated_latent_is_silent_afterwards():
    lm, sae, blocks = language_model(), identity(), random_blocks()
    with ablate(lm, "resid_post.1", sae, [4, 9]):
        acts = lm.activations(blocks, "resid_post.1")
        codes = sae.encode(acts.flatten(0, 1))
    assert codes[:, [4, 9]].abs().max() < 1e-5
    assert codes[:, 5].max() > 0.1


# ---- steering


@pytest.mark.parametrize("site", SITES)
def test_steering_adds_the_vector_by_hand(lm, site, scaling):
    blocks, sae = random_blocks(), random_sae(scaling)
    acts = lm.activations(blocks, site)
    length = {"none": 1, "scale": 4, "unit": acts.norm(dim=-1, keepdim=True)}[scaling.kind]
    vector = 1.5 * length * sae.decoder_rows.data[7]
    expected = with_logits(lm, lm.replaced(site, lambda a: a + vector), blocks)
    got = with_logits(lm, steer(lm, site, sae, 7, 1.5), blocks)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, lm.logits(blocks), atol=1e-2)


def test_only_the_chosen_positions_change(lm):
    blocks, sae, site = random_blocks(), random_sae(), "mlp_out.1"
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0, 5] = mask[2, 19] = True
    clean, recon = lm.activations(blocks, site), sae.reconstruct(lm.activations(blocks, site))
    for intervention, expected in (
        (steer(lm, site, sae, 7, 2.0, positions=mask), clean + 8 * sae.decoder_rows[7]),
        (splice(lm, site, sae, positions=mask), recon),
    ):
        with intervention:
            acts = lm.activations(blocks, site)
        assert same_bits(acts[~mask], clean[~mask])
        torch.testing.assert_close(acts[mask], expected[mask])


def test_interventions_nest_and_hooks_go_after_errors(lm):
    blocks, sae, site = random_blocks(), random_sae(), "resid_post.1"
    clean = lm.logits(blocks)
    with steer(lm, site, sae, 7, 2.0), steer(lm, site, sae, 7, 3.0):
        twice = lm.activations(blocks, site)
        with pytest.raises(ZeroDivisionError), splice(lm, site, sae):
            raise ZeroDivisionError
    with steer(lm, site, sae, 7, 5.0):
        torch.testing.assert_close(lm.activations(blocks, site), twice)
    with pytest.raises(ValueError, match="one for every token"), splice(lm, site, sae, positions=clean > 0):
        lm.logits(blocks)
    assert same_bits(lm.logits(blocks), clean)
    assert not any(module._forward_hooks for module in lm.model.modules() if module is not lm.model)


# ---- effects on the next token


def test_changes_of_log_probabilities_are_those_by_hand(lm):
    blocks, sae, site = random_blocks(), random_sae(), "resid_post.2"
    with steer(lm, site, sae, 7, 3.0):
        changed = lm.logits(blocks).double().log_softmax(-1)
    expected = changed - lm.logits(blocks).double().log_softmax(-1)
    (got,) = next_token_changes(lm, blocks, [steer(lm, site, sae, 7, 3.0)])
    torch.testing.assert_close(got, expected[:, -1].mean(0).float(), rtol=1e-4, atol=1e-4)
    everywhere = torch.ones(3, 20, dtype=torch.bool)
    (got,) = next_token_changes(lm, blocks, [steer(lm, site, sae, 7, 3.0)], everywhere)
    torch.testing.assert_close(got, expected.mean((0, 1)).float(), rtol=1e-4, atol=1e-4)
    assert (next_token_changes(lm, blocks, [steer(lm, site, sae, 7, 0.0)]) == 0).all()


def _final_norm(lm):
    decoder = lm.model.base_model
    return next(getattr(decoder, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(decoder, n))


def _trained(lm):
    """Gains and biases away from where they start."""
    for i, parameter in enumerate(_final_norm(lm).parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        parameter.copy_(1 + 0.3 * noise)
    return _final_norm(lm)


def test_logit_weights_are_gain_and_unembedding(lm):
    norm, sae, latents = _trained(lm), random_sae(), [60, 3]
    rows = sae.decoder_rows.data[latents]
    if hasattr(norm, "bias"):
        rows = rows - rows.mean(dim=1, keepdim=True)
    # Gemma keeps the gain less one
    gain = norm.weight + ("gemma" in lm.name)
    expected = (rows * gain) @ lm.model.get_output_embeddings().weight.T
    torch.testing.assert_close(logit_weights(lm, sae, latents), expected, rtol=1e-4, atol=1e-4)
    lm.model.to(torch.bfloat16)
    rough = logit_weights(lm, sae, latents)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.1, atol=0.1)


def test_logit_weights_say_what_steering_does(lm):
    _trained(lm)
    blocks, sae, site = random_blocks(2, 5), random_sae(), f"resid_post.{N_LAYERS - 1}"
    # so long a push outweighs the stream it is added to
    pushed = with_logits(lm, steer(lm, site, sae, 7, 1e5), blocks)[0, -1]
    pulled = with_logits(lm, steer(lm, site, sae, 7, -1e5), blocks)[0, -1]
    weights = logit_weights(lm, sae, [7])[0]
    assert F.cosine_similarity(pushed - pulled, weights, dim=0) > 0.9999


def test_a_stream_that_goes_through_more_than_a_norm_has_no_logit_weights():
    lm = language_model()
    lm.model.model.norm.register_forward_hook(lambda _m, _i, output: output.roll(1, dims=-1))
    with pytest.raises(ValueError, match="more than a norm"):
        logit_weights(lm, random_sae(), [0])
    assert not lm.model.get_output_embeddings()._forward_pre_hooks


# ---- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, sae: ablate(lm, "resid_post.1", sae, [3, 64]), r"latent 64 of 64: allowed 0\.\.63"),
        (lambda lm, sae: ablate(lm, "resid_post.1", sae, [-1]), r"latent -1 of 64: allowed 0\.\.63"),
        (lambda lm, sae: ablate(lm, "resid_post.1", sae, [3, 3]), "2 latents, 1 of them distinct"),
        (lambda lm, sae: ablate(lm, "resid_post.1", sae, [0.5]), r"float32; expected whole numbers"),
        (
            lambda lm, sae: ablate(lm, "resid_post.1", sae, torch.ones(64) > 0),
            r"\(64,\) and type torch\.bool",
        ),
        (lambda lm, sae: ablate(lm, "resid_post.1", sae, [1, 2], torch.ones(3)), r"\(3,\).*one or \(2,\)"),
        (lambda lm, sae: ablate(lm, "resid_post.1", sae, [1], float("nan")), "0 finite numbers; expected"),
        (lambda lm, sae: splice(lm, "resid_post.1", sae, error="no"), "'no'; expected one of kept, dropped"),
        (lambda lm, sae: splice(lm, "resid_post.4", sae), r"layer 4 of 4: allowed 0\.\.3"),
        (lambda lm, sae: splice(lm, "resid_pre.1", sae), "expected one of resid_post, attn_out, mlp_out"),
        (lambda lm, sae: splice(lm, "mlp_out.1", SparseAutoencoder(8, 9)), "reads 8 numbers.* has 32"),
        (lambda lm, sae: logit_weights(lm, SparseAutoencoder(8, 9), [0]), "reads 8 numbers.* has 32"),
        (lambda lm, sae: logit_weights(lm, sae, [64]), r"latent 64 of 64: allowed 0\.\.63"),
        (lambda lm, sae: steer(lm, "resid_post.1", sae, 64, 1.0), r"latent 64 of 64: allowed 0\.\.63"),
        (lambda lm, sae: steer(lm, "resid_post.1", sae, 0, float("inf")), "coefficient is inf"),
    ],
)
def test_wrong_arguments_are_refused_with_value_and_bound(call, message):
    with pytest.raises(ValueError, match=message):
        call(language_model(), random_sae())


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.zeros(3, 20, dtype=torch.bool), "True somewhere"),
        (torch.ones(3, 19, dtype=torch.bool), r"\(3, 19\).*expected torch\.bool \(3, 20\)"),
        (torch.ones(3, 20), r"torch\.float32; expected torch\.bool"),
    ],
)
def test_predictions_must_be_chosen_by_a_mask(positions, message):
    lm = language_model()
    with pytest.raises(ValueError, match=message):
        next_token_changes(lm, random_blocks(), [splice(lm, "mlp_out.1", random_sae())], positions)
