"""A knob turned from a start, against the searches that made the book's records before ``tune`` had one."""

import hashlib
import itertools
import math

import pytest

from sae_experiments.records.common import BUDGET, K_METHODS, SLOPES, setting, towards, turn_knob
from sae_lib.sweeps import tune

START = {"gba": 0.3, "ba": 0.15, "topk": 32, "l1": 0.045, "jumprelu": 1e-3}
SHAPES = ("power", "noise", "flat", "bend", "cliff")


def law(method, off, steeper, shape):
    """L0 of a knob in closed form: off at the start by a factor, and steeper than usual."""

    def l0(knob):
        value = 32 * off * (knob / START[method]) ** (steeper * SLOPES[method])
        if shape == "noise":
            byte = hashlib.sha256(f"{knob:.6g} {off} {steeper}".encode()).digest()[0]
            value *= 1 + 0.06 * (byte / 127.5 - 1)
        elif shape == "flat":
            value = min(max(value, 8), 60)
        elif shape == "bend":
            value = min(value, 32 * (value / 32) ** 0.4)
        elif shape == "cliff" and value < 15:
            value = 0.0
        return value

    return l0


def miss(l0, target):
    return abs(math.log(max(l0, 0.1) / target))


def former_secants(method, l0, target):
    """The search of chapter 10's record."""
    usual, knob, trials = SLOPES[method], START[method], []
    while len(trials) < BUDGET and not any(tried == knob for tried, _ in trials):
        trials.append((knob, l0(knob)))
        (best, value), *others = sorted(trials, key=lambda t: miss(t[1], target))
        if abs(value / target - 1) <= 0.05:
            break
        slope = usual
        if others:
            slope = math.log(max(value, 0.1) / max(others[0][1], 0.1)) / math.log(best / others[0][0])
            slope = slope if 1 / 3 < slope / usual < 3 else usual
        knob = setting(method, towards(best, value, target, slope))
    return trials


def former_steps(method, l0, target):
    """The search of chapter 11's records."""
    knob, trials = START[method], []
    while len(trials) < BUDGET:
        trials.append((knob, l0(knob)))
        if abs(trials[-1][1] / target - 1) <= 0.1:
            break
        step = towards(1.0, trials[-1][1], target, SLOPES[method])
        knob = setting(method, knob * min(max(step, 0.3), 3))
    return trials


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("former", "within"), [(former_secants, 0.05), (former_steps, 0.1)])
def test_the_search_takes_as_few_trials_as_the_former_ones_and_ends_as_near(former, within, shape):
    trials, misses = [0, 0], [0.0, 0.0]
    cases = itertools.product(START, (0.3, 0.5, 0.8, 1.2, 2.1, 3.3), (0.6, 1, 1.3, 1.8), (20, 32, 50))
    for method, off, steeper, target in cases:
        if former is former_steps and method in K_METHODS:
            continue  # it left K alone
        l0 = law(method, off, steeper, shape)
        found = former(method, l0, target), turn_knob(method, l0, target, START[method], within).trials
        for i, tried in enumerate(found):
            trials[i] += len(tried)
            misses[i] += min(miss(value, target) for _, value in tried)
        assert len(found[1]) <= BUDGET
    # a collapse may take some more trials, which then lead somewhere
    assert trials[1] <= trials[0] * (1.05 if shape == "cliff" else 1.01)
    assert misses[1] <= misses[0] * 1.01


def test_the_first_steps_are_those_of_the_former_search_on_a_power_law():
    for method, target in itertools.product(START, (20, 32, 50)):
        l0 = law(method, 1.7, 1.3, "power")
        assert turn_knob(method, l0, target, START[method], 0.05).trials == former_secants(method, l0, target)


def test_a_search_stays_within_its_ends_and_repeats_no_setting():
    tuned = tune(lambda k: k, 100, low=2, high=10, start=5, slope=1)
    assert tuned.trials == [(5, 5), (10, 10)]
    tuned = tune(lambda k: 2 * k, 33, start=20, slope=1, integer=True, tolerance=0)
    assert tuned.knob == 16
    assert len({knob for knob, _ in tuned.trials}) == len(tuned.trials)


def test_a_measurement_that_is_no_number_ends_the_search():
    tuned = tune(lambda k: math.nan if k > 3 else k, 10, start=2, slope=1)
    assert tuned.trials[0] == (2, 2)
    assert len(tuned.trials) == 2
    assert (tuned.knob, tuned.value) == (2, 2)


def test_the_bracket_s_trials_are_as_they_were():
    """Chapters 3 and 8 tune between two ends; these sequences are those of the first edition."""
    tuned = tune(lambda k: math.exp(7 * k), 4.0, 0.05, 0.5, budget=6)
    assert [round(knob, 6) for knob, _ in tuned.trials] == [0.05, 0.5, 0.106648, 0.152708, 0.17828, 0.197646]
    tuned = tune(lambda k: 3 * k + 5, 34, 1, 50, integer=True)
    assert [knob for knob, _ in tuned.trials] == [1, 50, 7, 9, 11, 10]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 1}, "high=inf; expected 0 < low < high"),
        ({"start": 1}, "slope=None"),
        ({"start": 0, "slope": 1}, "start=0"),
        ({"start": 3, "high": 2, "slope": 1}, "start=3"),
    ],
)
def test_a_search_that_cannot_begin_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tune(abs, 1, **settings)
