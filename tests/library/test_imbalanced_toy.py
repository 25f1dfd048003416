"""The book's central claim on synthetic data, in the settings of chapter 7."""

import pytest
import torch

from sae_lib import GroupBiasAdaptation, metrics, synthetic, train

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def datasets():
    return [synthetic.preset("imbalanced", seed=seed) for seed in range(3)]


def recovered(datasets, method):
    """FRR at 0.8 and at 0.9, mean over the seeds."""
    rates = []
    for seed, data in enumerate(datasets):
        sae, _ = train(data, method, width=256, steps=2000, batch_size=128, lr=0.03, seed=seed)
        rates.append([metrics.feature_recovery_rate(sae, data.dictionary, tau) for tau in (0.8, 0.9)])
    return torch.tensor(rates).mean(dim=0).tolist()


@pytest.mark.slow
def test_gba_recovers_the_features_of_the_imbalanced_toy(datasets):
    at_08, at_09 = recovered(datasets, GroupBiasAdaptation(groups=10, htf=0.1, ltf=1e-3))
    assert at_08 >= 0.99
    assert at_09 >= 0.95


@pytest.mark.slow
def test_targets_that_are_too_high_recover_nothing(datasets):
    at_08, at_09 = recovered(datasets, GroupBiasAdaptation(groups=10, htf=0.5, ltf=0.005))
    assert at_08 < 0.1
    assert at_09 < 0.05
