"""The step of rows from sums over entries against torch's AdamW, in float64 and in its own state."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import METHODS, begin, gradients

import sae_lib
from sae_lib import kernels
from sae_lib.kernels import adam, reference, screen, units
from sae_lib.kernels.row_sums import RowSum
from sae_lib.kernels.screen import Rounded
from sae_lib.training.updating import Update


def sums(shape, n_sums, seed):
    """Sums over about a tenth of all entries, and the dense gradient that they are."""
    n_rows, width, d = shape
    generator = torch.Generator().manual_seed(seed)
    parts, dense = [], torch.zeros(width, d, dtype=torch.float64)
    for _ in range(n_sums):
        entries = (torch.rand(n_rows, width, generator=generator) < 0.1).nonzero(as_tuple=True)
        support, _ = reference.index(*entries, (n_rows, width))
        values = torch.randn(len(support), generator=generator)
        vectors = torch.randn(n_rows, d, generator=generator)
        parts.append(RowSum.over(support, values, vectors))
        reference.accumulate(values.double(), support, vectors.double(), dense)
    return parts, dense


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 150), st.integers(1, 40)),
    n_sums=st.integers(1, 2),
    unit=st.booleans(),
    with_dense=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.999)]),
    seed=st.integers(0, 99),
)
def test_steps_are_those_of_adamw(shape, n_sums, unit, with_dense, weight_decay, betas, seed):
    start = torch.nn.functional.normalize(
        torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed)), dim=1
    )
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.double())
    settings_ = {"lr": 0.01, "weight_decay": weight_decay, "betas": betas}
    optimisers = [
        torch.optim.AdamW([p], **settings_, fused=fused) for p, fused in ((ours, True), (theirs, False))
    ]
    rounded = Rounded(ours)
    for step in range(4):
        parts, dense = sums(shape, n_sums, 10 * seed + step)
        if with_dense:
            ours.grad = torch.full_like(ours, 0.1)
            dense = dense + 0.1
        theirs.grad = dense
        version = ours._version
        adam.step(optimisers[0], ours, parts, unit=unit, rounded=rounded)
        assert ours.grad is None
        assert ours._version > version
        optimisers[1].step()
        with torch.no_grad():
            if unit:
                theirs /= theirs.norm(dim=1, keepdim=True).clamp_min(1e-12)
        # where a gradient is next to nothing, ε = 1e-8 makes a step depend on its last bits
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-6)
    assert torch.equal(rounded.low, ours.bfloat16())
    version = rounded.version
    assert rounded.refresh().version == version == ours._version
    for name in ("step", "exp_avg", "exp_avg_sq"):
        state = optimisers[0].state[ours][name]
        torch.testing.assert_close(
            state.double(), optimisers[1].state[theirs][name].double(), rtol=1e-4, atol=1e-6
        )


def test_torch_continues_from_its_state():
    parameter = torch.nn.Parameter(torch.randn(12, 5))
    other = copy.deepcopy(parameter)
    parts, dense = sums((6, 12, 5), 1, 0)
    one, two = (torch.optim.AdamW([p], lr=0.1, fused=True) for p in (parameter, other))
    adam.step(one, parameter, parts, unit=False, rounded=None)
    other.grad = dense.float()
    two.step()
    restored = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    restored.load_state_dict(copy.deepcopy(one.state_dict()))
    for p, optimiser in ((parameter, restored), (other, two)):
        p.grad = torch.ones_like(p)
        optimiser.step()
    torch.testing.assert_close(parameter, other)
    assert one.state_dict()["state"][0].keys() == two.state_dict()["state"][0].keys()


@pytest.fixture
def screened(monkeypatch):
    """Every sparse step is screened, on whatever processor."""
    monkeypatch.setattr(units, "bfloat16_is_fast", lambda *shape: True)
    monkeypatch.setattr(kernels, "SMALLEST_SCREENED", 0)
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    monkeypatch.setitem(kernels.DENSEST, "cpu", 1.0)
    monkeypatch.setattr(screen, "MOST", 1.0)


RUN = {"width": 90, "steps": 30, "batch_size": 64, "log_every": 10, "lr": 0.003}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_a_screened_step_are_those_of_the_dense_one(name, seed, screened):
    sae, run, x = begin(METHODS[name], (20, 80, 12), seed)
    single = [copy.deepcopy(part).float() for part in (sae, run)]
    # both start from the numbers of the float32 copies
    for double, rounded in zip((sae, run), single, strict=True):
        double.load_state_dict(rounded.state_dict())
    dense, expected = gradients(run.dense, sae, run, x.float().double())
    (sae, run), x = single, x.float()
    run.screen, run.sums = screen.Screen(), []
    step, computed = gradients(lambda sae, x: run.sparse(sae, x, run.screen), sae, run, x)
    torch.testing.assert_close(step.codes.to_dense().double(), dense.codes, rtol=1e-4, atol=1e-5)
    for key, parameter in (*sae.named_parameters(), *run.named_parameters()):
        total = torch.zeros_like(parameter) if computed.get(key) is None else computed[key]
        for weight, part in run.sums:
            if weight is parameter:
                of_entry = torch.arange(len(parameter)).repeat_interleave(part.latent_ends.diff())
                total.index_add_(0, of_entry, part.values[:, None] * part.vectors[part.rows])
        if parameter.requires_grad:
            torch.testing.assert_close(total.double(), expected[key], rtol=1e-3, atol=1e-5)
    encoder = run.gate_weight if name == "gated" else sae.weight
    assert {id(weight) for weight, _ in run.sums} == {id(encoder), id(sae.decoder_rows)}


# without methods whose first gradients are zero but for rounding, which AdamW makes as large as any
@pytest.mark.parametrize("name", ["gba", "l1", "topk tied", "jumprelu"])
def test_screened_training_equals_plain_training(name, screened, monkeypatch):
    """Thirty steps, so that a wrong rate, a stale copy or a lost gradient would show."""
    data = sae_lib.synthetic.uniform(n_rows=2000)
    ours, log = sae_lib.train(data, METHODS[name], **RUN)
    monkeypatch.setattr(kernels, "screen_for", lambda x, width: None)
    theirs, plain = sae_lib.train(data, METHODS[name], **RUN)
    assert all(row["candidates"] >= 1 for row in log if row["l0"])
    assert "candidates" not in plain[0]
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["gba", "topk", "matryoshka tied"])
def test_a_screened_run_resumes_with_the_same_bits(name, screened, tmp_path):
    data = sae_lib.synthetic.uniform(n_rows=2000)
    whole, _ = sae_lib.train(data, METHODS[name], **RUN)

    class Stop(Exception):
        pass

    def stop(number, sae):
        if number == 20:
            raise Stop

    with pytest.raises(Stop):
        sae_lib.train(data, METHODS[name], **RUN, folder=tmp_path, checkpoint_every=15, callback=stop)
    resumed, _ = sae_lib.train(data, METHODS[name], **RUN, folder=tmp_path, checkpoint_every=15, resume=True)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_other_optimisers_get_their_gradients(screened):
    """A method with an optimiser of its own trains by it, screened or not."""

    class Slow(sae_lib.L1):
        def optimiser(self, parameters, lr, weight_decay):
            return torch.optim.SGD(parameters, lr)

    data = sae_lib.synthetic.uniform(n_rows=500)
    method = Slow(0.001)
    sae = method.build(data.d_in, 40, normalisation=data.normalisation, seed=0)
    run = method.start(sae, data.rows[:100])
    update = Update(sae, run, method.optimiser([*sae.parameters()], 0.1, 0.0))
    assert run.sums is None
    before = sae.weight.detach().clone()
    for _ in range(2):
        update(run(sae, data.rows[:64]).loss)
    assert not torch.equal(before, sae.weight)
