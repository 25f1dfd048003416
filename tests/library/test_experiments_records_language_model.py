"""The search behind chapter 10's records, on a made-up law of L0 and knob whose answer is known."""

import math

import pytest

from sae_experiments.records import language_model
from sae_experiments.records.common import K_METHODS, SLOPES
from sae_experiments.records.language_model import START, chosen, seek
from sae_experiments.testbed import METHODS
from sae_lib import records

# each method's L0 at its starting knob is off by this factor, and its slope by that one
OFF, STEEPER = 2.1, 1.3


def law(method, lr, corpus, layer, seed):
    """L0 as a power of the knob that ``describe`` shows; the error is least at a rate of 0.003."""
    text = method.describe()
    name = text["name"]
    start, slope = START[name], SLOPES[name]
    names = {"gba": "htf", "ba": "target_frequency", "l1": "coefficient", "jumprelu": "coefficient"}
    knob = text[names.get(name, "k")]
    l0 = knob if name == "topk" else 32 * OFF * (knob / start) ** (STEEPER * slope)
    return {"nmse": 0.1 * abs(math.log(lr / 0.003)) + 1 / l0, "l0": l0, "dead": 0.0}


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "fit", law)
    monkeypatch.setattr(language_model, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(language_model, "RECORDS", str(tmp_path))
    monkeypatch.setattr(language_model.testbed, "open_testbed", lambda *arguments: None)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [20, 32, 60])
def test_the_search_finds_the_knob_in_four_trainings(made_up, method, target):
    trials = seek(method, 0.003, "code", 14, target, START[method])["trials"]
    assert len(trials) <= 4
    best = chosen([{"lr": 0.003, **trial} for trial in trials], target)
    # K is a whole number: half a step off at the least
    coarse = 0.7 / target if method in K_METHODS else 0
    assert abs(best["l0"] / target - 1) <= 0.05 + 1.4 * coarse


def test_a_frequency_stays_below_one_and_the_search_ends_there(made_up):
    trials = seek("gba", 0.003, "code", 14, 10_000, START["gba"])["trials"]
    assert trials[-1]["knob"] == 1.0
    assert len({trial["knob"] for trial in trials}) == len(trials)


def test_the_nearest_trial_of_a_rate_stands_and_the_least_error_among_those_counts():
    trials = [
        {"lr": 0.001, "l0": 32, "nmse": 0.3},
        {"lr": 0.003, "l0": 33, "nmse": 0.2},
        {"lr": 0.003, "l0": 35, "nmse": 0.1},  # within 10 %, but another one of that rate is nearer
        {"lr": 0.01, "l0": 40, "nmse": 0.0},
    ]
    assert chosen(trials, 32) == trials[1]
    assert chosen(trials, 50) == trials[3]


def test_every_stage_writes_its_record(made_up):
    for stage in ("search", "frontier", "ablation"):
        language_model.main([stage, "--workers", "1"])
    rows = {path.stem: records.read(path).rows for path in made_up.glob("10_*.json")}
    picked = [row for row in rows["10_search"] if row["chosen"]]
    assert len(picked) == 7 * 6
    assert {row["lr"] for row in picked} == {0.003}
    assert {row["seed"] for row in rows["10_search"]}.isdisjoint({row["seed"] for row in rows["10_frontier"]})
    assert len(rows["10_frontier"]) == 7 * 3 * 3
    assert [row["l0"] for row in rows["10_frontier"] if row["method"] == "topk"] == [20] * 3 + [60] * 3 + [
        200
    ] * 3
    assert len(rows["10_ablation"]) == 8 * 3


def test_the_search_keeps_the_places_of_its_record_and_adds_the_missing_one(made_up, monkeypatch):
    language_model.main(["search", "--workers", "1"])
    path = made_up / "10_search.json"
    whole = records.read(path)
    part = [row for row in whole.rows if (row["corpus"], row["layer"]) != ("wikipedia", 26)]
    marked = [row | {"nmse": -1.0} for row in part]
    records.write(path, marked, seconds=1000)
    language_model.main(["search", "--workers", "1"])
    again = records.read(path)
    assert again.rows[: len(part)] == marked
    assert again.rows[len(part) :] == whole.rows[len(part) :]
    assert again.made["seconds"] >= 1000


def test_the_frontier_keeps_the_runs_of_its_record_and_adds_the_missing_sparsity(made_up):
    for stage in ("search", "frontier"):
        language_model.main([stage, "--workers", "1"])
    path = made_up / "10_frontier.json"
    whole = records.read(path).rows
    lowest = {m: min(row["knob"] for row in whole if row["method"] == m) for m in ("gba", "topk")}
    part = [row | {"nmse": -1.0} for row in whole if row["knob"] != lowest.get(row["method"])]
    records.write(path, part, seconds=1000)
    language_model.main(["frontier", "--workers", "1"])
    again = records.read(path)
    assert again.rows[: len(part)] == part
    added = again.rows[len(part) :]
    assert [(r["method"], r["knob"], r["seed"]) for r in added] == [
        (m, k, s) for m, k in lowest.items() for s in (0, 1, 2)
    ]
    assert again.made["seconds"] >= 1000


def test_seeds_and_places_are_run_at_what_the_search_chose(made_up, monkeypatch):
    def kept(method, knob, lr, seed, **where):
        return {"kept": f"{method}-{seed}", "nmse": 0.1, "l0": 32.0, "dead": 0.0, "seconds": 1.0}

    monkeypatch.setattr(language_model.consistency, "fit", kept)
    monkeypatch.setattr(language_model.consistency, "RUNS", str(made_up / "consistency"))

    def loss(kept):
        return {"losses": {method: {"ce_recovered": float(kept[method][-1])} for method in kept}}

    monkeypatch.setattr(language_model, "loss", loss)
    for stage in ("search", "seeds", "losses", "places"):
        language_model.main([stage, "--workers", "1"])
    rows = [row for stage in ("seeds", "places") for row in records.read(made_up / f"10_{stage}.json").rows]
    assert len(rows) == 6 * 7 * 3
    knobs = {(r["corpus"], r["layer"], r["method"]): r["knob"] for r in rows}
    picked = [r for r in records.read(made_up / "10_search.json").rows if r["chosen"]]
    assert all(knobs[r["corpus"], r["layer"], r["method"]] == r["knob"] for r in picked)
    losses = records.read(made_up / "10_losses.json").rows
    assert {(r["method"], r["seed"]) for r in losses} == {(m, s) for m in METHODS for s in (0, 1, 2)}
    assert all(r["ce_recovered"] == r["seed"] for r in losses)


@pytest.mark.parametrize("stage", ["frontier", "seeds", "losses", "places"])
def test_the_later_stages_need_the_search(made_up, stage):
    with pytest.raises(FileNotFoundError, match="10_search"):
        language_model.main([stage, "--workers", "1"])
