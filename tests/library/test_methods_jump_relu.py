"""JumpReLU: its estimator against a closed form, the method against SAELens."""

import pytest
import torch

import sae_lib
from sae_lib import JumpReLU, Normalisation, synthetic, train
from sae_lib.methods.jump_relu import jump

NONE = Normalisation()
D, M, B = 6, 20, 400


def fresh(method, *, seed=0):
    """An autoencoder with random biases and thresholds, and its run, both in float64."""
    stream = torch.Generator().manual_seed(seed)
    sae = method.build(D, M, normalisation=NONE, seed=seed).double()
    run = method.start(sae, torch.zeros(4, D, dtype=torch.float64)).double()
    with torch.no_grad():
        sae.weight.mul_(0.5 + torch.rand(M, 1, generator=stream))
        sae.bias.copy_(0.2 * torch.randn(M, generator=stream))
        sae.decoder.copy_(torch.nn.functional.normalize(torch.randn(M, D, generator=stream), dim=1))
        run.log_threshold.copy_(-2 + torch.rand(M, generator=stream))
    run.publish(sae)
    return sae, run


@pytest.fixture
def rows():
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1)


# --- the estimator ----------------------------------------------------------------------------------


def test_estimator_equals_its_closed_form():
    """∂/∂θ of Σ g·z + h·1(fires), entry by entry: −(θ g + h)/ε where |y − θ| < ε/2."""
    y = torch.tensor([[0.29, 0.31], [0.36, 0.50], [0.24, 0.0]], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    h = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=torch.float64)
    codes, fires = jump(y, theta, 0.1)
    assert codes.tolist() == [[0.0, 0.0], [0.36, 0.0], [0.0, 0.0]]  # not at the threshold itself
    assert fires.tolist() == [[0, 0], [1, 0], [0, 0]]
    ((g * codes).sum() + (h * fires).sum()).backward()
    # near 0.3 ± 0.05: only 0.29. Near 0.5 ± 0.05: only 0.50
    assert theta.grad.tolist() == pytest.approx([-(0.3 * 1 + 0.1) / 0.1, -(0.5 * 4 + 0.4) / 0.1])
    assert y.grad.tolist() == [[0, 0], [3, 0], [0, 0]]


def test_estimator_is_the_slope_of_the_mean_loss():
    """For uniform y on [0, 1], E[½(z − y)² + λ 1(fires)] = θ³/6 + λ(1 − θ): its slope is θ²/2 − λ."""
    n = 200_000
    y = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    for theta, penalty in ((0.2, 0.1), (0.6, 0.05), (0.5, 0.125)):
        t = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
        codes, fires = jump(y, t, 0.02)
        (0.5 * (codes - y).square() + penalty * fires).mean().backward()
        # the estimator sees errors z − y = −y below the gate and 0 above it: half the kernel each
        assert t.grad.item() == pytest.approx(theta**2 / 2 - penalty, abs=2e-3)


def test_one_step_moves_thresholds_down_the_estimated_slope(rows):
    sae, run = fresh(JumpReLU(coefficient=0.5, bandwidth=0.2, warmup=0))
    run(sae, rows).loss.backward()
    before = run(sae, rows).loss.item()
    with torch.no_grad():
        run.log_threshold -= 1e-2 * run.log_threshold.grad
    run.publish(sae)
    assert run(sae, rows).loss.item() < before


# --- against SAELens --------------------------------------------------------------------------------


def theirs_like(sae, method):
    sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")
    config = sae_lens.JumpReLUTrainingSAEConfig(
        d_in=D, d_sae=M, dtype="float64", device="cpu", jumprelu_bandwidth=method.bandwidth,
        l0_coefficient=2 * method.coefficient,
    )  # fmt: skip
    theirs = sae_lens.JumpReLUTrainingSAE(config)
    # they keep thresholds in float32 and cast; float64 here, so that both gates see the same numbers
    theirs.threshold.data = sae.threshold.detach().clone()
    theirs.W_enc.data = sae.weight.detach().T.clone()
    theirs.W_dec.data = sae.decoder.detach().clone()
    theirs.b_enc.data = sae.bias.detach().clone()
    theirs.b_dec.data = sae.pre_bias.detach().clone()
    return theirs


@pytest.mark.parametrize("bandwidth", [0.2, 0.05])
def test_codes_loss_and_gradients_are_those_of_saelens(rows, bandwidth):
    """Their loss has no ½, so theirs is twice ours at twice the coefficient; ∂/∂log θ = θ ∂/∂θ."""
    method = JumpReLU(coefficient=0.07, bandwidth=bandwidth, warmup=0, centre=True)
    sae, run = fresh(method)
    with torch.no_grad():
        sae.pre_bias.copy_(0.1 * torch.randn(D, generator=torch.Generator().manual_seed(3)))
    theirs = theirs_like(sae, method)
    from sae_lens.saes.sae import TrainStepInput

    step = TrainStepInput(
        sae_in=rows, coefficients={"l0": 2 * method.coefficient}, dead_neuron_mask=None,
        n_training_steps=0, is_logging_step=False,
    )  # fmt: skip
    output = theirs.training_forward_pass(step)
    output.loss.backward()
    ours = run(sae, rows)
    ours.loss.backward()
    torch.testing.assert_close(ours.codes, output.feature_acts.detach())
    torch.testing.assert_close(2 * ours.loss, output.loss)
    pairs = {
        "weight": (sae.weight.grad.T, theirs.W_enc.grad),
        "decoder": (sae.decoder.grad, theirs.W_dec.grad),
        "bias": (sae.bias.grad, theirs.b_enc.grad),
        "pre_bias": (sae.pre_bias.grad, theirs.b_dec.grad),
        "threshold": (run.log_threshold.grad / sae.threshold, theirs.threshold.grad),
    }
    for name, (mine, other) in pairs.items():
        assert other.abs().max() > 0, name
        torch.testing.assert_close(2 * mine, other, msg=lambda text, name=name: f"{name}: {text}")


# --- the method -------------------------------------------------------------------------------------


def test_warm_up_grows_the_coefficient_in_equal_steps(rows):
    method = JumpReLU(coefficient=0.4, warmup=4)
    sae, run = fresh(method)
    seen = []
    for number in range(1, 7):
        seen.append(float(run.coefficient()))
        run.after_step(sae, run(sae, rows), number)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert JumpReLU(coefficient=0.4, warmup=0).start(sae, rows).coefficient() == 0.4


def test_published_defaults_and_optimiser():
    method = JumpReLU()
    assert (method.bandwidth, method.threshold) == (0.001, 0.001)
    sae = method.build(D, M, normalisation=NONE, seed=0)
    run = method.start(sae, torch.zeros(4, D))
    torch.testing.assert_close(sae.threshold.detach(), torch.full((M,), 0.001))
    torch.testing.assert_close(sae.weight, sae.decoder)
    optimiser = method.optimiser([*run.parameters()], lr=0.1, weight_decay=0.0)
    assert optimiser.defaults["betas"] == (0.0, 0.999)


def settings(**changes):
    return {"width": 32, "steps": 60, "batch_size": 64, "log_every": 20, "seed": 0} | changes


@pytest.fixture(scope="module")
def data():
    return synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000)


METHOD = JumpReLU(coefficient=0.02, bandwidth=0.05, threshold=0.05, warmup=20, centre=True)


def test_a_larger_coefficient_gives_a_smaller_l0(data):
    l0 = [
        sae_lib.metrics.reconstruction(
            train(data, JumpReLU(coefficient=c, bandwidth=0.1, threshold=0.05), **settings(steps=600))[0],
            data.rows,
        ).l0
        for c in (0.0, 0.02, 0.1)
    ]
    assert l0[0] > 1.1 * l0[1] > 1.2 * l0[2], l0


def test_training_moves_the_thresholds(data):
    _, log = train(data, METHOD, **settings())
    assert log.column("threshold")[-1] != pytest.approx(METHOD.threshold)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: JumpReLU(coefficient=-1), "coefficient is -1"),
        (lambda: JumpReLU(coefficient=float("inf")), "coefficient is inf"),
        (lambda: JumpReLU(bandwidth=0), "bandwidth is 0; expected a finite number above 0"),
        (lambda: JumpReLU(threshold=-0.1), "threshold is -0.1"),
        (lambda: JumpReLU(warmup=-1), "warmup is -1"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
