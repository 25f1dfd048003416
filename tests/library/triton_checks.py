"""What is asked of the Triton kernels; run by test_triton.py in processes of its own.

On a GPU, or with TRITON_INTERPRET=1 on a CPU, where Triton's interpreter steps through the kernels.
"""

import os

import pytest
import torch
from torch.nn.functional import normalize

import sae_lib
from sae_lib import kernels
from sae_lib.kernels import check, gpu, reference
from sae_lib.methods import JumpReLU, Matryoshka

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# the interpreter multiplies the bits of bfloat16 as if they were whole numbers
HALF = torch.float16 if INTERPRETED else torch.bfloat16
SHAPE = (37, 203, 50)
# rows, latents, columns; with one of each, full tiles of the interpreter, one more and one less
SHAPES = [SHAPE, (3, 1, 1), (1, 64, 3), (32, 64, 32), (17, 33, 31), (33, 7, 17)]
# what the bar lets through; "ties" is a bar that many u are equal to
BARS = ["all", "most", "ties", "few", "none", "dense latents"]


def draw(shape, bar, seed=0, device=None):
    """Rows, weight and bar of small whole numbers: exact sums in any order, in bfloat16 too."""
    (n_rows, width, d), generator = shape, torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (n_rows, d), generator=generator).float()
    weight = torch.randint(-4, 5, (width, d), generator=generator).float()
    u = (x @ weight.T).flatten()
    levels = {"all": -torch.inf, "none": torch.inf, "most": u.quantile(0.05).floor(), "ties": u.median()}
    levels["few"] = levels["dense latents"] = u.quantile(0.97).ceil()
    limit = torch.zeros(width) + levels[bar]
    if bar == "dense latents":
        limit[::5] = -torch.inf
        limit[1::5] = torch.inf
    return tuple(tensor.to(device or DEVICE) for tensor in (x, weight, limit))


def same(ours, theirs):
    assert ours.shape == theirs.shape
    for name, value in vars(ours).items():
        assert value.dtype == torch.int64
        assert torch.equal(value, getattr(theirs, name)), name


@pytest.fixture(autouse=True)
def _forget():
    gpu._shares.clear()


# of the largest shape, what takes the interpreter long is left out
CASES = [(shape, bar) for shape in SHAPES for bar in BARS if shape != SHAPE or bar not in ("all", "most")]


@pytest.mark.parametrize(("shape", "bar"), CASES, ids=str)
def test_operations_equal_the_plain_ones(shape, bar):
    x, weight, limit = draw(shape, bar)
    peak, support, u = gpu.scan(x, weight, limit)
    expected_peak, expected, expected_u = reference.scan(x, weight, limit)
    same(support, expected)
    assert torch.equal(peak, expected_peak)
    assert torch.equal(u, expected_u)
    values = u / 7 - 1
    for ours, theirs in (
        (gpu.decode(values, support, weight), reference.decode(values, expected, weight)),
        (gpu.dots(x, support, weight), reference.dots(x, expected, weight)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)
    ours, theirs = weight.clone(), weight.clone()
    gpu.accumulate(values, support, x, ours)
    reference.accumulate(values, expected, x, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_one_dense_row_among_empty_ones():
    x, weight, _ = draw(SHAPE, "few")
    x[:], weight[:, 0] = 0, 1
    x[20, 0] = 3
    limit = torch.zeros(len(weight), device=DEVICE)
    _, support, u = gpu.scan(x, weight, limit)
    assert support.rows.unique().tolist() == [20]
    assert len(support) == len(weight)
    decoded = gpu.decode(u, support, weight)
    torch.testing.assert_close(decoded[20], 3 * weight.sum(dim=0))
    assert not decoded[:20].any()
    assert not decoded[21:].any()


def test_more_entries_than_room_cost_another_pass_and_nothing_else(monkeypatch):
    x, weight, few = draw(SHAPE, "few")
    passes = []
    scan = gpu._scan
    monkeypatch.setattr(gpu, "_scan", lambda *args: passes.append(args[-1]) or scan(*args))
    gpu.scan(x, weight, few)
    gpu.scan(x, weight, few)
    before = len(passes)
    _, _, limit = draw(SHAPE, "ties")
    _, support, u = gpu.scan(x, weight, limit)
    _, expected, expected_u = reference.scan(x, weight, limit)
    same(support, expected)
    assert torch.equal(u, expected_u)
    assert len(passes) == before + 2
    # and from then on there is room
    gpu.scan(x, weight, limit)
    assert len(passes) == before + 3


def test_results_repeat_to_the_bit():
    x, weight, limit = draw(SHAPE, "ties")
    x, weight = x / 3, weight / 7
    first, again = gpu.scan(x, weight, limit / 21), gpu.scan(x, weight, limit / 21)
    same(again[1], first[1])
    assert torch.equal(again[2], first[2])
    decoded = [gpu.decode(u, support, weight) for _, support, u in (first, again)]
    assert torch.equal(*decoded)


def test_factors_are_rounded_under_autocast():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE[0], SHAPE[2], generator=generator).to(DEVICE)
    weight = normalize(torch.randn(SHAPE[1], SHAPE[2], generator=generator), dim=1).to(DEVICE)
    rounded = x.to(HALF).float(), weight.to(HALF).float()
    # halfway between two neighbouring u, so that the last bits decide nothing
    u = (rounded[0].double() @ rounded[1].double().T).flatten().sort().values
    place = len(u) * 4 // 5 + int((u[1:] - u[:-1])[len(u) * 4 // 5 :][:100].argmax())
    limit = torch.full((SHAPE[1],), float((u[place] + u[place + 1]) / 2), device=DEVICE)
    with torch.autocast(DEVICE.type, HALF):
        peak, support, u = gpu.scan(x, weight, limit)
    assert peak.dtype == u.dtype == torch.float32
    expected_peak, expected, expected_u = reference.scan(*rounded, limit)
    same(support, expected)
    torch.testing.assert_close(peak, expected_peak)
    torch.testing.assert_close(u, expected_u, rtol=1e-4, atol=1e-5)


def test_index_sorts_any_order_of_entries():
    for bar in ("few", "none"):
        x, weight, limit = draw(SHAPE, bar)
        rows, latents = (x @ weight.T > limit).nonzero(as_tuple=True)
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(DEVICE)
        support, order = gpu.index(rows[shuffled], latents[shuffled], SHAPE[:2])
        same(support, reference.scan(x, weight, limit)[1])
        assert torch.equal(rows[shuffled][order], support.rows)


def test_operands_need_not_be_contiguous():
    x, weight, limit = draw(SHAPE, "few")
    x, weight = x.T.contiguous().T, weight.T.contiguous().T
    _, support, _ = gpu.scan(x, weight, limit)
    same(support, reference.scan(x, weight, limit)[1])
    ones = torch.ones((), device=DEVICE).expand(len(support))
    torch.testing.assert_close(gpu.decode(ones, support, weight), reference.decode(ones, support, weight))
    torch.testing.assert_close(gpu.dots(x, support, weight), reference.dots(x, support, weight))
    ours, theirs = torch.zeros_like(weight), torch.zeros_like(weight)
    gpu.accumulate(ones, support, x, ours)
    reference.accumulate(ones, support, x, theirs)
    torch.testing.assert_close(ours, theirs)


def test_float64_is_left_to_the_plain_operations():
    x, weight, limit = (tensor.double() for tensor in draw(SHAPE, "few"))
    peak, support, u = gpu.scan(x, weight, limit)
    assert peak.dtype == u.dtype == torch.float64
    assert gpu.decode(u, support, weight).dtype == torch.float64


@pytest.mark.parametrize("factors", [torch.float32, HALF], ids=str)
def test_the_kernels_pass_their_self_check(factors, monkeypatch):
    if INTERPRETED:
        # the interpreter is slow, and its tiles are small
        monkeypatch.setattr(check, "SHAPES", ((20, 40, 32), (20, 40, 18)))
    assert check.fault(lambda: gpu, DEVICE, factors) is None


METHODS = {
    "gba": sae_lib.GroupBiasAdaptation(groups=2, centre=True),
    "gba untied": sae_lib.GroupBiasAdaptation(groups=2, tied=False),
    "topk": sae_lib.TopK(k=2, centre=True),
    "jumprelu": JumpReLU(0.1, bandwidth=0.3, threshold=0.2, centre=True),
    "matryoshka tied": Matryoshka(k=2, centre=True, tied=True),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_step_has_the_gradients_of_the_dense_one(name, monkeypatch):
    monkeypatch.setattr(kernels, "backend", lambda device: gpu)
    x = draw(SHAPE, "few")[0] / 10
    sae = METHODS[name].build(SHAPE[2], SHAPE[1], normalisation=sae_lib.Normalisation(), seed=0).to(DEVICE)
    run = METHODS[name].start(sae, x).to(DEVICE)
    with torch.no_grad():
        sae.bias.fill_(-0.5)
        sae.scale.fill_(1.1)
    results = []
    for one_pass in (run.dense, run.sparse):
        for parameter in (*sae.parameters(), *run.parameters()):
            parameter.grad = None
        step = one_pass(sae, x)
        step.loss.backward()
        results.append((step, [p.grad for p in (*sae.parameters(), *run.parameters()) if p.requires_grad]))
    (dense, expected), (sparse, ours) = results
    assert 0 < int(sparse.codes.count_nonzero()) < dense.codes.numel() / 2
    torch.testing.assert_close(sparse.loss, dense.loss)
    if sparse.peak is not None:
        torch.testing.assert_close(sparse.highest(), dense.highest())
    torch.testing.assert_close(sparse.codes.to_dense(), dense.codes, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)
