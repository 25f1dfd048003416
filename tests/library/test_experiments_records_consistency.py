"""What the record of chapter 11 says of agreement, against plain loops."""

import numpy as np
import pytest
import torch

from sae_experiments import testbed
from sae_experiments.records import consistency
from sae_experiments.records.common import K_METHODS, SLOPES
from sae_lib import SparseAutoencoder, activations, language_models, records


def test_latents_are_binned_by_how_often_they_fire():
    stream = torch.Generator().manual_seed(0)
    rates = [10 ** (-5 * torch.rand(60, generator=stream, dtype=torch.float64)) for _ in range(3)]
    for rate in rates:
        rate[:5] = 0.0
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    similarity = {pair: torch.rand(60, generator=stream) for pair in pairs}
    found = consistency.by_rate(similarity, rates)
    low = 0.0
    for b, high in enumerate(consistency.EDGES):
        members = [
            similarity[i, j][m].item()
            for i, j in pairs
            for m in range(60)
            if low < rates[i][m] <= high or (b == 0 and rates[i][m] == 0)
        ]
        assert found["latents"][b] == pytest.approx(len(members) / len(pairs), abs=1e-3)
        assert found["mcs"][b] == pytest.approx(np.mean(members or [0.0]), abs=1e-3)
        for t in consistency.THRESHOLDS:
            expected = np.mean([c > t for c in members] or [0.0])
            assert found[f"above {t}"][b] == pytest.approx(expected, abs=1e-3)
        low = high
    assert sum(found["latents"]) == pytest.approx(60, abs=0.01)


def test_doubles_are_counted_among_the_latents_that_fire():
    sae = SparseAutoencoder(8, 5)
    with torch.no_grad():
        sae.weight.copy_(torch.eye(8)[[0, 0, 1, 2, 2]])
    assert consistency.doubles(sae, torch.tensor([0.1, 0.1, 0.1, 0.1, 0.0])) == pytest.approx(0.5)
    assert consistency.doubles(sae, torch.tensor([0.1, 0.0, 0.1, 0.1, 0.0])) == 0


def test_an_untrained_autoencoder_is_where_it_started():
    sae = SparseAutoencoder(8, 5, seed=3)
    assert consistency.start(sae, 3) == pytest.approx(1)
    assert consistency.start(sae, 4) < 0.8


@pytest.mark.slow
def test_more_rows_go_on_where_those_of_the_testbed_end(monkeypatch, tmp_path):
    monkeypatch.setattr(consistency, "RUNS", str(tmp_path))
    monkeypatch.setattr(consistency, "SIZE", {"train": 254})
    more = activations.ActivationStore.open(consistency.more_rows(1))
    model, (text, _) = language_models.load(), testbed.texts("code")
    first = activations.harvest(
        model, text, "resid_post.1", tmp_path / "first", n_tokens=254, **testbed.RULES
    )
    assert more.n_rows == 4 * first.n_rows
    everywhere = torch.arange(first.n_rows)
    assert torch.allclose(more.rows(everywhere), first.rows(everywhere), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "rows", "seeds"),
    [
        ("short", 3, 6),
        ("others", 4, 6),
        ("layers", 6, 3),
        ("twin", 3, 3),
        ("long", 3, 3),
        ("longer", 3, 3),
        ("untied", 1, 3),
    ],
)
def test_every_stage_writes_its_record_at_32_active_latents(monkeypatch, tmp_path, stage, rows, seeds):
    def law(method, knob, lr, seed, data, layer, steps, tied):
        """L0 is off at the searched knob and follows it more steeply than expected."""
        start = consistency.chosen()[method, layer]["knob"]
        l0 = 32 if method in K_METHODS else 45 * (knob / start) ** (1.2 * SLOPES[method])
        return {"kept": f"{method}-{seed}", "l0": l0, "nmse": 0.1, "dead": 0.0, "seconds": 0.0}

    def agreement(kept, data, layer):
        return {"pw_mcc": [0.5] * (len(kept) * (len(kept) - 1) // 2)}

    monkeypatch.setattr(consistency, "fit", law)
    monkeypatch.setattr(consistency, "agreement", agreement)
    monkeypatch.setattr(consistency, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(consistency, "RECORDS", str(tmp_path))
    monkeypatch.setattr(testbed, "open_testbed", lambda *arguments, **names: None)
    consistency.main([stage, "--workers", "1"])
    written = records.read(tmp_path / f"11_{stage}.json").rows
    assert len(written) == rows
    for row in written:
        assert row["seeds"] == seeds == len(row["l0"])
        assert len(row["pw_mcc"]) == seeds * (seeds - 1) / 2
        assert all(abs(l0 / consistency.TARGET - 1) <= 0.1 for l0 in row["l0"])
