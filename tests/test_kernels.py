"""The sparse step against plain PyTorch and autograd in float64."""

import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import sae_lib
from sae_lib import kernels
from sae_lib.kernels import cpu, reference
from sae_lib.methods import BatchTopK, JumpReLU, Matryoshka
from sae_lib.methods.base import Run

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 20))
# from "everything fires" to "nothing does"
DENSITIES = st.sampled_from([1.0, 0.5, 0.1, 0.01, 0.0])


def draw(shape, density, seed, dtype=torch.float64):
    """Rows, weight, and a bar that about this share of the pre-activations clears."""
    n_rows, width, d = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_rows, d, generator=generator, dtype=dtype)
    weight = normalize(torch.randn(width, d, generator=generator, dtype=dtype), dim=1)
    bar = (x @ weight.T).quantile(1 - density) - (1e-6 if density == 1 else 0)
    return x, weight, bar + torch.zeros(width, dtype=dtype)


def same(ours, theirs):
    assert ours.shape == theirs.shape
    assert all(torch.equal(a, b) for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True))


@settings(max_examples=40, deadline=None)
@given(SHAPES, DENSITIES, st.integers(0, 1000))
@example((3, 1, 1), 1.0, 0)
@example((1, 64, 3), 0.1, 0)
@example((5, 1100, 7), 0.01, 0)  # more than one chunk, the last one not full
def test_compiled_operations_equal_the_plain_ones(shape, density, seed):
    x, weight, bar = draw(shape, density, seed)
    peak, support, u = cpu.scan(x, weight, bar)
    expected_peak, expected, expected_u = reference.scan(x, weight, bar)
    same(support, expected)
    torch.testing.assert_close(peak, expected_peak)
    torch.testing.assert_close(u, expected_u)
    torch.testing.assert_close(
        cpu.decode(u, support, weight), reference.decode(u, expected, weight), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        cpu.dots(x, support, weight), reference.dots(x, expected, weight), rtol=1e-9, atol=1e-12
    )
    ours, theirs = weight.clone(), weight.clone()
    cpu.accumulate(u, support, x, ours)
    reference.accumulate(u, expected, x, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SHAPES, DENSITIES, st.integers(0, 1000))
def test_index_sorts_any_order_of_entries(shape, density, seed):
    x, weight, bar = draw(shape, density, seed)
    rows, latents = (x @ weight.T > bar).nonzero(as_tuple=True)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for backend in (cpu, reference):
        support, order = backend.index(rows[shuffled], latents[shuffled], (len(x), len(weight)))
        same(support, reference.scan(x, weight, bar)[1])
        assert torch.equal(rows[shuffled][order], support.rows)
        assert torch.equal(latents[shuffled][order], support.latents)


def test_support_lists_every_entry_twice_by_latent_and_by_row():
    codes = torch.tensor([[0.0, 2, 0], [1, 3, 0]])
    _, support, _ = reference.scan(codes, torch.eye(3), torch.zeros(3))
    assert support.rows.tolist() == [1, 0, 1]
    assert support.latents.tolist() == [0, 1, 1]
    assert support.latent_ends.tolist() == [0, 1, 3, 3]
    assert support.rows[support.row_order].tolist() == [0, 1, 1]
    assert support.row_ends.tolist() == [0, 1, 3]


def test_sparse_codes_answer_like_a_tensor():
    x, weight, bar = draw((9, 30, 4), 0.1, 0)
    _, support, u = reference.scan(x, weight, bar)
    u[0] = 0
    codes, dense = kernels.SparseCodes(u, support), kernels.SparseCodes(u, support).to_dense()
    assert len(codes) == 9
    assert codes.count_nonzero() == dense.count_nonzero() == len(u) - 1
    for dim in (0, 1):
        torch.testing.assert_close(codes.sum(dim=dim), dense.sum(dim=dim))
        assert torch.equal(codes.count_nonzero(dim=dim), dense.count_nonzero(dim=dim))


METHODS = {
    "gba": sae_lib.GroupBiasAdaptation(groups=2),
    "gba untied, centred": sae_lib.GroupBiasAdaptation(groups=2, tied=False, centre=True),
    "gba centred": sae_lib.GroupBiasAdaptation(groups=2, centre=True),
    "l1": sae_lib.L1(0.1, centre=True),
    "topk": sae_lib.TopK(k=2, centre=True),
    "topk tied": sae_lib.TopK(k=2, tied=True),
    "batch topk": BatchTopK(k=1.5, centre=True),
    "jumprelu": JumpReLU(0.1, bandwidth=0.3, threshold=0.2, centre=True),
    "matryoshka": Matryoshka(k=2, centre=True),
    "matryoshka tied": Matryoshka(k=2, centre=True, tied=True),
}


def begin(method, shape, seed):
    """An autoencoder of the method in float64, with parameters away from where training starts."""
    x, _, _ = draw(shape, 0.5, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    sae = method.build(shape[2], shape[1], normalisation=sae_lib.Normalisation(), seed=seed).double()
    run = method.start(sae, x).double()
    with torch.no_grad():
        for parameter in (sae.scale, sae.bias, sae.pre_bias):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise * parameter.requires_grad)
        if sae.activation == "jumprelu":
            sae.bias.clamp_(max=-0.1)
    return sae, run, x


def gradients(one_pass, sae, run, x):
    for parameter in (*sae.parameters(), *run.parameters()):
        parameter.grad = None
    step = one_pass(sae, x)
    step.loss.backward()
    named = [*sae.named_parameters(), *run.named_parameters()]
    return step, {name: p.grad for name, p in named if p.requires_grad}


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=15, deadline=None)
@given(shape=st.tuples(st.integers(2, 20), st.integers(2, 80), st.integers(1, 12)), seed=st.integers(0, 99))
def test_a_sparse_step_equals_the_dense_one(name, shape, seed):
    sae, run, x = begin(METHODS[name], shape, seed)
    dense, expected = gradients(run.dense, sae, run, x)
    sparse, found = gradients(run.sparse, sae, run, x)
    torch.testing.assert_close(sparse.loss, dense.loss)
    torch.testing.assert_close(sparse.codes.to_dense(), dense.codes)
    torch.testing.assert_close(sparse.error, dense.error)
    assert torch.equal(sparse.codes.count_nonzero(dim=0), dense.codes.count_nonzero(dim=0))
    if sparse.peak is not None:
        torch.testing.assert_close(sparse.highest(), dense.highest())
    assert found.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-8, atol=1e-11)


def test_a_step_without_any_code_has_a_loss_and_zero_gradients():
    sae, run, x = begin(METHODS["gba"], (5, 20, 4), 0)
    with torch.no_grad():
        sae.bias.fill_(-1e3)
    step, found = gradients(run.sparse, sae, run, x)
    assert step.loss == 0.5 * x.square().sum(dim=1).mean()
    assert not any(gradient.any() for gradient in found.values())


@pytest.fixture
def always(monkeypatch):
    """Every step is worth the sparse path."""
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    monkeypatch.setitem(kernels.DENSEST, "cpu", 1.0)


@pytest.mark.parametrize("name", ["gba", "topk", "jumprelu"])
def test_training_by_sparse_steps_ends_where_dense_ones_do(name, monkeypatch):
    data = sae_lib.synthetic.preset("imbalanced", n_rows=2000)
    settings = {"width": 64, "steps": 30, "batch_size": 64, "log_every": 10}
    dense, dense_log = sae_lib.train(data, METHODS[name], **settings)
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    monkeypatch.setitem(kernels.DENSEST, "cpu", 1.0)
    monkeypatch.setattr(Run, "dense", None)  # not to be called
    sparse, log = sae_lib.train(data, METHODS[name], **settings)
    torch.testing.assert_close(sparse.weight, dense.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sparse.bias, dense.bias, rtol=1e-3, atol=1e-4)
    assert log.column("l0") == pytest.approx(dense_log.column("l0"), abs=0.05)


def test_a_run_of_sparse_steps_resumes_to_the_same_bits(always, tmp_path):
    data = sae_lib.synthetic.preset("imbalanced", n_rows=2000)
    settings = {"width": 64, "batch_size": 64, "steps": 20, "checkpoint_every": 7}
    whole, _ = sae_lib.train(data, METHODS["gba"], **settings)

    def stop(step, _):
        if step == 9:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        sae_lib.train(data, METHODS["gba"], **settings, folder=tmp_path, callback=stop, log_every=1)
    resumed, _ = sae_lib.train(data, METHODS["gba"], **settings, folder=tmp_path, resume=True)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_dense_until_few_codes_are_left_and_again_when_they_return(monkeypatch):
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    sae, run, x = begin(METHODS["gba"], (50, 100, 10), 0)
    taken = []
    for bias in (-0.1, -3.0, -3.0, -0.1, -0.1):
        with torch.no_grad():
            sae.bias.fill_(bias)
        taken.append(run(sae, x).projection is None)
    # a step goes by the density of the one before
    assert taken == [False, False, True, True, False]


def test_small_steps_and_other_devices_stay_dense():
    assert not kernels.supported(torch.zeros(10, 10), 10 * 100)
    assert kernels.supported(torch.zeros(1024, 576), 1024 * 9216)
    assert not kernels.supported(torch.zeros(1024, 576, dtype=torch.bfloat16), 1024 * 9216)
    assert not kernels.supported(torch.zeros(1024, 576, device="meta"), 1024 * 9216)


def test_the_number_of_threads_stays_as_it_was_set():
    """Numba's first parallel loop would otherwise give PyTorch all cores."""
    code = """
import torch
from sae_lib.kernels import cpu
torch.set_num_threads(1)
cpu.scan(torch.randn(8, 4), torch.randn(6, 4), torch.zeros(6))
assert torch.get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
