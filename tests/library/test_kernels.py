"""The sparse step against plain PyTorch and autograd in float64."""

import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rounding import InDouble, InDoubleRows, bar_between
from torch.nn.functional import normalize

import sae_lib
from sae_lib import kernels
from sae_lib.kernels import cpu, reference, sparse_codes
from sae_lib.methods import BatchTopK, Gated, JumpReLU, Matryoshka, bias_adaptation
from sae_lib.methods.bias_adaptation import group_index, group_sums
from sae_lib.methods.trainer import Trainer

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 20))
# from "everything fires" to "nothing does"
DENSITIES = st.sampled_from([1.0, 0.5, 0.1, 0.01, 0.0])


def draw(shape, density, seed, dtype=torch.float64):
    """Rows, weight, and a bar that about this share of the pre-activations clears, none of them narrowly."""
    n_rows, width, d = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_rows, d, generator=generator, dtype=dtype)
    weight = normalize(torch.randn(width, d, generator=generator, dtype=dtype), dim=1)
    return x, weight, torch.full((width,), bar_between(x @ weight.T, density), dtype=dtype)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_an_entry_equal_to_its_bar_does_not_fire(backend, dtype):
    """Small whole numbers, so that no order of summation rounds: the bar of a latent is its u on some row."""
    (n_rows, width, d), generator = (9, 1100, 7), torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (n_rows, d), generator=generator).to(dtype)
    weight = torch.randint(-4, 5, (width, d), generator=generator).to(dtype)
    u, latents = x @ weight.T, torch.arange(width)
    bar = u[latents % n_rows, latents]
    for limit, fires in ((bar, u > bar), (bar - 0.5, u >= bar)):
        peak, support, values = backend.scan(x, weight, limit)
        assert torch.equal(peak, u.amax(dim=0))
        same(support, reference.index(*fires.nonzero(as_tuple=True), fires.shape)[0])
        assert torch.equal(values, u[support.rows, support.latents])


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


def in_fixed_order(monkeypatch):
    """Sums as they are taken on a GPU, where ``index_add`` has no fixed order."""
    for module in (sparse_codes, bias_adaptation):
        monkeypatch.setattr(module, "in_any_order", lambda values: values.is_floating_point())


@settings(max_examples=30, deadline=None)
@given(SHAPES, DENSITIES, st.integers(0, 1000))
def test_sums_in_a_fixed_order_equal_those_of_index_add(shape, density, seed):
    x, weight, bar = draw(shape, density, seed)
    _, entries, u = reference.scan(x, weight, bar)
    u.requires_grad_(True)
    codes = kernels.SparseCodes(u, entries)
    vector = weight[:, 0].clone().requires_grad_(True)
    results = []
    for gpu in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if gpu:
                in_fixed_order(patch)
            of_rows, of_latents = codes.sum(dim=1), codes.sum(dim=0)
            counts = codes.count_nonzero(dim=0)
            spread = (entries.at_latents(vector) * u).sum() + (of_rows * x[:, 0]).sum()
            results.append([of_rows, of_latents, counts, *torch.autograd.grad(spread, (u, vector))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_group_sums_in_a_fixed_order_put_every_latent_in_its_group(monkeypatch):
    values, group = torch.arange(1.0, 8.0), group_index(7, 3)
    plain = group_sums(values, group, 4)
    in_fixed_order(monkeypatch)
    assert group_sums(values, group, 4).tolist() == plain.tolist() == [6.0, 9.0, 13.0, 0.0]


def test_no_sum_of_a_sparse_step_is_left_to_index_add(monkeypatch):
    """On a GPU it would give other bits every time; the backend is another one there."""
    values, index_add = {}, torch.Tensor.index_add

    def of_whole_numbers(self, *arguments):
        assert not self.is_floating_point()
        return index_add(self, *arguments)

    for gpu in (False, True):
        sae, run, x = begin(sae_lib.GroupBiasAdaptation(groups=2, tied=False, centre=True), (20, 50, 8), 0)
        with monkeypatch.context() as patch:
            if gpu:
                in_fixed_order(patch)
                patch.setattr(torch.Tensor, "index_add", of_whole_numbers)
            step, values[gpu] = gradients(run.sparse, sae, run, x)
            run.method = sae_lib.GroupBiasAdaptation(groups=2, every=1, gamma=1.0)
            run.after_step(sae, step, 1)
            values[gpu] |= {"new bias": sae.bias.detach()} | {
                name: torch.tensor(value) for name, value in run.metrics(sae).items()
            }
    for name, value in values[False].items():
        torch.testing.assert_close(values[True][name], value, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SHAPES, DENSITIES, st.integers(0, 1000), st.lists(st.integers(1, 149), max_size=4))
def test_parts_of_a_support_are_the_supports_of_blocks_of_latents(shape, density, seed, ends):
    x, weight, bar = draw(shape, density, seed)
    _, entries, u = reference.scan(x, weight, bar)
    sizes = sorted({end for end in ends if end < shape[1]} | {shape[1]})
    first, seen = 0, 0
    for (positions, part), end in zip(entries.parts(sizes), sizes, strict=True):
        limit = torch.full_like(bar, torch.inf)
        limit[first:end] = bar[first:end]
        _, expected, expected_u = reference.scan(x, weight, limit)
        same(part, expected)
        assert torch.equal(u[positions], expected_u)
        first, seen = end, seen + len(part)
    assert seen == len(entries)


METHODS = {
    "gba": sae_lib.GroupBiasAdaptation(groups=2),
    "gba untied, centred": sae_lib.GroupBiasAdaptation(groups=2, tied=False, centre=True),
    "gba centred": sae_lib.GroupBiasAdaptation(groups=2, centre=True),
    "l1": sae_lib.L1(0.1, centre=True),
    "topk": sae_lib.TopK(k=2, centre=True),
    "topk tied": sae_lib.TopK(k=2, tied=True),
    "batch topk": BatchTopK(k=1.5, centre=True),
    "jumprelu": JumpReLU(0.1, bandwidth=0.3, threshold=0.2, centre=True),
    "gated": Gated(0.1, centre=True),
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
    sparse, computed = gradients(run.sparse, sae, run, x)
    torch.testing.assert_close(sparse.loss, dense.loss)
    torch.testing.assert_close(sparse.codes.to_dense(), dense.codes)
    torch.testing.assert_close(sparse.error, dense.error)
    assert torch.equal(sparse.codes.count_nonzero(dim=0), dense.codes.count_nonzero(dim=0))
    if sparse.peak is not None:
        torch.testing.assert_close(sparse.highest(), dense.highest())
    assert computed.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(computed[parameter], expected[parameter], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    "method",
    [sae_lib.GroupBiasAdaptation(groups=1), sae_lib.L1(0.1), JumpReLU(0.1, bandwidth=0.25, threshold=0.5)],
    ids=lambda m: m.name,
)
def test_sparse_and_dense_step_agree_that_ties_do_not_fire(method):
    """u is 0.25, 0.5 or 0.75, to the bit; the gate opens above 0.5."""
    x = torch.eye(4).repeat(3, 1) * torch.tensor([0.25, 0.5, 0.75]).repeat_interleave(4)[:, None]
    sae = method.build(4, 4, normalisation=sae_lib.Normalisation(), seed=0)
    run = method.start(sae, x)
    with torch.no_grad():
        sae.weight.copy_(torch.eye(4))
        sae.bias.fill_(-0.5)
        if isinstance(method, JumpReLU):
            # a threshold of exp(0) = 1, which no processor rounds
            run.log_threshold.fill_(0.0)
            sae.bias.fill_(0.5)
    dense, sparse = run.dense(sae, x).codes, run.sparse(sae, x).codes.to_dense()
    assert torch.equal(dense != 0, x > 0.5)
    assert torch.equal(sparse != 0, x > 0.5)


def test_a_step_without_any_code_has_a_loss_and_zero_gradients():
    sae, run, x = begin(METHODS["gba"], (5, 20, 4), 0)
    with torch.no_grad():
        sae.bias.fill_(-1e3)
    step, computed = gradients(run.sparse, sae, run, x)
    assert step.loss == 0.5 * x.square().sum(dim=1).mean()
    assert not any(gradient.any() for gradient in computed.values())


def test_matryoshka_decodes_every_entry_once(monkeypatch):
    sae, run, x = begin(METHODS["matryoshka tied"], (20, 64, 8), 0)
    assert len(run.sizes) == 5
    looked_at = {}

    def counted(name):
        work = getattr(cpu, name)

        def count(*arguments):
            looked_at[name] = looked_at.get(name, 0) + len(arguments[1])
            return work(*arguments)

        return count

    for name in ("decode", "dots", "accumulate"):
        monkeypatch.setattr(cpu, name, counted(name))
    step, _ = gradients(run.sparse, sae, run, x)
    entries = len(step.codes.support)
    # tied: the encoder's share of the gradient is accumulated, too
    assert looked_at == {"decode": entries, "dots": entries, "accumulate": 2 * entries}


@pytest.fixture
def always(monkeypatch):
    """Every step is worth the sparse path."""
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    monkeypatch.setitem(kernels.DENSEST, "cpu", 1.0)


@pytest.mark.parametrize("name", ["gba", "topk", "jumprelu"])
def test_training_by_sparse_steps_ends_where_dense_ones_do(name, monkeypatch):
    """In float64: of the many pre-activations of a float32 run one may lie where its last bits decide."""
    data = InDoubleRows(sae_lib.synthetic.preset("imbalanced", n_rows=2000).rows)
    settings = {"width": 64, "steps": 30, "batch_size": 64, "log_every": 10}
    dense, dense_log = sae_lib.train(data, InDouble(METHODS[name]), **settings)
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    monkeypatch.setitem(kernels.DENSEST, "cpu", 1.0)
    monkeypatch.setattr(Trainer, "dense", None)  # not to be called
    sparse, log = sae_lib.train(data, InDouble(METHODS[name]), **settings)
    torch.testing.assert_close(sparse.weight, dense.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sparse.bias, dense.bias, rtol=1e-9, atol=1e-9)
    assert log.column("l0") == dense_log.column("l0")


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
    was_sparse = []
    for bias in (-0.1, -3.0, -3.0, -0.1, -0.1):
        with torch.no_grad():
            sae.bias.fill_(bias)
        was_sparse.append(run(sae, x).projection is None)
    # the density of one step decides the path of the next
    assert was_sparse == [False, False, True, True, False]


@pytest.mark.parametrize("bandwidth", [0.02, 1.6])
def test_jumprelu_goes_by_all_entries_it_has_to_look_at(bandwidth, monkeypatch):
    """A wide band selects most of what does not fire."""
    monkeypatch.setitem(kernels.SMALLEST, "cpu", 0)
    sae, run, x = begin(JumpReLU(0.1, bandwidth=bandwidth, threshold=0.9), (50, 100, 10), 0)
    with torch.no_grad():
        sae.bias.zero_()
        x = 0.5 * normalize(x, dim=1)
    dense = run(sae, x)
    near = (sae.project(x) > run.log_threshold.exp() - bandwidth / 2).sum()
    assert dense.projection is not None
    assert dense.codes.count_nonzero() == 0
    assert run.density == near / (50 * 100)
    # narrow: nothing to look at, so sparse from now on; wide: never
    assert (run(sae, x).projection is None) == (bandwidth == 0.02)
    entries = run.entries(sae, run.sparse(sae, x))
    assert entries == run.entries(sae, run.dense(sae, x)) == near


class Backend:
    """The plain operations, one of them wrong."""

    def __init__(self, operation, wrong):
        for name in ("scan", "index", "decode", "dots", "accumulate"):
            setattr(self, name, getattr(reference, name))
        setattr(self, operation, wrong)


def one_latent_less(x, weight, bar):
    bar = bar.clone()
    bar[7] = torch.inf
    return reference.scan(x, weight, bar)


def does_not_compile(*_):
    raise RuntimeError("no kernel image is available\nfor this device")


BROKEN = {
    "scan": (one_latent_less, "scan differs from the plain operation"),
    "index": (lambda rows, latents, shape: reference.index(rows.flip(0), latents, shape), "index differs"),
    "decode": (lambda *arguments: reference.decode(*arguments) * (1 + 1e-6), "decode differs"),
    "dots": (does_not_compile, "RuntimeError: no kernel image is available"),
    "accumulate": (lambda *_: None, "accumulate differs"),
}


@pytest.fixture
def untried(monkeypatch, always):
    """The CPU's backend has to pass the test that a GPU's has to."""
    monkeypatch.setattr(kernels, "UNTRIED", ("cpu",))
    kernels._passes.cache_clear()
    yield
    kernels._passes.cache_clear()


SHORT = {"width": 64, "steps": 12, "batch_size": 64, "log_every": 4}


@pytest.mark.parametrize("operation", BROKEN)
def test_a_backend_that_fails_its_self_check_is_left_alone_with_one_warning(operation, untried, monkeypatch):
    wrong, fault = BROKEN[operation]
    data = sae_lib.synthetic.preset("imbalanced", n_rows=2000)
    with monkeypatch.context() as patch:
        patch.setitem(kernels.SMALLEST, "cpu", 2**60)
        dense, _ = sae_lib.train(data, METHODS["gba"], **SHORT)
    monkeypatch.setattr(kernels, "backend", lambda device: Backend(operation, wrong))
    with pytest.warns(UserWarning, match=f"self-check on cpu .*{fault}.*continues with dense"):
        fallen_back, _ = sae_lib.train(data, METHODS["gba"], **SHORT)
    with warnings.catch_warnings(action="error"):
        sae_lib.train(data, METHODS["topk"], **SHORT)
    assert torch.equal(fallen_back.weight, dense.weight)
    assert torch.equal(fallen_back.bias, dense.bias)


def test_a_backend_that_cannot_be_loaded_is_left_alone(untried, monkeypatch):
    def missing(device):
        raise ImportError("no compiler")

    monkeypatch.setattr(kernels, "backend", missing)
    with pytest.warns(UserWarning, match="ImportError: no compiler"):
        assert not kernels.pays(torch.zeros(1), 0.0)


@pytest.mark.filterwarnings("error")
def test_a_backend_that_passes_is_used(untried, monkeypatch):
    monkeypatch.setattr(Trainer, "dense", None)  # not to be called
    state = torch.get_rng_state()
    data = sae_lib.synthetic.preset("imbalanced", n_rows=2000)
    sae_lib.train(data, METHODS["gba"], **SHORT)
    assert kernels._passes.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), state)


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
cpu.scan(torch.ones(8, 4), torch.ones(6, 4), torch.zeros(6))
assert torch.get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sums_in_a_fixed_order_are_the_same_sums(monkeypatch):
    """What the plain operations do on CUDA, where index_add would add in varying order."""
    x, weight, bar = draw((20, 30, 7), 0.2, 0)
    _, support, u = reference.scan(x, weight, bar)
    out = [weight.clone(), weight.clone()]
    expected = reference.decode(u, support, weight)
    reference.accumulate(u, support, x, out[0])
    monkeypatch.setattr(reference, "in_any_order", lambda values: True)
    torch.testing.assert_close(reference.decode(u, support, weight), expected)
    reference.accumulate(u, support, x, out[1])
    torch.testing.assert_close(out[1], out[0])
