"""Sweeps: same rows whatever the workers, cached by content, resumable; tuning; records."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_experiments import null_models
from sae_lib import L1, TopK, records, sweeps
from sae_lib.sweeps import SweepError, spread, summary, sweep, tune
from sae_lib.sweeps.fingerprint import fingerprint

FACTOR = 3


def noisy(x, seed):
    draw = torch.randn(1, generator=torch.Generator().manual_seed(seed)).item()
    return {"y": FACTOR * x + draw, "threads": torch.get_num_threads()}


CELLS = [{"x": x, "seed": seed} for x in (1, 2, 3) for seed in (0, 1)]


def test_rows_come_in_the_order_of_the_cells_and_do_not_depend_on_the_workers():
    rows = sweep(noisy, CELLS, workers=1)
    assert [{"x": r["x"], "seed": r["seed"]} for r in rows] == CELLS
    assert rows == sweep(noisy, CELLS, workers=2)
    assert {row["threads"] for row in rows} == {1}
    assert rows[3]["y"] == noisy(2, 1)["y"]


def test_threads_of_the_caller_are_left_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sweep(noisy, CELLS[:1], workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_finished_runs_are_found_again(tmp_path):
    def counted(x):
        with open(tmp_path.parent / f"{tmp_path.name}.calls", "a") as file:
            file.write(f"{x} ")
        return {"y": x, "nothing": math.nan}

    calls = tmp_path.parent / f"{tmp_path.name}.calls"
    # a path is no plain value, so it has to come in by the cells
    with pytest.raises(ValueError, match="uses the variable tmp_path"):
        sweep(counted, [{"x": 1}], folder=tmp_path)
    assert not calls.exists()

    first = sweep(_counted, [{"x": x, "log": str(calls)} for x in (1, 2)], folder=tmp_path, workers=1)
    again = sweep(_counted, [{"x": x, "log": str(calls)} for x in (2, 3, 1)], folder=tmp_path, workers=1)
    assert calls.read_text() == "1 2 3 "
    assert [r["y"] for r in again] == [4, 9, 1]
    assert again[2] == first[0]
    assert all(math.isnan(r["nothing"]) for r in again)


def _counted(x, log):
    with open(log, "a") as file:
        file.write(f"{x} ")
    return {"y": x * x, "nothing": math.nan}


def _fails_at_two(x, log):
    _counted(x, log)
    if x == 2:
        raise OverflowError("too much")
    return {"y": x}


def test_a_failure_names_the_cell_and_loses_nothing(tmp_path):
    cells = [{"x": x, "log": str(tmp_path / "calls")} for x in (1, 2, 3)]
    for _ in range(2):
        with pytest.raises(SweepError, match=r"x=2.*OverflowError: too much"):
            sweep(_fails_at_two, cells, folder=tmp_path / "cache", workers=1)
    assert (tmp_path / "calls").read_text() == "1 2 2 "
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_file_is_computed_again(tmp_path):
    expected = sweep(noisy, CELLS, folder=tmp_path, workers=1)
    for path, text in zip(
        sorted(tmp_path.iterdir()), ["", "{", "[]", '{"cell": 1, "result": {}}'], strict=False
    ):
        path.write_text(text)
    assert sweep(noisy, CELLS, folder=tmp_path, workers=1) == expected


def test_what_the_function_uses_is_part_of_the_key(monkeypatch):
    before = fingerprint(noisy)
    monkeypatch.setitem(noisy.__globals__, "FACTOR", 4)
    assert fingerprint(noisy) != before


def _uses_helper(x):
    return _counted(x, "log")


def test_helpers_of_the_same_module_are_traced():
    found = fingerprint(_uses_helper)
    assert "file.write" in found["_counted"]


def _uses_experiments(x):
    return null_models.halves(x)


def test_modules_of_the_experiments_count_with_what_they_import():
    found = fingerprint(_uses_experiments)
    assert "def halves" in found["source of sae_experiments.null_models"]
    assert "def search" in found["source of sae_experiments.concept_search"]
    assert not any("sae_lib" in name or "torch" in name for name in found)
    # a function of the experiments themselves
    assert "source of sae_experiments.concept_search" in fingerprint(null_models.draw)


step = object()  # not a plain value: a function that used it could not be cached


def _uses_attribute(x):
    return {"last": [part.step for part in x]}


def test_an_attribute_is_not_taken_for_a_variable_of_the_same_name():
    assert list(fingerprint(_uses_attribute)) == ["_uses_attribute"]


def _uses_variable_inside(x):
    return [FACTOR * part for part in x]


def test_variables_inside_a_comprehension_count():
    assert fingerprint(_uses_variable_inside)["FACTOR"] == FACTOR


def test_a_value_that_is_not_finite_spoils_the_summary_and_nothing_else():
    rows = [{"k": 1, "y": math.nan}, {"k": 1, "y": 1.0}, {"k": 2, "y": 1.0}, {"k": 2, "y": 3.0}]
    found = summary(rows, by=["k"], of=["y"])
    assert f"{found[1,]['y']:.1f}" == "nan ± nan"
    assert found[2,]["y"].mean == 2


def test_methods_are_arguments_and_show_as_their_settings():
    rows = sweep(_name, [{"method": TopK(k=3)}, {"method": L1(0.5)}], workers=2)
    assert [r["method"]["name"] for r in rows] == ["topk", "l1"]
    assert [r["kind"] for r in rows] == ["TopK", "L1"]
    assert rows[0]["method"]["k"] == 3


def _name(method):
    return {"kind": type(method).__name__}


def _tensor(x):
    return {"y": torch.ones(x)}


def _clash(x):
    return {"x": 1}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sweep(noisy, CELLS, workers=0), ValueError, "workers is 0"),
        (lambda: sweep(noisy, [{"x": torch.ones(1)}]), ValueError, "argument x is a Tensor"),
        (lambda: sweep(_tensor, [{"x": 1}], workers=1), SweepError, "Tensor is not JSON"),
        (lambda: sweep(_clash, [{"x": 1}], workers=1), SweepError, "returns 'x'"),
        (lambda: summary([{"a": 1}], by=["b"], of=["a"]), KeyError, "no 'b'"),
        (lambda: spread([]), ValueError, "at least one"),
        (lambda: tune(abs, 1, 0, 1), ValueError, "low=0"),
        (lambda: tune(abs, 0, 1, 2), ValueError, "target is 0"),
        (lambda: tune(abs, 1, 1, 2, budget=1), ValueError, "budget is 1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_summary_and_its_text():
    rows = [{"k": k, "y": y} for k, y in [(1, 0.0), (2, 5.0), (1, 1.0), (1, 2.0)]]
    found = summary(rows, by=["k"], of=["y"])
    assert list(found) == [(1,), (2,)]
    assert found[1,]["y"] == sweeps.Spread(1.0, 1.0, 0.0, 2.0, 3)
    assert f"{found[1,]['y']:.1f}" == "1.0 ± 1.0"
    assert found[2,]["y"].sd == 0


@given(st.floats(-3, 3).filter(lambda p: abs(p) > 0.2), st.floats(-2, 2), st.floats(0.05, 0.95))
def test_a_power_law_is_hit_at_once(power, factor, where):
    def measure(knob):
        return math.exp(factor) * knob**power

    target = measure(0.01 * 1000**where)
    found = tune(measure, target, 0.01, 10, budget=6)
    assert abs(math.log(found.value / target)) < 0.05 or len(found.trials) == 6
    assert abs(math.log(found.value / target)) < 0.2 * abs(power)
    assert (found.knob, found.value) in found.trials


def test_tuning_whole_numbers_beyond_reach_and_within_budget():
    found = tune(lambda k: 2 * k, 34, 1, 50, integer=True, budget=10)
    assert (found.knob, found.value) == (17, 34)
    assert all(isinstance(k, int) for k, _ in found.trials)
    beyond = tune(lambda k: k, 100, 1, 10)
    assert (beyond.knob, len(beyond.trials)) == (10, 2)
    rough = tune(lambda k: math.exp(8 * math.log(k) ** 3), 2, 0.5, 4, budget=5)
    assert len(rough.trials) <= 5


def test_a_record_comes_back_with_its_provenance(tmp_path):
    rows = sweep(noisy, CELLS, workers=1)
    records.write(tmp_path / "records" / "00_test.json", rows, seconds=125)
    record = records.read(tmp_path / "records" / "00_test.json")
    assert record.rows == rows
    assert record.made["versions"]["torch"] == torch.__version__
    assert "2 minutes" in record.label
    assert str(tmp_path) not in (tmp_path / "records" / "00_test.json").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": "other", "rows": [], "made": {}})])
def test_what_is_no_record_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(records.RecordError, match=r"x\.json"):
        records.read(tmp_path / "x.json")
    with pytest.raises(ValueError, match="no rows"):
        records.write(tmp_path / "y.json", [], seconds=1)
