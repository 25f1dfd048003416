"""Modified bias adaptation against plain references in float64, finite differences and closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from sae_lib import Frozen, ModifiedBiasAdaptation, TopK, load, metrics, synthetic, train
from sae_lib.methods import modified_bias_adaptation as module
from sae_lib.methods.modified_bias_adaptation import gated_gradient, rows_to_fire
from sae_lib.randomness import generator


def draw(width, n_rows, d_in, seed=0):
    """Unit directions (M, d) and rows (N, d), float64."""
    stream = generator(seed, "test")
    weight = torch.randn(width, d_in, generator=stream, dtype=torch.float64)
    return normalize(weight, dim=1), torch.randn(n_rows, d_in, generator=stream, dtype=torch.float64) + 0.2


def objective(w, rows, count):
    """J(w) of one direction, from the definition: the ``count`` largest positive projections, squared."""
    projections = sorted((sum(a * b for a, b in zip(w, row, strict=True)) for row in rows), reverse=True)
    return sum(max(u, 0.0) ** 2 for u in projections[:count]) / len(rows)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 1.0])
def test_gradient_and_threshold_equal_the_definition(p, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 100)  # several blocks of latents
    weight, rows = draw(5, 50, 4)
    gradient, threshold = gated_gradient(weight, rows, p)
    count = rows_to_fire(p, 50)
    for m, w in enumerate(weight):
        u = [float(w @ x) for x in rows]
        order = sorted(range(50), key=lambda i: u[i], reverse=True)[:count]
        expected = sum((max(u[i], 0.0) * rows[i] for i in order), torch.zeros(4, dtype=torch.float64)) / 50
        torch.testing.assert_close(gradient[m], expected)
        fired = {i for i in range(50) if u[i] > threshold[m]}
        assert fired == {i for i in order if u[i] > 0}


@pytest.mark.parametrize("p", [0.04, 0.3, 0.9])
def test_gradient_is_that_of_the_objective_with_its_moving_quantile(p):
    weight, rows = draw(3, 50, 4, seed=1)
    gradient, _ = gated_gradient(weight, rows, p)
    table, count, step = rows.tolist(), rows_to_fire(p, 50), 1e-6
    for m, w in enumerate(weight.tolist()):
        for j in range(4):
            up, down = list(w), list(w)
            up[j] += step
            down[j] -= step
            slope = (objective(up, table, count) - objective(down, table, count)) / (2 * step)
            assert 2 * gradient[m, j].item() == pytest.approx(slope, abs=1e-5)


def test_loss_and_its_gradient_equal_autograd_through_the_gate():
    data = synthetic.uniform(n_features=24, d_in=12, n_rows=400, coefficients="half-normal")
    method = ModifiedBiasAdaptation(0.05)
    sae = method.build(12, 8, normalisation=data.normalisation, seed=0)
    step = method.start(sae, data.rows)(sae, data.rows)
    (found,) = torch.autograd.grad(step.loss, [sae.weight])
    weight = sae.weight.detach().double().requires_grad_()
    u = data.rows.double() @ weight.T
    z = torch.where(u >= u.topk(20, dim=0).values[-1], u, 0.0)
    loss = -(z * u).mean(dim=0).sum()
    (expected,) = torch.autograd.grad(loss, [weight])
    torch.testing.assert_close(step.loss.double(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step.codes.double(), z.detach(), rtol=1e-5, atol=1e-6)


def test_the_limit_of_small_output_scale():
    """(loss(a) − loss(0)) / a → −ΣJ as a → 0, with the library's own decoder."""
    data = synthetic.uniform(n_features=24, d_in=12, n_rows=400, coefficients="half-normal")
    method = ModifiedBiasAdaptation(0.05)
    sae = method.build(12, 8, normalisation=data.normalisation, seed=0).double()
    rows = data.rows.double()
    step = method.start(sae, rows)(sae, rows)
    quotients = []
    for a in (1e-3, 1e-5):
        sae.scale.fill_(a)
        error = sae.decode(step.codes) - rows
        change = 0.5 * (error.square() - rows.square()).sum(dim=1).mean()
        quotients.append((change / a).item())
    assert quotients[1] == pytest.approx(step.loss.item(), rel=1e-4)
    assert abs(quotients[0] - step.loss.item()) > 10 * abs(quotients[1] - step.loss.item())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    p=st.sampled_from([0.02, 0.1, 0.3, 0.7, 1.0]),
    d_in=st.integers(1, 6),
    heavy=st.booleans(),
)
def test_no_step_lowers_the_objective(seed, p, d_in, heavy):
    weight, rows = draw(4, 60, d_in, seed=seed)
    if heavy:  # a few long rows
        rows = rows * torch.rand(60, 1, generator=generator(seed, "lengths"), dtype=torch.float64) ** -1
    table, count = rows.tolist(), rows_to_fire(p, 60)
    before = [objective(w, table, count) for w in weight.tolist()]
    for _ in range(3):
        weight = normalize(gated_gradient(weight, rows, p)[0], dim=1)
        after = [objective(w, table, count) for w in weight.tolist()]
        assert all(b >= a * (1 - 1e-9) for a, b in zip(before, after, strict=True))
        before = after


def test_one_step_finds_the_feature_with_the_largest_projection():
    """Orthonormal features, one a row, all equally often, p = f: every firing row is that feature."""
    dictionary = synthetic.orthogonal_dictionary(10, 16)
    rows = dictionary.repeat(30, 1)
    sae, _ = train(rows, ModifiedBiasAdaptation(0.1), width=50, steps=1, batch_size=300, seed=4)
    start = ModifiedBiasAdaptation().build(16, 50, normalisation=sae.normalisation, seed=4)
    nearest = (start.weight @ dictionary.T).argmax(dim=1)
    torch.testing.assert_close(sae.weight.detach(), dictionary[nearest], atol=1e-6, rtol=0)


def test_training_is_the_three_line_loop_and_latents_do_not_interact():
    data = synthetic.uniform(n_features=24, d_in=12, n_rows=600)
    method = ModifiedBiasAdaptation(0.05)
    sae, log = train(data, method, width=40, steps=5, batch_size=600, seed=2, log_every=1)
    w = method.build(12, 40, normalisation=data.normalisation, seed=2).weight.detach()[:7]
    for _ in range(5):
        w = normalize(gated_gradient(w, data.rows, 0.05)[0], dim=1)
    torch.testing.assert_close(sae.weight[:7].detach(), w, atol=1e-5, rtol=0)
    loss = log.column("loss")
    assert loss == sorted(loss, reverse=True)
    assert log.column("nmse") == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("p", [0.02, 0.2])
def test_returned_latents_fire_at_the_target(p):
    data = synthetic.uniform(n_features=24, d_in=12, n_rows=1000, coefficients="half-normal")
    sae, log = train(data, ModifiedBiasAdaptation(p), width=40, steps=3, batch_size=1000)
    rate = metrics.reconstruction(sae, data.rows).firing_rate
    assert rate.tolist() == pytest.approx([p] * 40)
    assert log[-1]["l0"] == pytest.approx(40 * p)
    assert (sae.bias < 0).all()


def test_constant_rows_tie_and_stay_finite():
    sae, _ = train(torch.ones(64, 3), ModifiedBiasAdaptation(0.4), width=6, steps=2, batch_size=64)
    assert torch.isfinite(sae.weight).all()
    # a latent that projects on nothing positive has no gradient, and stays where it is
    start = ModifiedBiasAdaptation().build(3, 6, normalisation=sae.normalisation, seed=0).weight
    silent = start.sum(dim=1) <= 0
    assert 0 < silent.sum() < 6
    torch.testing.assert_close(sae.weight[silent], start[silent].detach())


def test_resume_continues_bit_for_bit(tmp_path):
    data = synthetic.uniform(n_features=24, d_in=12, n_rows=600)

    def go(folder, **more):
        method = ModifiedBiasAdaptation(0.1)
        return train(data, method, width=20, steps=8, batch_size=200, folder=folder, log_every=1, **more)

    whole, log = go(tmp_path / "whole")

    def crash(step, sae):
        if step == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        go(tmp_path / "broken", callback=crash, checkpoint_every=4)
    resumed, again = go(tmp_path / "broken", resume=True, checkpoint_every=4)
    assert again == log
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_saved_and_loaded_directions_are_the_same(tmp_path):
    data = synthetic.uniform(n_features=24, d_in=12, n_rows=600, coefficients="half-normal")
    sae, _ = train(data, ModifiedBiasAdaptation(0.05), width=20, steps=3, folder=tmp_path)
    again = load(tmp_path)
    torch.testing.assert_close(again.weight, sae.weight)
    torch.testing.assert_close(again(data.rows), sae(data.rows))


@pytest.mark.parametrize(("p", "low", "high"), [(0.005, 0.9, 1.0), (0.12, 0.0, 0.1)])
def test_features_are_found_inside_the_band_and_not_far_above_it(p, low, high):
    """The paper's claim at n = 256, d = 128, s = 3; untrained directions find nothing."""
    data = synthetic.uniform(n_rows=4000)
    method = ModifiedBiasAdaptation(p)
    sae, _ = train(data, method, width=900, steps=12, batch_size=4000)
    assert low <= metrics.feature_recovery_rate(sae, data.dictionary, 0.9) <= high
    untrained = method.build(128, 900, normalisation=data.normalisation, seed=0)
    assert metrics.feature_recovery_rate(untrained, data.dictionary, 0.9) == 0


@pytest.mark.parametrize("p", [0, -0.1, 1.01, float("nan")])
def test_impossible_targets_are_named(p):
    with pytest.raises(ValueError, match=r"target_frequency is .*expected above 0, at most 1"):
        ModifiedBiasAdaptation(p)


def test_a_batch_on_which_too_few_rows_fire_is_refused(dice):
    rows, method = torch.randn(64, 3, generator=dice), ModifiedBiasAdaptation(0.01)
    expected = r"fires on 0.64 rows of .*; expected 20, that is, at least 2000 rows a batch"
    for named, chosen in (
        ("batch_size is 64, and with target_frequency=0.01 a", 64),
        ("the data have 64 rows,", None),
    ):
        with pytest.raises(ValueError, match=f"{named} .*{expected}"):
            train(rows, method, width=6, steps=2, batch_size=chosen)
    with pytest.raises(ValueError, match="at least 2000 rows a batch"):
        train(rows, Frozen(method), width=6, steps=2)
    with pytest.raises(ValueError, match=r"target_frequency=0.001 of 64 rows .* at least 1000 rows"):
        gated_gradient(rows, rows, 0.001)


@pytest.mark.parametrize(
    ("p", "n_rows", "expected"),
    [(0.005, None, 16_000), (0.005, 20_000, 16_000), (0.005, 5000, 5000), (1.0, 64, 64)],
)
def test_a_batch_has_the_rows_that_the_target_takes(p, n_rows, expected):
    method = ModifiedBiasAdaptation(p)
    assert method.batch_size(None, n_rows) == expected
    # the least that is allowed
    assert method.batch_size(int(20 / p), n_rows) == 20 / p
    with pytest.raises(ValueError, match="too few"):
        method.batch_size(int(20 / p) - 1, n_rows)
    assert TopK().batch_size(None, n_rows) == 512
    assert TopK().batch_size(7, n_rows) == 7


def test_the_default_batch_recovers_features_at_a_low_target():
    """With 512 rows, fewer than three of which fire, not one feature is recovered."""
    data = synthetic.uniform(n_features=100, d_in=50, sparsity=2, n_rows=16_384)
    sae, _ = train(data, ModifiedBiasAdaptation(0.005), width=400, steps=8)
    assert sae.metadata["training"]["batch_size"] == 16_000
    assert metrics.feature_recovery_rate(sae, data.dictionary, 0.9) >= 0.9


def test_weight_decay_is_refused(dice):
    rows = torch.randn(64, 3, generator=dice)
    with pytest.raises(ValueError, match=r"weight_decay is 0.1; .*expected 0"):
        train(rows, ModifiedBiasAdaptation(0.4), width=6, steps=2, batch_size=64, weight_decay=0.1)
