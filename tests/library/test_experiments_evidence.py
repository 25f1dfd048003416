"""The large runs on stores of toy rows: planned, stopped and resumed, measured, recorded."""

import dataclasses
import json
import math
import signal

import pytest
import torch

from sae_experiments.evidence import command, data, measuring, parser, plans, recording, training
from sae_experiments.evidence.plans import NotReadyError
from sae_experiments.evidence.runs import Run
from sae_lib import load, records
from sae_lib.activations.manifest import Manifest, write_shard
from sae_lib.normalisation import Normalisation

torch.set_num_threads(1)
D, BLOCK, PER_SHARD = 16, 16, 64
SIZE = {"width": 32, "rows": 1600, "batch_size": 32, "l0": 3}
TOPK = Run("search", "topk", lr=0.01, settings={"tied": True, "k": 3}, **SIZE)
GBA = Run("search", "gba", lr=0.01, settings={"tied": False, "every": 2, "groups": 4}, **SIZE)
TIMES = {"seconds", "measuring_seconds", "trials"}


def toy_rows(n, seed):
    """Sparse combinations of 24 directions, away from the origin."""
    dice = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, D, generator=torch.Generator().manual_seed(9))
    weights = torch.rand(n, 24, generator=dice) * (torch.rand(n, 24, generator=dice) < 0.1)
    return weights @ directions + 0.5


def write_store(folder, n_shards, seed, finished=True):
    manifest = Manifest(
        {"block_size": BLOCK, "blocks_per_shard": PER_SHARD, "dtype": "float32", "n_tokens": 5000},
        D, finished=finished,
    )  # fmt: skip
    n = BLOCK * PER_SHARD
    for index in range(n_shards):
        rows = toy_rows(n, seed + index)
        manifest.normalisation = manifest.normalisation or Normalisation.fit("scale", rows).to_dict()
        blocks = torch.zeros(PER_SHARD, BLOCK, dtype=torch.int64)
        manifest.shards.append(write_shard(folder, index, rows, blocks, torch.arange(n)))
    manifest.write(folder)


@pytest.fixture
def stores(tmp_path):
    """Three shards of training rows, of a harvest that is over, and one held out."""
    write_store(tmp_path / "stores" / "code-14", 3, 0)
    write_store(tmp_path / "stores" / "code-held-out" / "resid_post.14", 1, 50)
    data._all_rows.cache_clear()
    return tmp_path / "stores"


def make(run, stores, folder, **options):
    return training.make(run, stores=stores, folder=folder, **options)


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Have a signal arrive at a step of the next training whose log is written there."""
    note = training.Clock.note

    def stopping(clock, *arguments):
        note(clock, *arguments)
        if arguments and arguments[0] == step:
            signal.raise_signal(number)

    monkeypatch.setattr(training.Clock, "note", stopping)


# ---- plans


def test_names_are_stable_and_differ():
    assert TOPK.name == "code14-topk-tied-l3-m32-1600-lr0.01-k3-b32-s0"
    assert plans.search()[0].name == "code14-gba-untied-l32-m4096-1000k-lr0.003-every1-s0"
    assert (
        plans.search()[13].name == "code14-topk-untied-l32-m4096-1000k-lr0.003-auxcoefficient0.03125-k32-s0"
    )
    other = dataclasses.replace(GBA, ladder=10, seed=1)
    assert other.name == "code14-gba-untied-l3-m32-1600-lr0.01-every2-groups4-ladder10-b32-s1"
    for stage in plans.STAGES.values():
        runs = stage(plans.provisional)
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            ready = run if run.is_set else run.with_knob(run.start)
            assert ready.build().name == run.method
            assert (run.trial(1).rows, run.steps) == (
                max(run.rows // 12, min(run.rows, 150_000)),
                run.rows // 1024,
            )


def test_the_search_spends_the_same_on_every_method():
    runs = plans.search()
    for method in ("gba", "topk", "batch_topk"):
        mine = [run for run in runs if run.method == method]
        assert len(mine) == 12
        assert sum(run.tied for run in mine) == 6
    assert {(run.width, run.rows, run.seed, run.l0) for run in runs} == {(4096, 1_000_000, 0, 32)}


def test_plans_have_the_runs_that_were_asked_for():
    count = {name: len(stage(plans.provisional)) for name, stage in plans.STAGES.items()}
    assert count == {
        "search": 36, "frontier": 15, "baselines": 6, "levels": 12, "size": 100, "places": 25,
    }  # fmt: skip
    first = plans.frontier(plans.provisional)[:5]
    assert {run.seed for run in first} == {0}
    assert {(run.method, run.tied) for run in first} == set(plans.CONTESTANTS)
    shared = {run.name for run in plans.size(plans.provisional)} & {run.name for run in first}
    assert len(shared) == 5, "the size grid ends in the frontier"
    assert all(run.settings["k"] == run.l0 for run in plans.levels(plans.provisional) if run.method == "topk")


def fake(run, fvu, l0, trials=()):
    return {"name": run.name, "fvu": fvu, "l0": l0, "target": run.l0, "trials": list(trials)}


def test_the_best_of_the_search_is_taken_at_the_wanted_l0():
    rows = [fake(run, 0.2, 32.0) for run in plans.search()]
    gba = [run for run in plans.search() if (run.method, run.tied) == ("gba", False)]
    trials = [{"l0": l0, "fvu": 0.3 * (l0 / 32) ** -0.4} for l0 in (24.0, 32.0, 40.0)]
    by_name = {row["name"]: row for row in rows}
    # less error, but only because more latents fire
    by_name[gba[0].name] |= {"fvu": 0.19, "l0": 40.0, "trials": trials}
    by_name[gba[4].name] |= {"fvu": 0.19, "l0": 32.5}
    # so far off that nothing is known
    by_name[gba[5].name] |= {"fvu": 0.01, "l0": 90.0}
    assert plans.frontier_slope(rows) == pytest.approx(-0.4)
    assert plans.matched_fvu(by_name[gba[0].name], -0.4) == pytest.approx(0.19 * (32 / 40) ** -0.4)
    assert plans.found(rows)("gba", False) == {"lr": gba[4].lr, "every": gba[4].settings["every"]}
    assert plans.frontier_slope([]) == plans.SLOPE
    assert [row["name"] for row in plans.rows_of("search", rows)] == [run.name for run in plans.search()]
    by_name[gba[4].name] |= {"fvu": None, "l0": None}
    assert plans.found(rows)("gba", False) != {"lr": gba[4].lr, "every": gba[4].settings["every"]}
    with pytest.raises(NotReadyError, match="topk tied: 6 of 6 runs of the search are missing"):
        plans.plan("levels", [row for row in rows if "topk-tied" not in row["name"]])


# ---- runs


def test_a_row_says_what_was_asked_and_the_fvu_is_the_formula_s(stores, tmp_path):
    row = make(TOPK, stores, tmp_path / "runs")
    asked = {
        "stage": "search", "method": "topk", "tied": True, "width": 32, "rows": 1600, "seed": 0, "layer": 14,
        "corpus": "code", "lr": 0.01, "k": 3, "steps": 50, "store_rows": 3072, "trials": [],
    }  # fmt: skip
    assert asked.items() <= row.items()
    assert row["seconds"] > 0
    rows = toy_rows(BLOCK * PER_SHARD, 50)
    assert row["held_out_rows"] == len(rows)
    sae = load(tmp_path / "runs" / TOPK.name)
    error = (sae.reconstruct(rows) - rows).double().square().sum()
    spread = (rows.double() - rows.double().mean(dim=0)).square().sum()
    assert row["fvu"] == pytest.approx((error / spread).item(), rel=1e-4)
    assert row["nmse"] == pytest.approx((error / rows.double().square().sum()).item(), rel=1e-4)
    assert row["nmse"] < row["fvu"] < 1
    rate = (sae.encode(rows) != 0).double().mean(dim=0)
    assert row["dead"] == pytest.approx((rate == 0).double().mean().item())
    assert row["rate_quantiles"][-1] == pytest.approx(rate.max().item(), rel=1e-4)


def test_the_knob_of_gba_is_searched_and_its_groups_measured(stores, tmp_path):
    row = make(GBA, stores, tmp_path / "runs")
    assert 1 <= len(row["trials"]) <= training.BUDGET
    nearest = min(row["trials"], key=lambda trial: abs(math.log(trial["l0"] / 3)))
    assert row["htf"] == nearest["knob"]
    assert row["ltf"] == pytest.approx(row["htf"] / 100)
    assert row["trial_rows"] == 1600
    assert len(row["group_rate"]) == len(row["group_target"]) == 4
    assert sum(row["group_rate"]) * 32 / 4 == pytest.approx(row["l0"], rel=1e-3)
    kept = list((tmp_path / "runs" / "trials").iterdir())
    assert not any(path.is_dir() for path in kept), "autoencoders of trials are not kept"
    assert sum(path.suffix == ".json" for path in kept) == len(row["trials"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_to_the_same_row(stores, tmp_path, monkeypatch, number):
    run = dataclasses.replace(TOPK, rows=3200)
    unbroken = make(run, stores, tmp_path / "unbroken")
    with monkeypatch.context() as patch, command.stoppable():
        stop_at(patch, 50, number)
        with pytest.raises(KeyboardInterrupt, match="after step 50 of 100"):
            make(run, stores, tmp_path / "broken")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert command.state(run, {}, tmp_path / "broken") == "in progress: step 50 of 100"
    resumed = make(run, stores, tmp_path / "broken")
    assert {k: v for k, v in resumed.items() if k not in TIMES} == {
        k: v for k, v in unbroken.items() if k not in TIMES
    }


def test_an_autoencoder_that_is_kept_is_measured_again_and_not_trained(stores, tmp_path, monkeypatch):
    before = make(TOPK, stores, tmp_path / "runs")
    (tmp_path / "runs" / TOPK.name / "checkpoint.safetensors").unlink()
    monkeypatch.setattr(training.sae_lib, "train", lambda *_, **__: pytest.fail("trained"))
    again = make(TOPK, stores, tmp_path / "runs")
    assert again["fvu"] == pytest.approx(before["fvu"], rel=1e-4)
    assert again["seconds"] == pytest.approx(before["seconds"], rel=1e-4)
    write_store(stores / "code-14", 2, 7)
    with pytest.raises(ValueError, match="was trained on other rows than those of"):
        make(TOPK, stores, tmp_path / "runs")


def test_weights_that_overflow_are_on_record_as_failed(stores, tmp_path, monkeypatch):
    def diverge(*_, **__):
        raise training.NonFiniteLossError("the loss is nan")

    monkeypatch.setattr(training.sae_lib, "train", diverge)
    row = make(TOPK, stores, tmp_path / "runs")
    assert (row["fvu"], row["failed"]) == (None, "the loss is nan")
    json.dumps(row, allow_nan=False)
    assert make(GBA, stores, tmp_path / "runs")["trials"][0]["l0"] is None


# ---- stores


def test_an_unfinished_store_is_refused_unless_the_first_rows_do(stores, tmp_path):
    write_store(stores / "code-14", 2, 0, finished=False)
    with pytest.raises(
        NotReadyError, match=r"unfinished, 2,048 rows of about 5,000; wait for .*stores code-14"
    ):
        make(TOPK, stores, tmp_path / "runs")
    with pytest.raises(NotReadyError, match="or set --first-rows from 1,600 to the rows"):
        data.training_rows(TOPK, stores, 3000)
    early = data.training_rows(TOPK, stores, 2000)
    assert early.n_rows == 2048
    # the same rows when the harvest is over
    write_store(stores / "code-14", 3, 0)
    assert data.training_rows(TOPK, stores, 2000).describe() == early.describe()
    assert data.training_rows(TOPK, stores).n_rows == 3072
    for other in (dataclasses.replace(TOPK, stage="frontier"), dataclasses.replace(TOPK, rows=2001)):
        assert data.training_rows(other, stores, 2000).n_rows == 3072
    with pytest.raises(
        NotReadyError, match=r"no store in .*; run python -m sae_experiments.stores code-2-14-26"
    ):
        data.training_rows(dataclasses.replace(TOPK, layer=2), stores)
    with pytest.raises(NotReadyError, match="stores wikipedia-held-out first"):
        data.held_out_rows(dataclasses.replace(TOPK, corpus="wikipedia"), stores)


# ---- measuring and recording


def test_the_nearest_cosine_is_the_mean_of_the_largest():
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    assert measuring.nearest_cosine(rows) == pytest.approx((1 + 1 + 2 * 0.5**0.5) / 4)
    assert measuring.nearest_cosine(rows[:1]) == 0


def test_rows_merge_and_keep_what_they_were_made_with(tmp_path, monkeypatch):
    path, lock = tmp_path / "records" / recording.NAME, tmp_path / "lock"
    row = {
        "stage": "search",
        "name": "a",
        "fvu": 0.2,
        "seconds": 4.0,
        "measuring_seconds": 1.0,
        "trials": [{"knob": 1, "seconds": 2.0}],
    }
    recording.add(path, row, lock)
    recording.add(path, row | {"name": "b", "stage": "size"}, lock)
    record = records.read(path)
    assert [r["name"] for r in record.rows] == ["a", "b"]
    assert record.made["command"] == "python -m sae_experiments.evidence search size"
    assert record.made["seconds"] == 12, "trials that two runs share count once"
    assert not any(recording.MADE in r for r in record.rows)
    here = record.made["hardware"]
    monkeypatch.setattr(recording, "hardware", lambda: here | {"cpu": "another"})
    monkeypatch.setattr(records.record, "hardware", lambda: here | {"cpu": "another"})
    recording.add(path, row | {"name": "c"}, lock)
    recording.add(path, row | {"name": "b", "fvu": 0.1}, lock)
    rows = {r["name"]: r for r in records.read(path).rows}
    assert rows["a"][recording.MADE]["hardware"] == here
    assert recording.MADE not in rows["b"]
    assert rows["b"]["fvu"] == 0.1
    assert recording.MADE not in rows["c"]
    assert records.read(path).made["hardware"]["cpu"] == "another"


# ---- the command


@pytest.fixture
def options(stores, tmp_path, monkeypatch):
    monkeypatch.setitem(plans.STAGES, "search", lambda best: [TOPK, GBA])
    return [
        "--stores",
        str(stores),
        "--folder",
        str(tmp_path / "runs"),
        "--records",
        str(tmp_path / "records"),
    ]


def test_the_command_makes_records_and_does_not_make_twice(options, tmp_path, monkeypatch, capsys):
    command.main(["search", *options])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"search 1/2 {TOPK.name}: FVU 0.")
    assert said[0].endswith(" left")
    rows = records.read(tmp_path / "records" / recording.NAME).rows
    assert [row["name"] for row in rows] == [TOPK.name, GBA.name]
    assert not list(tmp_path.rglob("checkpoint.safetensors"))
    monkeypatch.setattr(training, "make", lambda *_, **__: pytest.fail("made twice"))
    command.main(["search", *options])
    assert capsys.readouterr().out == ""
    command.main(["search", "--list", *options])
    said = capsys.readouterr().out
    assert said.startswith("search: 2 runs, 0 to do")
    assert said.count("on record: FVU") == 2


def test_a_stopped_command_says_how_to_go_on(options, monkeypatch, capsys):
    stop_at(monkeypatch, 50)
    long = dataclasses.replace(TOPK, rows=3200)
    monkeypatch.setitem(plans.STAGES, "search", lambda best: [long])
    with pytest.raises(SystemExit, match=r"stopped after step 50 of 100.*; the same command goes on"):
        command.main(["search", *options])
    command.main(["search", "--list", *options])
    assert "in progress: step 50 of 100, about" in capsys.readouterr().out


def test_a_run_that_another_process_has_is_passed_over(options, tmp_path, capsys):
    with command.claimed(TOPK, tmp_path / "runs") as mine:
        assert mine
        command.main(["search", *options])
    rows = records.read(tmp_path / "records" / recording.NAME).rows
    assert [row["name"] for row in rows] == [GBA.name]


def test_what_cannot_be_made_is_said_in_one_line(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        command.main(["search", "serach"])
    assert ending.value.code == "no stage serach; expected some of " + ", ".join(plans.STAGES)
    with pytest.raises(SystemExit, match="--first-rows is 2,000,000; expected at most 1,000,000"):
        command.main(["search", "--first-rows", "2000000"])
    with pytest.raises(SystemExit, match="not all runs were made, as said above"):
        command.main(["search", *options, "--stores", str(tmp_path / "nowhere")])
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("search: there is no store in")


def test_without_a_record_everything_is_listed(tmp_path, capsys):
    command.main(["--folder", str(tmp_path), "--records", str(tmp_path)])
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line[0] != " "] == [*plans.STAGES, "left"]
    assert "settings wait for the search" in said
    assert parser().parse_args(["search", "size"]).stages == ["search", "size"]


def test_times_are_in_proportion_to_the_most_similar_run():
    known = {
        "method": "topk",
        "tied": True,
        "rows": 1600,
        "width": 32,
        "seconds": 4.0,
        "measuring_seconds": 1.0,
        "fvu": 0.1,
        "trials": [],
    }
    twice = dataclasses.replace(TOPK, rows=3200)
    assert command.estimate(twice, [known | {"method": "gba"}, known | {"seconds": 5.0}]) == 11
    wider = dataclasses.replace(TOPK, width=64)
    tried = known | {"trials": [{"seconds": 3.0}]}
    assert command.estimate(wider, [tried]) == 16
    assert command.estimate(dataclasses.replace(wider, seed=1), [tried]) == 10
    assert command.estimate(twice, []) == command.GUESS * 3200 * 32
