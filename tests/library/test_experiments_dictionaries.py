"""Dictionaries of chapter 6, against their laws."""

import math

import pytest
import torch

from sae_experiments import dictionaries
from sae_lib import synthetic


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dictionaries.rademacher_dictionary(4, 3, density=0), "density is 0"),
        (lambda: dictionaries.heavy_tailed_dictionary(4, 3, degrees=0), "degrees is 0"),
        (lambda: dictionaries.anisotropic_dictionary(4, 3, effective_dimension=3.5), "at most 3"),
    ],
)
def test_settings_that_make_no_dictionary_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: dictionaries.rademacher_dictionary(20, 9, density=0.2, seed=seed),
        lambda seed: dictionaries.heavy_tailed_dictionary(20, 9, degrees=2, seed=seed),
        lambda seed: dictionaries.anisotropic_dictionary(20, 9, effective_dimension=4, seed=seed),
    ],
)
def test_rows_are_unit_vectors_that_the_seed_decides(draw):
    torch.testing.assert_close(draw(0).norm(dim=1), torch.ones(20))
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_rademacher_dictionary_has_entries_of_one_size_and_the_density_asked_for():
    dense = dictionaries.rademacher_dictionary(200, 64)
    torch.testing.assert_close(dense.abs(), torch.full((200, 64), 0.125))
    assert dense.sign().mean().abs() < 4.5 / math.sqrt(200 * 64)
    sparse = dictionaries.rademacher_dictionary(400, 64, density=0.1)
    nonzero = (sparse != 0).float()
    assert nonzero.mean().item() == pytest.approx(0.1, abs=0.01)
    assert (nonzero.sum(dim=1) >= 1).all()
    for row in sparse[:10]:
        assert len(row[row != 0].abs().unique()) == 1


def test_heavy_tailed_dictionary_has_heavy_tails():
    def kurtosis(v):
        return (v.pow(4).mean() / v.square().mean() ** 2).item()

    assert kurtosis(synthetic.gaussian_dictionary(300, 200)) == pytest.approx(3, abs=0.15)
    assert kurtosis(dictionaries.heavy_tailed_dictionary(300, 200, degrees=2)) > 9
    # Student's t with ν degrees has kurtosis 3 + 6/(ν − 4)
    assert kurtosis(dictionaries.heavy_tailed_dictionary(300, 200, degrees=16)) == pytest.approx(3.5, abs=0.2)


@pytest.mark.parametrize("wanted", [10.0, 20.0, 40.0, 64.0])
def test_anisotropic_dictionary_has_the_effective_dimension_asked_for(wanted):
    v = dictionaries.anisotropic_dictionary(4000, 64, effective_dimension=wanted, seed=5).double()
    eigenvalues = torch.linalg.eigvalsh(v.T @ v)
    # rows are scaled to unit norm after drawing, which evens the variances out a little
    measured = (eigenvalues.sum().square() / eigenvalues.square().sum()).item()
    assert measured == pytest.approx(wanted, rel=0.15)
