"""Rows that are odd or wrong, and spikes: what happens is defined."""

import math

import pytest
import torch

from sae_lib import GroupBiasAdaptation, Normalisation, TopK, train
from sae_lib.training import NonFiniteLossError
from sae_lib.training.checkpoint import NAME

D, WIDTH = 6, 12
METHODS = [GroupBiasAdaptation(groups=3, htf=0.3, ltf=0.05, every=5), TopK(k=2, dead_after=10, centre=True)]
RUN = {"width": WIDTH, "steps": 120, "batch_size": 16, "log_every": 10}
by_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


class Served:
    """Batches of random unit rows, some of them changed; no method of the library has looked at the rows."""

    d_in, normalisation = D, Normalisation()

    def __init__(self, change=lambda number, x: x):
        self.change = change

    def batches(self, batch_size, *, seed, start=0):
        number = start
        while True:
            number += 1
            x = torch.randn(batch_size, D, generator=torch.Generator().manual_seed(number))
            yield self.change(number, torch.nn.functional.normalize(x, dim=1))

    def describe(self):
        return {"source": "test"}


def sound(sae):
    """Every parameter finite, every row that should have norm 1 has it."""
    assert all(torch.isfinite(p).all() for p in sae.parameters())
    torch.testing.assert_close(sae.decoder_rows.norm(dim=1), torch.ones(sae.width))
    if not sae.free_encoder:
        torch.testing.assert_close(sae.weight.norm(dim=1), torch.ones(sae.width))
    return sae


@by_method
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [3, 87, 120])
def test_a_bad_row_of_a_batch_is_named_and_no_checkpoint_holds_it(method, bad, step, tmp_path, monkeypatch):
    # a sample of 32 rows: the bad one comes later, except in the third batch
    monkeypatch.setattr("sae_lib.training.loop.SAMPLE_ROWS", 32)

    def spoil(number, x):
        if number == step:
            x[11, 2] = bad
        return x

    with pytest.raises(NonFiniteLossError, match=rf"Row 11 of the batch of step {step} holds NaN.*intact"):
        train(Served(spoil), method, folder=tmp_path, checkpoint_every=40, **RUN)
    assert (tmp_path / NAME).exists() == (step > 40)
    if step > 40:
        monkeypatch.setattr("sae_lib.training.loop.SAMPLE_ROWS", 32)
        resumed, log = train(Served(), method, folder=tmp_path, checkpoint_every=40, resume=True, **RUN)
        whole, whole_log = train(Served(), method, **RUN)
        assert torch.equal(sound(resumed).weight, whole.weight)
        assert log == whole_log


@by_method
def test_a_bad_row_of_the_sample_is_named(method):
    def spoil(number, x):
        if number == 7:
            x[3, 0] = math.nan
        return x

    with pytest.raises(ValueError, match="Row 3 of the batch of step 7 holds NaN or infinity"):
        train(Served(spoil), method, **RUN)


@by_method
@pytest.mark.parametrize("times", [1e3, 1e12])
def test_after_a_finite_spike_training_goes_on(method, times, monkeypatch):
    monkeypatch.setattr("sae_lib.training.loop.SAMPLE_ROWS", 32)
    _, calm_log = train(Served(), method, **RUN)
    spiked, log = train(Served(lambda number, x: x * times if number == 60 else x), method, **RUN)
    sound(spiked)
    assert log[5]["loss"] > 100 * calm_log[5]["loss"]
    assert all(math.isfinite(record["loss"]) for record in log)
    assert log[:5] == calm_log[:5]
    assert log[-1]["loss"] < log[5]["loss"] / 10


def test_weights_that_break_after_a_finite_loss_are_not_kept(tmp_path):
    def spoil(step, sae):
        if step == 120:
            sae.bias.data[0] = math.nan

    with pytest.raises(NonFiniteLossError, match=r"bias holds NaN or infinity after step 120\. Try a lower"):
        train(Served(), METHODS[0], folder=tmp_path, callback=spoil, **RUN)
    assert not (tmp_path / NAME).exists()


ROWS = {
    "constant": torch.ones(64, D) / D**0.5,
    "zeros": torch.zeros(64, D),
    "one of them zero": torch.cat([torch.zeros(1, D), torch.eye(D).repeat(11, 1)]),
    "duplicated": torch.eye(D)[:2].repeat(32, 1),
    "one": torch.eye(D)[:1],
    "huge": 1e4 * torch.eye(D).repeat(11, 1),
    "tiny": 1e-12 * torch.eye(D).repeat(11, 1),
}


@by_method
@pytest.mark.parametrize("kind", ROWS)
def test_odd_rows_train_to_something_sound(method, kind, tmp_path):
    rows = ROWS[kind]
    settings = RUN | {"batch_size": min(16, len(rows))}
    sae, log = train(rows, method, folder=tmp_path, checkpoint_every=50, **settings)
    sound(sae).reconstruct(rows)
    assert all(math.isfinite(record["loss"]) for record in log)
    if kind == "zeros":
        assert all(record["l0"] == 0 for record in log)
        assert torch.equal(sae.reconstruct(rows), rows)
        assert all(math.isnan(record["nmse"]) for record in log)
    elif method.name == "topk":
        assert kind == "tiny" or log[-1]["nmse"] < 0.5
    again, _ = train(rows, method, folder=tmp_path, resume=True, checkpoint_every=50, **settings)
    assert torch.equal(again.weight, sae.weight)


def test_a_ceiling_on_firing_leaves_what_is_constant_to_the_centre():
    """A latent that fired on every row would be above every ceiling below 1."""
    rows = ROWS["constant"]
    off = GroupBiasAdaptation(groups=1, htf=0.3, ltf=0.3, every=5)
    centred = GroupBiasAdaptation(groups=1, htf=0.3, ltf=0.3, every=5, centre=True)
    assert train(rows, off, **RUN)[1][-1]["l0"] == 0
    assert train(rows, centred, **RUN)[1][-1]["nmse"] < 1e-3


def test_normalising_rows_of_zeros():
    zeros = torch.zeros(20, D)
    with pytest.raises(ValueError, match=r"cannot scale rows whose mean norm is 0\.0"):
        Normalisation.fit("scale", zeros)
    assert torch.equal(Normalisation.fit("unit", zeros).apply(zeros), zeros)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("d", [1, 4])
@pytest.mark.parametrize(
    "method", [GroupBiasAdaptation(groups=1, htf=0.5, ltf=0.5), TopK(k=1)], ids=lambda m: m.name
)
def test_the_smallest_sizes(method, width, d, tmp_path):
    rows = torch.randn(40, d, generator=torch.Generator().manual_seed(0))
    sae, log = train(rows, method, width=width, steps=60, batch_size=8, folder=tmp_path, log_every=10)
    assert sound(sae).weight.shape == (width, d)
    assert all(math.isfinite(record["loss"]) for record in log)
    assert 0 <= log[-1]["l0"] <= width
    assert sae.reconstruct(rows).shape == rows.shape
    # a single row without a batch dimension of its own
    torch.testing.assert_close(sae.reconstruct(rows[0]), sae.reconstruct(rows[:1])[0])


@pytest.mark.parametrize("silent", [1, WIDTH])
def test_silent_latents_of_gba_rise_by_the_peaks_of_their_group(silent):
    """One silent latent comes back; where the whole group is silent no peak says how far, and it stays."""

    class Silent(GroupBiasAdaptation):
        def start(self, sae, sample):
            run = super().start(sae, sample)
            sae.bias.data[:silent] = -1.0
            return run

    # rows of norm 1 never get above a bias of −1
    rows = torch.eye(D).repeat(11, 1)
    method = Silent(groups=1, htf=0.3, ltf=0.3, every=5, gamma=0.2)
    sae, log = train(rows, method, **RUN)
    assert (sound(sae).bias[:silent] > -1.0).all() == (silent == 1)
    assert (log[-1]["l0"] > 0) == (silent == 1)


def test_dead_latents_of_top_k_learn_from_the_auxiliary_loss():
    rows = torch.eye(D).repeat(11, 1)
    sae, log = train(rows, TopK(k=1, dead_after=10), **RUN | {"steps": 400})
    sound(sae)
    assert log[-1]["nmse"] < 0.5
