"""The check of what only a GPU can tell: its runner on parts made up here, and all of it at toy size."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

import sae_lib
from benchmarks import gpu_check
from benchmarks.gpu_check import crossover, runner
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.parts import PARTS, Part
from benchmarks.gpu_check.timing import crossing, in_turn
from sae_lib import records
from sae_lib.records import machine
from tools.layout import REPOSITORY

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """Children find the parts of these tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(HERE)]))


def settings(out, limit=100.0):
    return runner.Settings(out, "cpu", toy=True, seed=7, limit=limit, started=time.monotonic())


def fake(*names, shares=None):
    return [
        Part(number, name, f"gpu_check_fakes:{name}", (shares or {}).get(name, 1.0))
        for number, name in enumerate(names, 1)
    ]


def rows(out, number, name):
    return records.read(out / f"gpu_{number}_{name}.json").rows


@pytest.mark.slow
def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path):
    told = runner.run(fake("fails", "good"), settings(tmp_path))
    assert told == {"fails": "failed", "good": "finished"}
    head, first, second, end = rows(tmp_path, 1, "fails")
    assert (head["status"], head["seed"], head["toy"]) == ("failed", 7, True)
    assert first == {"name": "first", "failed": "ZeroDivisionError: division by zero"}
    assert second["value"] == 2
    assert end["failed"] == "RuntimeError: the GPU is gone"
    head, row = rows(tmp_path, 2, "good")
    assert head["status"] == "finished"
    assert {"torch", "triton", "cuda", "driver", "budget_s", "seconds"} <= set(head)
    assert row == {"name": "measured", "value": 1.0, "nothing": None}


@pytest.mark.slow
def test_a_part_over_its_budget_is_ended_and_the_limit_holds(tmp_path):
    began = time.monotonic()
    told = runner.run(fake("hangs", "good", shares={"good": 3.0}), settings(tmp_path, limit=60.0))
    assert told == {"hangs": "over budget", "good": "finished"}
    assert time.monotonic() - began < 60
    head, row = rows(tmp_path, 1, "hangs")
    assert head["status"] == "over budget"
    assert head["seconds"] == pytest.approx(head["budget_s"], abs=2)
    assert row == {"name": "before", "value": 3}


def test_without_time_parts_are_recorded_as_not_started(tmp_path):
    assert runner.run(fake("good"), settings(tmp_path, limit=2.0)) == {"good": "not started"}
    assert [row["status"] for row in rows(tmp_path, 1, "good")] == ["not started"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_the_finished_records_stay(tmp_path, number):
    code = f"""
import sys
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check.parts import Part
parts = Part(1, "kernels", "gpu_check_fakes:good", 1.0), Part(2, "step", "gpu_check_fakes:hangs", 1.0)
sys.exit(command.main(["--toy", "--device=cpu", "--out={tmp_path.as_posix()}"], parts))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=PIPE, text=True)
    finished = tmp_path / "gpu_1_kernels.json"
    deadline = time.monotonic() + 60
    while not finished.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    # the second part is at work, or about to be
    time.sleep(1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "finished parts are in" in errors
    assert rows(tmp_path, 1, "kernels")[0]["status"] == "finished"
    assert rows(tmp_path, 2, "step")[0]["status"] == "interrupted"


NEEDED = {
    "kernels": {"self-check", "comparison", "training twice"},
    "step": {"encoder product", "sae_lib GBA", "sae_lib BatchTopK", "scan", "dots", "optimiser", "unit rows"},
    "crossover": {"density", "size", "crossing of density", "crossing of size", "constants"},
    "stream": {"reading", "gba", "topk", "gba, projected"},
    "screening": {"float8", "bfloat16", "float8, scan", "float8, total"},
}


@pytest.mark.slow
def test_the_dry_run_measures_and_records_every_part(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--toy", f"--out={tmp_path}", "--device=cpu"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for part in PARTS:
        record = records.read(tmp_path / f"gpu_{part.number}_{part.name}.json")
        assert record.made["command"].startswith("python -m benchmarks.gpu_check --toy")
        by_name = {row["name"]: row for row in record.rows}
        assert by_name["part"]["status"] == "finished"
        assert set(by_name) >= NEEDED[part.name]
        assert not [row for row in record.rows if "failed" in row]
        assert all(row["ok"] for row in record.rows if "ok" in row)
        # what cannot be measured without a GPU is named
        assert any("not_run" in row for row in record.rows) or part.name == "stream"
    step = records.read(tmp_path / "gpu_2_step.json").rows
    ours = next(row for row in step if row["name"] == "sae_lib GBA")
    assert {"kind", "precision", "ms", "ms_min", "ms_max", "rounds", "x_gemm", "peak_mib"} <= set(ours)
    stream = {row["name"]: row for row in records.read(tmp_path / "gpu_4_stream.json").rows}
    assert stream["gba"]["finite"]
    assert stream["gba"]["share_of_model"] + stream["gba"]["share_of_autoencoder"] == pytest.approx(1)
    assert stream["topk"]["l0_by_step"]
    constants = records.read(tmp_path / "gpu_3_crossover.json").rows[-1]
    assert {"DENSEST", "SMALLEST"} <= set(constants)


def test_the_command_line_of_a_record_can_be_parsed():
    options = gpu_check.parser().parse_args(["--toy", "--parts", "step", "--limit", "30"])
    assert (options.toy, options.parts, options.limit) == (True, ["step"], 30)


def test_shares_add_up_to_the_default_limit():
    assert sum(part.share for part in PARTS) < gpu_check.parser().parse_args([]).limit


def test_a_call_that_fails_while_it_is_timed_is_left_out(tmp_path):
    now = time.monotonic()
    context = Context(torch.device("cpu"), True, 0, tmp_path / "rows", now, now + 60)
    left = iter(range(4))
    calls = {"steady": lambda: None, "fails in the second round": lambda: next(left)}
    times = in_turn(context, calls, rounds=2, until=0.0)
    assert set(times) == {"steady"}
    assert times["steady"]["rounds"] == 2
    assert "StopIteration" in (tmp_path / "rows").read_text()


def test_a_record_can_be_written_from_a_checkout_that_is_not_installed(monkeypatch):
    def version(name):
        if name == "sae_lib":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(machine, "version", version)
    assert machine.versions()["sae_lib"] == sae_lib.__version__


def test_curves_cross_where_their_ratio_is_one():
    assert crossing([(1, 0.5), (100, 2.0)]) == pytest.approx(10)
    assert crossing([(1, 2.0), (4, 1.0), (16, 0.5)]) == pytest.approx(4)
    assert crossing([(1, 0.5), (100, 0.9)]) is None
    assert crossing([]) is None
    twice = [(1, 2.0), (4, 0.5), (16, 2.0), (64, 0.5)]
    assert [crossing(twice), crossing(twice, last=True)] == pytest.approx([2, 32])


def test_constants_are_the_most_cautious():
    assert crossover.constants([0.0567, 0.0312], [2.0**30, 1.5 * 2**31]) == {
        "DENSEST": 0.031, "SMALLEST": "2**32",
    }  # fmt: skip
    assert crossover.constants([None], [None]) == {"DENSEST": None, "SMALLEST": None}
    assert crossover.constants([0.0], [8.0, None]) == {"DENSEST": 0.0, "SMALLEST": None}


def test_rows_are_json_whatever_they_hold(tmp_path):
    context = Context(torch.device("cpu"), True, 0, tmp_path / "rows", time.monotonic(), time.monotonic())
    context.row("a", number=torch.tensor(2.0), kind=torch.bfloat16, missing=float("inf"))
    assert json.loads((tmp_path / "rows").read_text()) == {
        "name": "a", "number": 2.0, "kind": "bfloat16", "missing": None,
    }  # fmt: skip
