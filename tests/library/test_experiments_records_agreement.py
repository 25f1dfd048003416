"""What the record of chapter 10 says of two seeds, on directions whose agreement is known."""

import pytest
import torch

from sae_experiments import testbed
from sae_experiments.records import consistency
from sae_lib import SparseAutoencoder, records


def test_directions_in_both_runs_are_counted_and_cosines_sorted_into_bins(monkeypatch, tmp_path):
    axes = torch.eye(8)
    runs = {
        "one": axes[:4],
        "other": torch.stack([axes[0], 0.81 * axes[1] + 0.5864 * axes[5], axes[6], axes[7]]),
    }
    for name, directions in runs.items():
        sae = SparseAutoencoder(8, 4)
        with torch.no_grad():
            sae.weight.copy_(directions)
        sae.save(tmp_path / name)
    stream = torch.Generator().manual_seed(0)
    rows = (torch.rand(2000, 8, generator=stream) < 0.2).float()
    monkeypatch.setattr(consistency, "source", lambda data, layer: (None, rows))
    found = consistency.share([str(tmp_path / name) for name in runs], "activations")
    # one at cosine 1, one at 0.81, two with nothing in the other run
    assert found["directions"] == [2, 2, 1]
    bins = [0] * consistency.BINS
    for cosine in (0.999, 0.81, 0.0, 0.0):
        bins[int(cosine * consistency.BINS)] += 1
    assert found["histogram"] == bins


def test_the_record_has_every_pair_at_what_the_search_chose(monkeypatch, tmp_path):
    def law(method, knob, lr, seed, data, layer, steps, tied):
        return {"kept": f"{data}-{seed}", "seconds": 10.0}

    monkeypatch.setattr(consistency, "fit", law)
    monkeypatch.setattr(consistency, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(consistency, "share", lambda kept, data: {"kept": kept})
    monkeypatch.setattr(consistency, "RECORDS", str(tmp_path))
    monkeypatch.setattr(testbed, "open_testbed", lambda *arguments, **names: None)
    consistency.main(["agreement", "--workers", "1"])
    record = records.read(tmp_path / "10_agreement.json")
    pairs = [(row["data"], *row["seeds"]) for row in record.rows]
    assert pairs == [(d, i, j) for d in consistency.DATA for i, j in ((0, 1), (0, 2), (1, 2))]
    best = consistency.chosen()["gba", 14]
    for row in record.rows:
        assert (row["knob"], row["lr"], row["layer"]) == (best["knob"], best["lr"], 14)
        assert row["kept"] == [f"{row['data']}-{seed}" for seed in row["seeds"]]
    # six trainings of ten seconds, wherever they were done
    assert record.made["seconds"] == pytest.approx(60, abs=1)
