"""What chapter 13's record of false positives concludes from its trials."""

import json

import numpy as np
import torch
from scipy.stats import binom

from sae_experiments.records import nulls as benchmark
from sae_lib import records
from sae_lib.metrics import nulls


def made_up(number, draws=19, concepts=4, latents=2000):
    """A trial in which nothing is to be found: every φ is noise, and the search takes the largest of many."""
    g = torch.Generator().manual_seed(number)
    chosen = torch.randn(draws + 1, concepts, latents, generator=g).amax(dim=2)
    found, same, same_chosen = torch.randn(3, draws + 1, concepts, generator=g)
    permuted = torch.randn(99, concepts, generator=g) / 30
    return {
        "number": number, "chosen": chosen.tolist(), "found": found.tolist(), "permuted": permuted.tolist(),
        "unsearched": same[1:].tolist(), "unsearched_chosen": same_chosen[1:].tolist(),
    }  # fmt: skip


def test_verdicts_keep_the_level_or_break_it():
    trials = [made_up(i) for i in range(120)]
    rows = benchmark.verdicts(trials)
    assert [row["number"] for row in rows] == list(range(120))
    assert {row["others"] for row in rows} == {119 * 20}
    rate = {name: np.mean([row["p"][name] <= 0.05 for row in rows]) for name in rows[0]["p"]}
    most = binom.ppf(0.999, 120, 0.05) / 120
    kept = [name for name in rate if "max statistic" in name or "Benjamini" in name]
    assert len(kept) == 5
    assert all(rate[name] <= most for name in kept)
    # searched for here and not there, or held against a null that is too narrow
    assert rate["no search in the null, one half"] > 0.9
    assert rate["labels permuted"] > 0.8
    # 19 draws: p of a plain maximum by hand
    first = torch.tensor(trials[0]["found"])
    expected = (1 + (first[1:].amax(dim=1) >= first[0].max()).sum().item()) / 20
    assert rows[0]["p"]["max statistic"] == expected


def test_benjamini_hochberg_uses_the_models_of_other_trials():
    trials = [made_up(i) for i in range(3)]
    others = torch.cat([torch.tensor(t["found"], dtype=torch.float64) for t in trials[1:]])
    own = torch.tensor(trials[0]["found"], dtype=torch.float64)[0]
    expected = nulls.benjamini_hochberg(nulls.empirical_p_values(own, others)).min().item()
    assert benchmark.verdicts(trials)[0]["p"]["Benjamini–Hochberg, all others"] == round(expected, 5)


def test_a_record_is_made_in_pieces(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(benchmark, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(benchmark, "trial", fast_trial)
    path = tmp_path / "records" / "13_false_positives.json"
    benchmark.main("false-positives", seconds=0, trials=4)
    assert "0 of 4 runs are kept" in capsys.readouterr().out
    assert not path.exists()
    benchmark.main("false-positives", trials=4)
    record = records.read(path)
    assert record.rows == json.loads(json.dumps(benchmark.verdicts([made_up(i) for i in range(4)])))


def fast_trial(number):
    """Stands where a trial takes seconds."""
    return {name: value for name, value in made_up(number).items() if name != "number"}
