"""What the record of chapter 11 says of agreement, against plain loops."""

import numpy as np
import pytest
import torch

from benchmarks import consistency
from sae_lib import SparseAutoencoder


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
