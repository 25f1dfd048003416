"""The methods against plain references in float64."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lib import L1, BiasAdaptation, GroupBiasAdaptation, Normalisation, SparseAutoencoder, TopK, synthetic
from sae_lib.methods import METHODS, Frozen
from sae_lib.methods.bias_adaptation import adapt_bias, group_index, group_targets, quantile_bias
from sae_lib.methods.trainer import Step, Trainer
from sae_lib.metrics import best_cosines

NONE = Normalisation()


# --- the bias rule ----------------------------------------------------------------------------------


def rule_by_hand(bias, rate, peak, group, target, gamma, epsilon):
    """The rule of the paper, latent by latent, in Python floats."""
    out = []
    for b, p, r, k in zip(bias, rate, peak, group, strict=True):
        positive = [q for q, j in zip(peak, group, strict=True) if j == k and q > 0]
        mean_peak = sum(positive) / len(positive) if positive else 0.0
        if p > target[k]:
            out.append(max(b - gamma * r, -1.0))
        elif p < epsilon:
            out.append(min(b + gamma * mean_peak, 0.0))
        else:
            out.append(b)
    return out


@settings(max_examples=200, deadline=None)
@given(data=st.data(), width=st.integers(1, 12))
def test_bias_rule_equals_the_rule_by_hand(data, width):
    groups = data.draw(st.integers(1, width))
    floats = st.floats(0, 1, width=32)

    def draw(strategy):
        return data.draw(st.lists(strategy, min_size=width, max_size=width))

    bias = [-b for b in draw(floats)]
    rate = draw(st.sampled_from([0.0, 1e-7, 1e-6, 0.01, 0.05, 0.1, 0.5]))
    peak = draw(st.one_of(st.just(0.0), floats))
    gamma = data.draw(st.sampled_from([0.01, 0.5, 3.0]))
    group, target = group_index(width, groups), group_targets(groups, 0.1, 0.01)
    new = adapt_bias(
        torch.tensor(bias, dtype=torch.float64),
        torch.tensor(rate, dtype=torch.float64),
        torch.tensor(peak, dtype=torch.float64),
        group,
        target,
        gamma=gamma,
        epsilon=1e-6,
    )
    expected = rule_by_hand(bias, rate, peak, group.tolist(), target.tolist(), gamma, 1e-6)
    assert new.tolist() == pytest.approx(expected, abs=1e-12)
    assert ((new >= -1) & (new <= 0)).all()


def test_the_target_is_a_ceiling():
    bias = torch.full((3,), -0.5)
    new = adapt_bias(
        bias,
        rate=torch.tensor([0.2, 0.01, 0.0]),
        peak=torch.tensor([0.4, 0.3, 0.0]),
        group=torch.zeros(3, dtype=torch.int64),
        target=torch.tensor([0.1]),
        gamma=0.1,
        epsilon=1e-6,
    )
    # over-active: down by γ·peak; below its target but alive: left alone; silent: up by γ·mean(0.4, 0.3)
    torch.testing.assert_close(new, torch.tensor([-0.54, -0.5, -0.465]))


def test_targets_are_geometric_and_groups_are_even():
    target = group_targets(10, 0.5, 1e-3)
    assert target[0] == 0.5
    assert target[-1].item() == pytest.approx(1e-3)
    ratio = target[1:] / target[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand(9))
    assert group_targets(1, 0.05, 0.05).tolist() == [0.05]
    sizes = torch.bincount(group_index(103, 10))
    assert len(sizes) == 10
    assert sizes.max() - sizes.min() == 1


def test_adapter_counts_over_the_whole_buffer_before_it_acts():
    method = GroupBiasAdaptation(groups=2, htf=0.5, ltf=0.1, every=3, start_bias="zero")
    sae = method.build(4, 6, normalisation=NONE, seed=0)
    with torch.no_grad():
        sae.bias.copy_(torch.tensor([-0.1, -0.2, -0.9, -0.3, -0.05, -1.0]))
    run = method.start(sae, torch.zeros(8, 4))
    generator = torch.Generator().manual_seed(1)
    batches = [torch.nn.functional.normalize(torch.randn(16, 4, generator=generator)) for _ in range(3)]
    before = sae.bias.clone()
    for number, x in enumerate(batches, 1):
        assert torch.equal(sae.bias, before)
        run.after_step(sae, run(sae, x), number)
    u = torch.cat(batches).double() @ sae.weight.detach().double().T
    y = u + before.double()
    expected = rule_by_hand(
        before.tolist(),
        (y > 0).double().mean(dim=0).tolist(),
        y.amax(dim=0).clamp(min=0).tolist(),
        [0, 0, 0, 1, 1, 1],
        [0.5, 0.1],
        0.01,
        1e-6,
    )
    assert sae.bias.tolist() == pytest.approx(expected, abs=1e-6)
    assert run.fired.sum() == 0
    torch.testing.assert_close(run.rate, (y > 0).double().mean(dim=0))


def test_counters_stay_exact_beyond_what_float32_can_count():
    method = GroupBiasAdaptation(groups=1, htf=0.5, ltf=0.5, every=100, start_bias="zero")
    sae = method.build(2, 1, normalisation=NONE, seed=0)
    run = method.start(sae, torch.zeros(4, 2))
    run.fired += 2**24
    step = Step(torch.zeros(()), torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 2))
    for number in range(1, 4):
        run.after_step(sae, step, number)
    assert run.fired.item() == 2**24 + 3


def test_quantile_start_fires_at_its_target(dice):
    method = GroupBiasAdaptation(groups=4, htf=0.2, ltf=0.01)
    sae = method.build(16, 40, normalisation=NONE, seed=3)
    sample = torch.nn.functional.normalize(torch.randn(10_000, 16, generator=dice), dim=1)
    method.start(sae, sample)
    rate = (sae.encode(sample) > 0).double().mean(dim=0)
    torch.testing.assert_close(rate, method.targets[group_index(40, 4)], atol=2e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 300), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_quantile_start_lies_halfway_between_two_rows_and_ties_stay_silent(width, n_rows, groups, ties, seed):
    sae = SparseAutoencoder(4, width, seed=seed)
    sample = torch.randn(n_rows, 4, generator=torch.Generator().manual_seed(seed))
    sample = sample.round() if ties else 0.5 * sample
    target = group_targets(min(groups, width), 1.0, 0.001)[group_index(width, min(groups, width))]
    found = -quantile_bias(sae, sample, target).numpy()
    projections = ((sample - sae.pre_bias) @ sae.weight.T).detach().double().numpy()
    length = sample.norm(dim=1)
    # what two float32 sums of four products may differ by, each being right to four roundings of 2⁻²⁴
    rounding = 5e-7 * length.max().item()
    for m, share in enumerate(target.tolist()):
        values = np.sort(projections[:, m])
        at = values[::-1][min(int(share * n_rows), n_rows - 1)]
        size = max(np.abs(values).max(), 0.03 * length.mean().item())
        expected = []
        # of a value so far away rounding decides whether it ties
        for gap in (1e-5 * size - 2 * rounding, 1e-5 * size + 2 * rounding):
            larger = values[values > at + gap]
            expected.append(np.clip((at + larger[0]) / 2 if len(larger) else at + gap, 0, 1))
        assert min(abs(found[m] - e) for e in expected) <= 3 * rounding
        if 0 < found[m] < 1:
            # never more than the target's share, and no row so near that rounding decides
            assert (values > found[m] + rounding).sum() <= int(share * n_rows)
            assert np.abs(values - found[m]).min() >= 0.5e-5 * size - rounding


def test_starting_bias_leaves_out_rows_that_tie_whatever_order_their_sums_have():
    """One feature a row: an eighth of the rows project on 3, three eighths tie on 2, the others on 1."""
    rows = torch.eye(8).repeat(30, 1)
    sae = SparseAutoencoder(8, 3, seed=0)
    with torch.no_grad():
        sae.weight.copy_(torch.nn.functional.normalize(torch.tensor([[3.0, 2, 2, 2, 1, 1, 1, 1]] * 3), dim=1))
        sae.bias.copy_(quantile_bias(sae, rows, torch.tensor([0.2, 0.5, 0.9])))
    fired = (sae.encode(rows) > 0).double().mean(dim=0)
    assert fired.tolist() == [0.125, 0.5, 0.5]


def test_quantile_start_never_leaves_the_allowed_range(dice):
    sae = SparseAutoencoder(3, 5)
    for rows in (10 * torch.randn(100, 3, generator=dice), torch.zeros(100, 3), -torch.ones(100, 3)):
        bias = quantile_bias(sae, rows, torch.full((5,), 0.01))
        assert ((bias >= -1) & (bias <= 0)).all()


def test_ba_is_gba_with_one_group(dice):
    ba = BiasAdaptation(target_frequency=0.03, every=7, gamma=0.02)
    gba = GroupBiasAdaptation(groups=1, htf=0.03, ltf=0.03, every=7, gamma=0.02)
    sample = torch.randn(100, 5, generator=dice)
    runs = []
    for method in (ba, gba):
        sae = method.build(5, 9, normalisation=NONE, seed=2)
        run = method.start(sae, sample)
        for number in range(1, 15):
            run.after_step(sae, run(sae, sample), number)
        runs.append(sae.bias.clone())
    assert torch.equal(*runs)


# --- gates, losses and gradients --------------------------------------------------------------------


def test_jumprelu_bias_gates_without_shrinking():
    sae = SparseAutoencoder(2, 2)
    with torch.no_grad():
        sae.weight.copy_(torch.eye(2))
        sae.bias.copy_(torch.tensor([-0.5, -0.5]))
    codes = sae.encode(torch.tensor([[0.8, 0.4], [0.5, -3.0]]))
    # 0.8 passes whole; 0.4 is below the threshold; 0.5 is not above it (strict)
    assert codes.tolist() == [[pytest.approx(0.8), 0.0], [0.0, 0.0]]
    relu = SparseAutoencoder(2, 2, activation="relu")
    relu.load_state_dict(sae.state_dict())
    assert relu.encode(torch.tensor([[0.8, 0.4]])).tolist() == [[pytest.approx(0.3), 0.0]]


def test_a_code_equal_to_its_threshold_does_not_fire():
    sae = SparseAutoencoder(2, 2, activation="threshold")
    with torch.no_grad():
        sae.weight.copy_(torch.eye(2))
        sae.bias.fill_(0.25)
        sae.threshold.fill_(0.75)
    # sums of halves and quarters are exact
    assert sae.encode(torch.tensor([[0.5, 0.625], [0.375, 0.5]])).tolist() == [[0, 0.875], [0, 0]]


@pytest.mark.parametrize("tied", [True, False])
def test_gba_gradient_equals_the_formula(tied, dice):
    """∂L/∂w_m = a_m ⟨z_m, e⟩ + a_m ⟨1(fire) (w_m·e)…⟩: decoder part plus encoder part."""
    method = GroupBiasAdaptation(groups=2, tied=tied)
    sae = method.build(5, 8, normalisation=NONE, seed=1).double()
    x = torch.randn(32, 5, dtype=torch.float64, generator=dice)
    run = method.start(sae, x)
    with torch.no_grad():
        sae.scale.uniform_(0.5, 1.5, generator=dice)
        if sae.decoder is not None:
            rows = torch.randn(8, 5, dtype=torch.float64, generator=dice)
            sae.decoder.copy_(torch.nn.functional.normalize(rows, dim=1))
    run(sae, x).loss.backward()
    w, v, a = sae.weight.detach(), sae.decoder_rows.detach(), sae.scale.detach()
    u = x @ w.T
    on = (u + sae.bias > 0).double()
    z = u * on
    e = (z * a) @ v - x
    encoder = (on * (e @ v.T) * a).T @ x / 32
    decoder = (z * a).T @ e / 32
    if tied:
        torch.testing.assert_close(sae.weight.grad, encoder + decoder)
    else:
        torch.testing.assert_close(sae.weight.grad, encoder)
        torch.testing.assert_close(sae.decoder.grad, decoder)
    torch.testing.assert_close(sae.scale.grad, (z * (e @ v.T)).mean(dim=0))
    assert sae.bias.grad is None
    assert sae.pre_bias.grad is None


def test_l1_loss_is_reconstruction_plus_penalty(dice):
    method = L1(coefficient=0.3)
    sae = method.build(5, 8, normalisation=NONE, seed=1)
    x = torch.randn(16, 5, generator=dice)
    step = method.start(sae, x)(sae, x)
    z = torch.relu(x @ sae.weight.T + sae.bias)
    expected = 0.5 * ((z @ sae.decoder_rows - x) ** 2).sum(dim=1).mean() + 0.3 * z.abs().sum(dim=1).mean()
    torch.testing.assert_close(step.loss, expected)
    assert sae.bias.requires_grad


def test_topk_keeps_the_k_largest_by_brute_force(dice):
    sae = TopK(k=2).build(4, 6, normalisation=NONE, seed=4).double()
    x = torch.randn(10, 4, dtype=torch.float64, generator=dice)
    y = torch.relu(x @ sae.weight.T + sae.bias)
    codes = sae.encode(x)
    for row, code in zip(y, codes, strict=True):
        best = max(itertools.combinations(range(6), 2), key=lambda c: row[list(c)].sum().item())
        expected = torch.zeros(6, dtype=torch.float64)
        expected[list(best)] = row[list(best)]
        torch.testing.assert_close(code, expected)


def test_topk_auxiliary_loss_reaches_dead_latents_only_when_there_are_some():
    method = TopK(k=1, dead_after=60, aux_coefficient=1.0)
    sae = method.build(3, 4, normalisation=NONE, seed=0)
    with torch.no_grad():
        sae.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.1, 0, 0], [0, 0, 1.0]]))
        sae.decoder.copy_(torch.nn.functional.normalize(sae.weight, dim=1))
    x = torch.tensor([[1.0, 0.2, 0.0], [0.2, 1.0, 0.0]])
    run = method.start(sae, x)
    for number in range(1, 101):
        step = run(sae, x)
        run.after_step(sae, step, number)
        if number == 50:
            assert not run.dead.any()
    # latents 2 and 3 never win; after 60 silent steps, seen at the next review, they are dead
    assert run.dead.tolist() == [False, False, True, True]
    step = run(sae, x)
    y = torch.relu(x @ sae.weight.T) * run.dead
    best = y.topk(1, dim=1)
    z = torch.zeros_like(y).scatter(1, best.indices, best.values)
    target = x - Trainer()(sae, x).error - x  # minus the error
    expected = ((z @ sae.decoder - target) ** 2).sum() / (target**2).sum()
    torch.testing.assert_close(step.loss - Trainer()(sae, x).loss, expected)
    step.loss.backward()
    assert sae.weight.grad[2].abs().sum() > 0


def test_unit_rows_after_projection():
    for method in (GroupBiasAdaptation(groups=2), GroupBiasAdaptation(groups=2, tied=False), TopK(2), L1()):
        sae = method.build(6, 10, normalisation=NONE, seed=0)
        with torch.no_grad():
            for p in (sae.weight, sae.decoder_rows):
                p.mul_(3.0)
        sae.unit_rows_()
        torch.testing.assert_close(sae.decoder_rows.norm(dim=1), torch.ones(10))
        if not sae.free_encoder:
            torch.testing.assert_close(sae.weight.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GroupBiasAdaptation(htf=1.5), "htf ≤ 1"),
        (lambda: GroupBiasAdaptation(htf=0.01, ltf=0.1), "ltf ≤ htf"),
        (lambda: GroupBiasAdaptation(ltf=0.0), "0 < ltf"),
        (lambda: GroupBiasAdaptation(groups=0), "groups is 0"),
        (lambda: GroupBiasAdaptation(every=0), "every is 0"),
        (lambda: GroupBiasAdaptation(gamma=float("nan")), "gamma is nan"),
        (lambda: GroupBiasAdaptation(start_bias="median"), "quantile, zero"),
        (lambda: GroupBiasAdaptation(groups=20).build(4, 10, normalisation=NONE, seed=0), "groups ≤ width"),
        (lambda: GroupBiasAdaptation(epsilon=0.01), r"epsilon < 0.001 \(the lowest target\)"),
        (lambda: BiasAdaptation(target_frequency=2), "target_frequency is 2"),
        (lambda: BiasAdaptation(every=0), "every is 0"),
        (lambda: BiasAdaptation(epsilon=0.05), r"epsilon < 0.05"),
        (lambda: L1(coefficient=-1), "coefficient is -1"),
        (lambda: TopK(k=0), "k is 0"),
        (lambda: TopK(k=20).build(4, 10, normalisation=NONE, seed=0), "at most 10"),
        (lambda: SparseAutoencoder(4, 0), "width is 0"),
        (lambda: SparseAutoencoder(4, 8, activation="gelu"), "jumprelu, relu, threshold, topk"),
        (lambda: SparseAutoencoder(4, 8, k=3), "k=3"),
        (lambda: Normalisation("zscore"), "none, scale, unit"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_methods_are_found_by_name():
    assert {"ba", "gba", "gated", "jumprelu", "l1", "topk"} <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method().describe()["name"] == name


# --- normalisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "scale", "unit"])
def test_normalisation_can_be_undone(kind, dice):
    rows = 37 * torch.randn(50, 6, generator=dice)
    normalisation = Normalisation.fit(kind, rows)
    torch.testing.assert_close(normalisation.invert(normalisation.apply(rows), rows), rows)
    if kind == "scale":
        assert 0.7 <= normalisation.apply(rows).norm(dim=1).mean() <= 1.42
    if kind == "unit":
        torch.testing.assert_close(normalisation.apply(rows).norm(dim=1), torch.ones(50))


def test_reconstruct_works_in_raw_units(dice):
    rows = 100 * torch.randn(20, 6, generator=dice)
    sae = SparseAutoencoder(6, 12, normalisation=Normalisation.fit("scale", rows))
    scale = sae.normalisation.scale
    torch.testing.assert_close(sae.reconstruct(rows.view(4, 5, 6)).view(20, 6), sae(rows * scale) / scale)


# --- no leak of the answer --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_an_untrained_autoencoder_knows_nothing_of_the_dictionary(seed, dice):
    """Data and weights drawn from one seed must not share a stream."""
    data = synthetic.preset("imbalanced", n_rows=100, seed=seed)
    sae = GroupBiasAdaptation().build(data.d_in, 512, normalisation=NONE, seed=seed)
    independent = torch.nn.functional.normalize(torch.randn(512, data.d_in, generator=dice), dim=1)
    assert best_cosines(sae, data.dictionary).max() < best_cosines(independent, data.dictionary).max() + 0.15


# --- settings ---------------------------------------------------------------------------------------


def undescribed(cls):
    """What is missing in the fields of a method, for its author."""
    return [
        f"{cls.__name__}.{field.name} has no help; write field(default=…, metadata={{'help': '…'}})"
        for field in dataclasses.fields(cls)
        if len(field.metadata.get("help", "")) < 10
    ]


def test_a_setting_without_help_is_named():
    @dataclasses.dataclass(frozen=True)
    class New(BiasAdaptation):
        """Another method."""

        pace: int = 3

    assert undescribed(New) == ["New.pace has no help; write field(default=…, metadata={'help': '…'})"]


@pytest.mark.parametrize("cls", [*METHODS.values(), Frozen])
def test_every_setting_says_what_it_is(cls):
    assert undescribed(cls) == []
    for field in dataclasses.fields(cls):
        assert f"\n    {field.name}: {field.metadata['help']}" in cls.__doc__
        assert field.metadata["help"].endswith(".")
        assert "``" not in field.metadata["help"], "the command line shows it as it is"
    assert cls.__doc__.count("\nAttributes:\n") == 1
