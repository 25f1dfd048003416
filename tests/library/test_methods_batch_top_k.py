"""TopK, BatchTopK and Matryoshka against brute force and against SAELens's own training code."""

import pytest
import torch
from rounding import clear_rows

import sae_lib
from sae_lib import BatchTopK, Matryoshka, Normalisation, TopK, synthetic
from sae_lib.methods.batch_top_k import THRESHOLD_RATE, largest_of_batch
from sae_lib.methods.matryoshka import prefix_sizes
from sae_lib.randomness import generator

NONE = Normalisation()
D, M, B = 6, 20, 16


@pytest.fixture
def sae_lens(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")


@pytest.fixture
def data():
    return synthetic.preset("imbalanced", n_rows=20_000)


def random_(sae):
    """Weights as after some training, in float64: rows of any length in a free encoder, biases, a centre."""
    stream = generator(7, "a trained autoencoder")
    with torch.no_grad():
        for p in (sae.weight, sae.decoder, sae.bias, sae.pre_bias):
            p.add_(0.3 * torch.randn(p.shape, generator=stream))
        sae.unit_rows_()
    return sae.double()


def batch(n=B, seed=3):
    return torch.randn(n, D, dtype=torch.float64, generator=generator(seed, "batch"))


def like(sae, theirs):
    """SAELens's training autoencoder with the weights of ours."""
    with torch.no_grad():
        theirs.W_enc.copy_(sae.weight.T)
        theirs.W_dec.copy_(sae.decoder)
        theirs.b_enc.copy_(sae.bias)
        theirs.b_dec.copy_(sae.pre_bias)
    return theirs


def their_step(theirs, x, dead=None):
    from sae_lens.saes.sae import TrainStepInput

    step = TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=1, is_logging_step=False
    )
    return theirs.training_forward_pass(step)


def config(**settings):
    return {
        "d_in": D,
        "d_sae": M,
        "dtype": "float64",
        "device": "cpu",
        "aux_loss_coefficient": 1 / 32,
    } | settings


# --- which codes fire ---------------------------------------------------------------------------------


def test_the_largest_codes_of_the_batch_by_sorting():
    y = torch.relu(torch.randn(11, 7, generator=generator(0, "codes")))
    kept = largest_of_batch(y, 1.5)
    order = sorted(
        ((value, i, j) for i, row in enumerate(y.tolist()) for j, value in enumerate(row)), reverse=True
    )
    expected = torch.zeros_like(y)
    for value, i, j in order[: int(1.5 * 11)]:
        expected[i, j] = value
    assert torch.equal(kept, expected)
    # rows share the codes: they do not get the same number of them
    assert (kept > 0).sum(dim=1).unique().numel() > 1


def test_fewer_positive_codes_than_asked_for():
    y = torch.zeros(4, 5)
    y[1, 2], y[3, 0] = 0.3, 2.0
    assert torch.equal(largest_of_batch(y, 3), y)


def test_the_threshold_is_the_mean_smallest_code():
    """Closed form: after t batches Σ_i r(1 − r)^(t−i) m_i / (1 − (1 − r)^t)."""
    method = BatchTopK(k=2, aux_coefficient=0)
    sae = method.build(D, M, normalisation=NONE, seed=0)
    run = method.start(sae, torch.zeros(1, D))
    smallest = []
    for number in range(1, 6):
        x = number * torch.randn(B, D, generator=generator(number, "x"))
        step = run(sae, x)
        assert (step.codes > 0).sum() == 2 * B
        smallest.append(step.codes[step.codes > 0].min().item())
        run.after_step(sae, step, number)
    decay = torch.tensor([(1 - THRESHOLD_RATE) ** (5 - i) for i in range(1, 6)])
    expected = (decay * torch.tensor(smallest)).sum() / decay.sum()
    torch.testing.assert_close(sae.threshold, expected.expand(M))
    # a batch in which nothing fires changes nothing
    before = sae.threshold.clone()
    nothing = step._replace(codes=torch.zeros_like(step.codes))
    run.after_step(sae, nothing, 6)
    torch.testing.assert_close(sae.threshold, before)


# --- SAELens ------------------------------------------------------------------------------------------


def test_topk_codes_and_loss_are_saelens_own(sae_lens):
    """Their loss is Σ_j error², averaged over rows: twice ours (½). Decoder rows have unit norm, so the
    rescaling by decoder norm that they turn on by default changes nothing."""
    sae = random_(TopK(k=3).build(D, M, normalisation=NONE, seed=1))
    theirs = like(sae, sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**config(k=3))))
    x = batch()
    run = TopK(k=3).start(sae, x)
    step, output = run(sae, x), their_step(theirs, x)
    torch.testing.assert_close(step.codes, output.feature_acts)
    torch.testing.assert_close(2 * step.loss, output.loss)
    torch.testing.assert_close(step.error + x, output.sae_out)


def test_auxiliary_loss_is_saelens_own_up_to_its_scale(sae_lens):
    """Theirs: α · min(n_dead/(d/2), 1) · ‖ê − e‖². Ours: α · ‖ê − e‖² / ‖e‖², the source's normalisation.

    ê is the same as long as the strongest dead latents are above 0; below, theirs count and ours do not.
    """
    method = TopK(k=3)
    sae = random_(method.build(D, M, normalisation=NONE, seed=1))
    with torch.no_grad():
        sae.bias[10:14] += 20.0
    theirs = like(sae, sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**config(k=3))))
    x = batch()
    run = method.start(sae, x)
    plain = run(sae, x)
    for n_dead, scale in ((2, 2 / 3), (4, 1.0)):
        run.dead[:] = False
        run.dead[10 : 10 + n_dead] = True
        run._any_dead = None
        output = their_step(theirs, x, dead=run.dead)
        auxiliary = run(sae, x).loss - plain.loss
        size = plain.error.square().sum(dim=1).mean()
        torch.testing.assert_close(scale * size * auxiliary, output.losses["auxiliary_reconstruction_loss"])


def test_batch_topk_codes_loss_and_threshold_are_saelens_own(sae_lens):
    """Loss: twice ours. Threshold: theirs starts at 0 and forgets that slowly, θ_theirs = (1 − 0.99^t) θ."""
    method = BatchTopK(k=2.5)
    sae = random_(method.build(D, M, normalisation=NONE, seed=1))
    settings = config(k=2.5, topk_threshold_lr=THRESHOLD_RATE)
    theirs = like(sae, sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**settings)))
    run = method.start(sae, batch()).double()
    for number in range(1, 8):
        x = batch(seed=number)
        step, output = run(sae, x), their_step(theirs, x)
        torch.testing.assert_close(step.codes, output.feature_acts)
        torch.testing.assert_close(2 * step.loss, output.loss)
        run.after_step(sae, step, number)
        forgotten = 1 - (1 - THRESHOLD_RATE) ** number
        torch.testing.assert_close(forgotten * sae.threshold[0], theirs.topk_threshold)


def test_matryoshka_codes_and_loss_are_saelens_own(sae_lens):
    """Theirs adds the loss of every inner width to that of the whole, with equal weights, without ½."""
    widths = [2, 5, 11]
    method = Matryoshka(k=2.5, prefixes=tuple(widths))
    sae = random_(method.build(D, M, normalisation=NONE, seed=1))
    settings = config(k=2.5, matryoshka_widths=[*widths, M])
    theirs = like(
        sae,
        sae_lens.MatryoshkaBatchTopKTrainingSAE(sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**settings)),
    )
    run, x = method.start(sae, batch()).double(), batch()
    step, output = run(sae, x), their_step(theirs, x)
    torch.testing.assert_close(step.codes, output.feature_acts)
    torch.testing.assert_close(2 * step.loss, output.loss)
    torch.testing.assert_close(step.error + x, output.sae_out)
    step.loss.backward()
    output.loss.backward()
    torch.testing.assert_close(2 * sae.weight.grad, theirs.W_enc.grad.T)
    torch.testing.assert_close(2 * sae.bias.grad, theirs.b_enc.grad)


@pytest.mark.parametrize("cls", [BatchTopK, Matryoshka])
def test_saelens_loads_a_trained_one(cls, sae_lens, tmp_path, data):
    sae, _ = sae_lib.train(data, cls(k=4), width=64, steps=100, folder=tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    x = data.rows[:500]
    clear = clear_rows(sae, x)
    assert clear.double().mean() > 0.9
    x = x[clear]
    codes = sae.encode(x)
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), codes, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs(x), sae(x), atol=1e-5, rtol=1e-5)
    again = sae_lib.load(tmp_path)
    assert again.activation == "threshold"
    torch.testing.assert_close(again.encode(x), codes, atol=1e-5, rtol=1e-5)


# --- Matryoshka ---------------------------------------------------------------------------------------


def test_matryoshka_loss_by_decoding_every_prefix(dice):
    method = Matryoshka(k=4, prefixes=(0.1, 0.5), tied=True)
    sae = method.build(D, M, normalisation=NONE, seed=1).double()
    with torch.no_grad():
        sae.scale.uniform_(0.5, 1.5, generator=dice)
        sae.pre_bias.normal_(generator=dice)
    run, x = method.start(sae, batch()).double(), batch()
    step = run(sae, x)
    z = largest_of_batch(torch.relu((x - sae.pre_bias) @ sae.weight.T), 4)
    expected = 0.0
    for size in (2, 10, M):
        prefix = z * (torch.arange(M) < size)
        expected = expected + 0.5 * (sae.decode(prefix) - x).square().sum(dim=1).mean()
    torch.testing.assert_close(step.loss, expected)


def test_one_prefix_is_batch_topk():
    x = batch().float()
    steps = []
    for method in (BatchTopK(k=2), Matryoshka(k=2, prefixes=(1,))):
        sae = method.build(D, M, normalisation=NONE, seed=1)
        steps.append(method.start(sae, x)(sae, x))
    torch.testing.assert_close(steps[0].loss, steps[1].loss)
    assert torch.equal(steps[0].codes, steps[1].codes)


@pytest.mark.parametrize(
    ("prefixes", "width", "expected"),
    [
        ((1 / 32, 3 / 32, 7 / 32, 15 / 32), 65536, [2048, 6144, 14336, 30720, 65536]),
        ((0.25, 0.5, 1.0), 512, [128, 256, 512]),
        ((1,), 7, [7]),
        ((1, 3), 7, [1, 3, 7]),
        ((3, 7), 7, [3, 7]),
        # narrow: shares that come to the same size count once
        ((0.01, 0.02, 0.5), 10, [1, 5, 10]),
    ],
)
def test_sizes_of_prefixes(prefixes, width, expected):
    assert prefix_sizes(prefixes, width) == expected


def test_the_first_prefix_of_a_matryoshka_rebuilds_more_than_that_of_a_batch_topk(data):
    alone = {}
    for method in (BatchTopK(k=4), Matryoshka(k=4, prefixes=(0.25,))):
        sae, _ = sae_lib.train(data, method, width=64, steps=300)
        first = sae.encode(data.rows[:2000]) * (torch.arange(64) < 16)
        error = sae.decode(first) - data.rows[:2000]
        alone[method.name] = (error.square().sum() / data.rows[:2000].square().sum()).item()
    assert alone["matryoshka"] < 0.9 * alone["batch_topk"]


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_on_rows_not_seen_the_threshold_lets_k_codes_through(tied):
    data = synthetic.preset("imbalanced", n_rows=60_000)
    method = BatchTopK(k=4, tied=tied)
    sae, log = sae_lib.train(data.rows[:50_000], method, width=128, steps=600)
    # training shares exactly k codes a row; a threshold only does so on average
    assert log.column("l0")[-1] == 4.0
    held_out = data.rows[50_000:]
    l0 = (sae.encode(held_out) != 0).sum(dim=1).float().mean().item()
    assert l0 == pytest.approx(4, rel=0.05)
    assert log.column("nmse")[-1] < 0.8 * log.column("nmse")[0]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [TopK, BatchTopK, Matryoshka])
def test_the_auxiliary_loss_revives_dead_latents(cls, data):
    """Half of the latents start too low to fire; without the auxiliary loss they stay there."""
    alive = {}
    for coefficient in (0.0, 1 / 32):
        method = cls(k=3, dead_after=50, aux_coefficient=coefficient)
        sae = method.build(data.d_in, 64, normalisation=NONE, seed=0)
        run = method.start(sae, data.rows[:1000])
        with torch.no_grad():
            sae.bias[32:] = -0.5
        parameters = [p for p in sae.parameters() if p.requires_grad]
        optimiser = method.optimiser(parameters, 3e-3, 0.0)
        fired = torch.zeros(64, dtype=torch.bool)
        batches = data.batches(256, seed=0, start=0)
        for number in range(1, 401):
            step = run(sae, next(batches))
            optimiser.zero_grad()
            step.loss.backward()
            optimiser.step()
            sae.unit_rows_()
            run.after_step(sae, step, number)
            if number > 300:
                fired |= (step.codes > 0).any(dim=0)
        alive[coefficient] = fired[32:].sum().item()
    assert alive[1 / 32] > alive[0.0] + 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BatchTopK(k=0), "k is 0; expected above 0"),
        (lambda: BatchTopK(k=float("nan")), "k is nan"),
        (lambda: BatchTopK(k=11).build(4, 10, normalisation=NONE, seed=0), "k is 11; expected at most 10"),
        (lambda: BatchTopK(dead_after=0), "dead_after is 0"),
        (lambda: BatchTopK(aux_coefficient=-1), "aux_coefficient is -1"),
        (lambda: largest_of_batch(torch.ones(5, 3), 0.1), "k=0.1 of a batch of 5 rows"),
        (lambda: TopK(k=2.5), "whole number"),
        (lambda: Matryoshka(k=0), "k is 0; expected above 0"),
        (lambda: Matryoshka(prefixes=()), "prefixes is empty"),
        (lambda: Matryoshka(prefixes=(0.5, 0.2)), r"prefixes is \(0.5, 0.2\); .* each larger"),
        (lambda: Matryoshka(prefixes=(0, 5)), "sizes above 0"),
        (lambda: Matryoshka(prefixes=(0.5, 8)), "whole numbers of latents"),
        (lambda: Matryoshka(k=2, prefixes=(4, 12)).build(4, 10, normalisation=NONE, seed=0), "at most 10"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
