"""The loop: it learns, resumes bit for bit, stops cleanly and refuses nonsense."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from sae_lib import (
    L1,
    BatchTopK,
    Frozen,
    Gated,
    GroupBiasAdaptation,
    JumpReLU,
    Matryoshka,
    ModifiedBiasAdaptation,
    Normalisation,
    Rows,
    TopK,
    distributed,
    metrics,
    synthetic,
    train,
)
from sae_lib.files.atomic import only_writer
from sae_lib.files.tensors import read_metadata
from sae_lib.training import NonFiniteLossError, checkpoint, learning_rate
from sae_lib.training.checkpoint import CheckpointError
from sae_lib.training.interruption import interruptible

METHODS = [
    GroupBiasAdaptation(groups=3, every=7),
    GroupBiasAdaptation(groups=3, every=7, tied=False, centre=True),
    L1(0.01),
    TopK(k=3, dead_after=20, centre=True),
    BatchTopK(k=3, dead_after=20),
    Matryoshka(k=3, dead_after=20),
    JumpReLU(coefficient=0.02, bandwidth=0.05, threshold=0.05, warmup=20, centre=True),
    Gated(coefficient=0.05, centre=True),
]


@pytest.fixture(scope="module")
def data():
    return synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000)


def state(sae):
    return {k: v.clone() for k, v in sae.state_dict().items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_training_lowers_the_error_and_is_reproducible(data, method):
    runs = [train(data, method, width=32, steps=120, batch_size=64, log_every=20) for _ in range(2)]
    (sae, log), (again, _) = runs
    assert log.column("step") == [20, 40, 60, 80, 100, 120]
    untrained = method.build(12, 32, normalisation=data.normalisation, seed=0)
    method.start(untrained, data.rows[:1000])
    before, after = (metrics.reconstruction(s, data.rows).nmse for s in (untrained, sae))
    assert after < 0.8 * before
    assert same_bits(state(sae), state(again))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("broken_at", [50, 100])
def test_resume_continues_bit_for_bit(data, method, broken_at, tmp_path):
    settings = {"width": 32, "steps": 130, "batch_size": 64, "log_every": 10, "checkpoint_every": 50}
    whole, log = train(data, method, folder=tmp_path / "whole", **settings)

    class Crash(Exception):
        pass

    def crash(step, sae):
        if step == broken_at + 20:
            raise Crash

    with pytest.raises(Crash):
        train(data, method, folder=tmp_path / "broken", callback=crash, **settings)
    resumed, resumed_log = train(data, method, folder=tmp_path / "broken", resume=True, **settings)
    assert same_bits(state(whole), state(resumed))
    assert resumed_log == log
    written = [(tmp_path / f / "metrics.jsonl").read_text().splitlines() for f in ("whole", "broken")]
    assert written[0] == written[1]
    assert [json.loads(line)["step"] for line in written[0]] == log.column("step")
    final = [(tmp_path / f / "sae_weights.safetensors").read_bytes() for f in ("whole", "broken")]
    assert final[0] == final[1]


def test_training_leaves_the_global_random_state_alone(data):
    before = torch.get_rng_state()
    train(data, METHODS[0], width=32, steps=3, batch_size=64)
    assert torch.equal(before, torch.get_rng_state())


SCRIPT = """
import sys, torch
from sae_lib import GroupBiasAdaptation, synthetic, train
torch.set_num_threads(1)
data = synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000)
def tell(step, sae):
    print(step, flush=True)
train(data, GroupBiasAdaptation(groups=3), width=64, steps={steps}, batch_size=64, folder=sys.argv[1],
      log_every=10, checkpoint_every=30, resume={resume}, callback=tell)
"""


def start(folder, *, steps, resume=False):
    code = textwrap.dedent(SCRIPT.format(steps=steps, resume=resume))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_process_stopped_by_ctrl_c_can_be_resumed_to_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole", steps=1200)
    assert whole.wait() == 0, whole.communicate()[1]
    process = start(tmp_path / "stopped", steps=1200)
    for line in process.stdout:
        if int(line) >= 150:
            break
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "stopped" / "sae_weights.safetensors").exists()
    assert "continue with resume=True" in errors
    resumed = start(tmp_path / "stopped", steps=1200, resume=True)
    out, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    # it continued: the first step logged after the checkpoint is not the first of the run
    assert int(out.split()[0]) > 100
    for name in ("sae_weights.safetensors", "checkpoint.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_resume_with_other_settings_is_refused(data, tmp_path):
    settings = {"width": 16, "steps": 20, "batch_size": 32, "folder": tmp_path}
    train(data, METHODS[0], **settings)
    with pytest.raises(CheckpointError, match="batch_size=32, this run has 64"):
        train(data, METHODS[0], resume=True, **settings | {"batch_size": 64})
    with pytest.raises(CheckpointError, match="method="):
        train(data, METHODS[2], resume=True, **settings)
    with pytest.raises(ValueError, match="resume=True or choose another folder"):
        train(data, METHODS[0], **settings)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "header"])
def test_a_damaged_checkpoint_is_refused(data, tmp_path, damage):
    settings = {"width": 16, "steps": 20, "batch_size": 32, "folder": tmp_path}
    train(data, METHODS[0], **settings)
    path = tmp_path / "checkpoint.safetensors"
    raw = path.read_bytes()
    path.write_bytes(
        {"truncate": raw[: len(raw) // 2], "garbage": b"\x80\x04K\x01.", "header": b"\xff" * 8 + raw[8:]}[
            damage
        ]
    )
    with pytest.raises(CheckpointError, match="damaged"):
        train(data, METHODS[0], resume=True, **settings)


def test_resume_without_a_checkpoint_says_so(data, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        train(data, METHODS[0], width=16, steps=5, folder=tmp_path / "none", resume=True)


def test_exploding_loss_stops_with_advice_and_keeps_the_last_good_checkpoint(data, tmp_path):
    rows = 1e18 * data.rows
    with pytest.raises(NonFiniteLossError, match="Try a lower learning rate"):
        train(rows, L1(), width=16, steps=200, lr=1e18, batch_size=32, folder=tmp_path, log_every=10)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_rows_with_nan_are_refused(data):
    rows = data.rows.clone()
    rows[17, 3] = float("nan")
    with pytest.raises(ValueError, match="row 17 holds NaN"):
        train(rows, METHODS[0], width=16, steps=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 10, "tokens": 10}, "give one of them"),
        ({"steps": 0}, "steps is 0"),
        ({"tokens": 10, "batch_size": 64}, "at least one batch"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 5000}, "exceeds the 2000 rows"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"schedule": "step"}, "linear, cosine, constant"),
        ({"warmup": 99, "steps": 9}, "warmup is 99"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"resume": True}, "needs the folder"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_impossible_settings_are_refused_at_once(data, settings, message):
    with pytest.raises(ValueError, match=message):
        train(data, TopK(1), **{"width": 16} | settings)


def test_data_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="expected a tensor"):
        train([[1.0, 2.0]], METHODS[0], width=4)
    with pytest.raises(ValueError, match=r"expected \(N, d_in\)"):
        train(torch.ones(3), METHODS[0], width=4)


def test_tokens_count_rows(data):
    _, log = train(data, METHODS[0], width=16, tokens=1000, batch_size=100, log_every=1)
    assert log[-1]["step"] == 10


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedule_warms_up_and_decays(schedule):
    rates = [learning_rate(t, 100, peak=2.0, warmup=10, schedule=schedule) for t in range(100)]
    assert rates[0] == pytest.approx(2 / 11)
    assert max(rates) == rates[10] == 2.0
    assert rates[-1] == 2.0 if schedule == "constant" else rates[-1] < 0.05


def test_batches_are_a_function_of_seed_and_number(data):
    rows = Rows(torch.arange(10.0)[:, None])
    stream = rows.batches(3, seed=4)
    first = [next(stream).flatten().tolist() for _ in range(7)]
    # three batches a pass, no row twice in a pass
    assert len({v for batch in first[:3] for v in batch}) == 9
    for start_at in range(7):
        resumed = rows.batches(3, seed=4, start=start_at)
        assert [next(resumed).flatten().tolist() for _ in range(7 - start_at)] == first[start_at:]
    other = rows.batches(3, seed=5)
    assert [next(other).flatten().tolist() for _ in range(7)] != first


def test_weight_decay_shrinks_the_free_encoder(data):
    plain, decayed = (
        train(data, L1(0.01), width=16, steps=100, batch_size=64, weight_decay=w)[0] for w in (0.0, 5.0)
    )
    assert decayed.weight.norm() < 0.9 * plain.weight.norm()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_only_rows_decay(method):
    """With a gradient of 0, AdamW moves a parameter by its decay alone."""
    sae = method.build(12, 32, normalisation=Normalisation(), seed=0)
    run = method.start(sae, torch.randn(50, 12, generator=torch.Generator().manual_seed(0)))
    parameters = [p for p in (*sae.parameters(), *run.parameters()) if p.requires_grad]
    optimiser = method.optimiser(parameters, 0.1, 0.5)
    # a checkpoint knows them by these numbers
    assert [p for group in optimiser.param_groups for p in group["params"]] == parameters
    for parameter in parameters:
        # biases start at 0, which decay would leave
        parameter.data += 0.5
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in parameters]
    optimiser.step()
    for parameter, old in zip(parameters, before, strict=True):
        expected = old * (1 - 0.1 * 0.5) if parameter.ndim == 2 else old
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)
    assert any(p.ndim == 1 for p in parameters)


class UnderAutocast:
    """A method that enters autocast for its start and for each forward pass by itself, as is recommended."""

    def __init__(self, method):
        self.method = method

    def __getattr__(self, name):
        return getattr(self.method, name)

    def start(self, sae, sample):
        with torch.autocast("cpu", torch.bfloat16):
            run = self.method.start(sae, sample)
        forward = run.forward

        def under_autocast(sae, x):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(sae, x)

        run.forward = under_autocast
        return run


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_training_within_autocast_uses_the_weights_as_they_are(data, method):
    """Autocast keeps its casts of parameters as long as it lasts."""
    settings = {"width": 32, "steps": 30, "batch_size": 64, "log_every": 10}
    expected, expected_log = train(data, UnderAutocast(method), **settings)
    with torch.autocast("cpu", torch.bfloat16):
        sae, log = train(data, method, **settings)
    assert log == expected_log
    assert same_bits(state(sae), state(expected))


@pytest.mark.parametrize("method", [*METHODS, ModifiedBiasAdaptation(), Frozen(L1())], ids=lambda m: m.name)
def test_a_run_lies_where_its_autoencoder_does(method):
    sae = method.build(12, 32, normalisation=Normalisation(), seed=0).to("meta")
    run = method.start(sae, torch.zeros(50, 12, device="meta"))
    for name, value in (*run.named_parameters(), *run.named_buffers()):
        assert value.device.type == "meta", name


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once_and_leaves_the_last_checkpoint(data, tmp_path):
    settings = {"width": 16, "steps": 40, "batch_size": 32, "log_every": 5, "checkpoint_every": 10}
    whole, _ = train(data, METHODS[0], **settings)

    def impatient(step, sae):
        if step == 25:
            press_ctrl_c()
            press_ctrl_c()
            raise AssertionError("went on")

    before = signal.getsignal(signal.SIGINT)  # a shell starts what runs in the background with SIGINT ignored
    with pytest.raises(KeyboardInterrupt, match="at once, by another Ctrl-C"):
        train(data, METHODS[0], folder=tmp_path, callback=impatient, **settings)
    assert signal.getsignal(signal.SIGINT) is before
    resumed, _ = train(data, METHODS[0], folder=tmp_path, resume=True, **settings)
    assert same_bits(state(resumed), state(whole))


def test_a_second_ctrl_c_while_a_checkpoint_is_written_keeps_the_one_before(data, tmp_path, monkeypatch):
    settings = {"width": 16, "steps": 40, "batch_size": 32, "log_every": 5, "checkpoint_every": 10}
    write = checkpoint.write_tensors

    def interrupted(path, tensors, header):
        path.write_bytes(b"half of it")
        if '"step": 25' in header[checkpoint.FORMAT]:
            press_ctrl_c()
        write(path, tensors, header)

    monkeypatch.setattr(checkpoint, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt, match="at once"):
        train(
            data, METHODS[0], folder=tmp_path, **settings,
            callback=lambda step, sae: press_ctrl_c() if step == 25 else None,
        )  # fmt: skip
    assert not list(tmp_path.glob(".*.tmp"))
    names = json.loads(read_metadata(tmp_path / checkpoint.NAME)[checkpoint.FORMAT])
    assert names["step"] == 20


def test_under_torchrun_ctrl_c_is_heard_twice_before_it_ends_at_once(monkeypatch):
    """It passes on what the terminal has told all processes already."""
    monkeypatch.setattr("sae_lib.training.interruption.launched", lambda: True)
    with interruptible() as event:
        press_ctrl_c()
        press_ctrl_c()
        assert event.is_set()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_a_checkpoint_is_read_after_the_folder_is_locked(data, tmp_path, monkeypatch):
    """Else another process could write a later one in between, which would then be overwritten."""
    settings = {"width": 16, "batch_size": 32, "steps": 20, "folder": tmp_path}
    train(data, METHODS[0], **settings)
    read = checkpoint.read

    def locked(folder, settings):
        with (
            pytest.raises(RuntimeError, match="another process is training in"),
            only_writer(folder, "training in"),
        ):
            pass
        return read(folder, settings)

    monkeypatch.setattr(checkpoint, "read", locked)
    train(data, METHODS[0], resume=True, **settings)


def test_every_process_takes_the_gpu_of_its_own(data, monkeypatch):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "4",
        "RANK": "2",
        "LOCAL_RANK": "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed.local("cuda") == torch.device("cuda", 2)
    assert distributed.local("cuda:1") == torch.device("cuda", 1)
    assert distributed.local("cpu") == torch.device("cpu")
    asked = []
    monkeypatch.setattr(distributed, "local", lambda device: asked.append(device) or torch.device("cpu"))
    train(data, METHODS[0], width=16, steps=2, batch_size=32, device="cuda", parallel="off")
    assert asked == ["cuda"]


@pytest.mark.parametrize("method", [*METHODS, ModifiedBiasAdaptation(0.1)], ids=lambda m: m.name)
def test_a_normalisation_is_applied_to_rows_once_and_training_knows_only_the_result(method, dice):
    raw = 3 * torch.randn(600, 12, generator=dice) + 1
    scaled = Rows(raw, Normalisation("scale", 0.2))
    settings = {"width": 24, "steps": 20, "batch_size": 200, "seed": 1}
    (sae, log), (expected, expected_log) = (train(rows, method, **settings) for rows in (scaled, scaled.rows))
    assert log == expected_log
    assert same_bits(state(sae), state(expected))
