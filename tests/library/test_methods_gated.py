"""The gated autoencoder: against SAELens, folded against its two paths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_lib
from sae_lib import Gated, Normalisation, synthetic, train

NONE = Normalisation()
D, M, B = 6, 20, 300


def fresh(method, seed=0):
    """An autoencoder and a run with random paths, in float64, folded."""
    stream = torch.Generator().manual_seed(seed)
    sae = method.build(D, M, normalisation=NONE, seed=seed).double()
    run = method.start(sae, torch.zeros(4, D, dtype=torch.float64)).double()

    def normal(*shape):
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    with torch.no_grad():
        run.gate_weight.copy_(0.7 * normal(M, D))
        run.log_ratio.copy_(0.4 * normal(M))
        run.gate_bias.copy_(0.3 * normal(M))
        sae.bias.copy_(0.3 * normal(M))
        sae.pre_bias.copy_(0.1 * normal(D))
        sae.decoder.copy_(torch.nn.functional.normalize(normal(M, D), dim=1))
    run.fold(sae)
    return sae, run


@pytest.fixture
def rows():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_folding_two_paths_into_bias_and_threshold_changes_no_code(seed):
    sae, run = fresh(Gated(), seed)
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    u = (x - sae.pre_bias) @ run.gate_weight.T
    codes = torch.relu(run.log_ratio.exp() * u + sae.bias) * (u + run.gate_bias > 0)
    assert (sae.threshold >= 0).all()
    torch.testing.assert_close(sae.encode(x), codes)
    step = run(sae, x)
    torch.testing.assert_close(step.codes, codes.detach())
    torch.testing.assert_close(step.projection, sae.project(x).detach())


def test_codes_loss_and_gradients_are_those_of_saelens(rows):
    """Theirs is twice ours at twice the coefficient; they do not freeze the decoder in the gate's loss.

    So the encoder's gradients are half of theirs; the decoder's are half of those of their reconstruction
    loss alone, and they charge for the norm of decoder rows, which is 1 here.
    """
    sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")
    from sae_lens.saes.sae import TrainStepInput

    method = Gated(coefficient=0.07, centre=True)
    sae, run = fresh(method)
    config = sae_lens.GatedTrainingSAEConfig(d_in=D, d_sae=M, dtype="float64", device="cpu")
    theirs = sae_lens.GatedTrainingSAE(config)
    theirs.W_enc.data = run.gate_weight.detach().T.clone()
    theirs.W_dec.data = sae.decoder.detach().clone()
    theirs.b_gate.data = run.gate_bias.detach().clone()
    theirs.r_mag.data = run.log_ratio.detach().clone()
    theirs.b_mag.data = sae.bias.detach().clone()
    theirs.b_dec.data = sae.pre_bias.detach().clone()
    step = TrainStepInput(
        sae_in=rows, coefficients={"l1": 2 * method.coefficient}, dead_neuron_mask=None,
        n_training_steps=0, is_logging_step=False,
    )  # fmt: skip
    output = theirs.training_forward_pass(step)
    decoder = torch.autograd.grad(output.losses["mse_loss"], theirs.W_dec, retain_graph=True)[0]
    output.loss.backward()
    ours = run(sae, rows)
    ours.loss.backward()
    torch.testing.assert_close(ours.codes, output.feature_acts.detach())
    torch.testing.assert_close(2 * ours.loss, output.loss)
    pairs = {
        "gate_weight": (run.gate_weight.grad.T, theirs.W_enc.grad),
        "gate_bias": (run.gate_bias.grad, theirs.b_gate.grad),
        "log_ratio": (run.log_ratio.grad, theirs.r_mag.grad),
        "magnitude bias": (sae.bias.grad, theirs.b_mag.grad),
        "decoder": (sae.decoder.grad, decoder),
    }
    for name, (mine, other) in pairs.items():
        assert other.abs().max() > 0, name
        torch.testing.assert_close(2 * mine, other, msg=lambda text, name=name: f"{name}: {text}")
    assert (theirs.W_dec.grad - decoder).abs().max() > 0.01, "their auxiliary loss reaches the decoder"
    assert sae.weight.grad is None, "the folded encoder is a result, not trained"


def test_magnitudes_are_not_charged(rows):
    """With the gate fixed, the penalty has no gradient for r and b_mag: where L1 shrinks, this does not."""
    gradients = []
    for coefficient in (0.0, 5.0):
        sae, run = fresh(Gated(coefficient=coefficient))
        run(sae, rows).loss.backward()
        gradients.append((run.log_ratio.grad, sae.bias.grad, run.gate_bias.grad))
    (ratio, bias, gate), (ratio_charged, bias_charged, gate_charged) = gradients
    assert torch.equal(ratio, ratio_charged)
    assert torch.equal(bias, bias_charged)
    assert (gate_charged > gate + 1e-3).any()


def run_settings(**changes):
    return {"width": 32, "steps": 60, "batch_size": 64, "log_every": 20, "seed": 0} | changes


@pytest.fixture(scope="module")
def data():
    return synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000)


METHOD = Gated(coefficient=0.05, centre=True)


def test_training_sets_the_paths_apart_and_a_larger_coefficient_gives_a_smaller_l0(data):
    found = []
    for coefficient in (0.0, 0.05, 0.3):
        sae, log = train(data, Gated(coefficient), **run_settings(steps=600))
        assert log[-1]["nmse"] < log[0]["nmse"]
        assert (sae.threshold > 0).any()
        found.append(sae_lib.metrics.reconstruction(sae, data.rows).l0)
    assert found[0] > found[1] > found[2], found


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="coefficient is nan"):
        Gated(coefficient=float("nan"))
