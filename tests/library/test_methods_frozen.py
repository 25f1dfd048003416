"""Frozen baselines: rows stay put, and the projection onto the cap is exact."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import sae_lib
from sae_lib import (
    BatchTopK,
    Frozen,
    GroupBiasAdaptation,
    ModifiedBiasAdaptation,
    Normalisation,
    TopK,
    synthetic,
)
from sae_lib.methods import Gated, JumpReLU
from sae_lib.methods.frozen import PARTS, project_to_cap
from sae_lib.randomness import generator

NONE = Normalisation()
GBA = GroupBiasAdaptation(groups=3, htf=0.2)


@pytest.fixture(scope="module")
def data():
    return synthetic.preset("imbalanced", n_rows=5_000)


def unit(*shape, seed=0):
    rows = torch.randn(*shape, dtype=torch.float64, generator=generator(seed, "rows"))
    return torch.nn.functional.normalize(rows, dim=1)


# --- the projection -----------------------------------------------------------------------------------


def test_in_the_plane_the_projection_turns_to_the_rim():
    """Closed form: an angle α from the centre becomes min(α, arccos c)."""
    degrees = torch.tensor([0.0, 10, 36, 37, 60, 90, 179, -20, -80], dtype=torch.float64)
    angle = torch.deg2rad(degrees)
    rows = torch.stack([angle.cos(), angle.sin()], dim=1)
    centres = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand_as(rows)
    bounded = angle.clamp(-math.acos(0.8), math.acos(0.8))
    torch.testing.assert_close(
        project_to_cap(rows, centres, 0.8), torch.stack([bounded.cos(), bounded.sin()], dim=1)
    )


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(2, 6), cosine=st.floats(0.05, 1.0), seed=st.integers(0, 10_000), spread=st.floats(0.01, 3.0)
)
def test_no_point_of_the_cap_is_nearer(d, cosine, seed, spread):
    centres = unit(5, d, seed=seed)
    rows = torch.nn.functional.normalize(centres + spread * unit(5, d, seed=seed + 1), dim=1)
    found = project_to_cap(rows, centres, cosine)
    cosines = (found * centres).sum(dim=1)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert (cosines >= cosine - 1e-9).all()
    inside = (rows * centres).sum(dim=1) >= cosine
    assert torch.equal(found[inside], rows[inside])
    # random points of the cap, none of them nearer
    others = unit(200, d, seed=seed + 2)
    for row, centre, point in zip(rows, centres, found, strict=True):
        cap = project_to_cap(others, centre.expand_as(others), cosine)
        assert (row @ cap.T).max() <= row @ point + 1e-9
    torch.testing.assert_close(project_to_cap(found, centres, cosine - 1e-9), found)


def test_the_projection_against_a_numerical_minimum():
    centre, row = unit(2, 3, seed=5)
    if row @ centre > 0.7:
        row = -row
    found = project_to_cap(row[None], centre[None], 0.7)[0]
    first = torch.nn.functional.normalize(row - (row @ centre) * centre, dim=0)
    second = torch.linalg.cross(centre, first)

    def distance(angle):
        side = math.cos(angle) * first + math.sin(angle) * second
        return float((0.7 * centre + math.sqrt(0.51) * side - row).norm())

    best = minimize_scalar(distance, bounds=(-math.pi, math.pi), method="bounded", options={"xatol": 1e-10})
    assert float((found - row).norm()) == pytest.approx(best.fun, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_opposite_to_their_centre_reach_the_rim(dtype):
    centres = unit(20, 7).to(dtype)
    found = project_to_cap(-centres, centres, 0.8)
    torch.testing.assert_close((found * centres).sum(dim=1), torch.full((20,), 0.8, dtype=dtype))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20, dtype=dtype))


def test_on_a_line_the_cap_is_its_centre():
    centres = torch.tensor([[1.0], [-1.0], [1.0]])
    found = project_to_cap(torch.tensor([[-1.0], [-1.0], [1.0]]), centres, 0.8)
    assert torch.equal(found, centres)


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "part"),
    [
        *itertools.product(
            [TopK(k=3), BatchTopK(k=3), JumpReLU(), GroupBiasAdaptation(groups=3, tied=False)],
            ["decoder", "encoder"],
        ),
        (GBA, "decoder"),
        (Gated(), "decoder"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_frozen_rows_keep_their_bits_and_the_rest_moves(base, part, data):
    method = Frozen(base, part)
    start = method.build(data.d_in, 32, normalisation=data.normalisation, seed=0)
    sae, log = sae_lib.train(data, method, width=32, steps=30, batch_size=128, log_every=30)
    held, other = (sae.weight, sae.decoder_rows) if part == "encoder" else (sae.decoder_rows, sae.weight)
    initial = start.weight if part == "encoder" else start.decoder_rows
    assert torch.equal(held, initial)
    if not sae.tied:
        assert not torch.equal(other, initial)
    if sae.tied or part == "encoder":
        assert not torch.equal(sae.scale, start.scale)
    assert log[-1]["cosine_to_start"] == pytest.approx(1)


@pytest.mark.parametrize("base", [TopK(k=3), GBA], ids=lambda m: m.name)
def test_a_soft_decoder_stays_near_its_start(base, data):
    method = Frozen(base, "soft decoder", cosine=0.95)
    start = method.build(data.d_in, 32, normalisation=data.normalisation, seed=0)
    sae, _ = sae_lib.train(data, method, width=32, steps=200, batch_size=128, lr=0.02)
    cosines = (sae.decoder_rows * start.decoder_rows).sum(dim=1)
    assert cosines.min() >= 0.95 - 1e-6
    # the bound is at work: rows would like to go further
    assert (cosines < 0.951).float().mean() > 0.2
    torch.testing.assert_close(sae.decoder_rows.norm(dim=1), torch.ones(32))
    free, _ = sae_lib.train(data, base, width=32, steps=200, batch_size=128, lr=0.02)
    assert (free.decoder_rows * start.decoder_rows).sum(dim=1).min() < 0.9


@pytest.mark.parametrize("part", PARTS)
def test_a_resumed_run_has_the_same_bits(part, data, tmp_path):
    method = Frozen(BatchTopK(k=3, dead_after=20), part)
    settings = {"width": 32, "steps": 120, "batch_size": 128, "checkpoint_every": 70}
    whole, _ = sae_lib.train(data, method, **settings)

    def stop(number, sae):
        if number == 100:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        sae_lib.train(data, method, folder=tmp_path, callback=stop, **settings)
    resumed, _ = sae_lib.train(data, method, folder=tmp_path, resume=True, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    # a frozen encoder has trained scales; files fold them into the encoder, the function is the same
    loaded, x = sae_lib.load(tmp_path), data.rows[:200]
    torch.testing.assert_close(loaded(x), resumed(x), atol=1e-5, rtol=1e-5)


def test_the_settings_say_what_is_inside():
    described = Frozen(BatchTopK(k=5), "soft decoder", cosine=0.9).describe()
    assert described == {
        "name": "frozen", "part": "soft decoder", "cosine": 0.9, "base": BatchTopK(k=5).describe(),
    }  # fmt: skip
    assert Frozen(GBA).learning_rate(42) == GBA.learning_rate(42)


def start(method):
    sae = method.build(4, 10, normalisation=NONE, seed=0)
    return method.start(sae, torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Frozen(TopK(k=2), "both"), "part is 'both'; expected one of decoder, encoder, soft decoder"),
        (lambda: Frozen(TopK(k=2), cosine=1.2), "cosine is 1.2"),
        (lambda: Frozen("topk"), "base is 'topk'; expected a method"),
        (lambda: start(Frozen(GBA, "encoder")), "gba is tied here, expected tied=False"),
        (lambda: start(Frozen(ModifiedBiasAdaptation())), "nothing is left"),
        (lambda: start(Frozen(Gated(), "encoder")), "freeze another part"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
