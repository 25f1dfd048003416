"""Linear probes against scikit-learn's, and the threshold against all others."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score

from sae_experiments.probes import logistic_probes, ridge_probes


def coins(n, m, seed):
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.5


def classes(seed=0, n=400, d=6):
    stream = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=stream)
    noise = torch.randn(n, 2, generator=stream)
    return rows, torch.stack([rows[:, 0] + 0.3 * noise[:, 0] > 0.8, rows[:, 1] + noise[:, 1] > 0], dim=1)


def test_ridge_probes_are_ridge_regression_with_the_best_threshold():
    rows, labels = classes()
    probes = ridge_probes(rows, labels, ridge=1e-2)
    x = rows.double() - rows.double().mean(dim=0)
    alpha = 1e-2 * x.square().sum(dim=0).mean().item()
    for c in range(2):
        expected = Ridge(alpha=alpha).fit(rows.double().numpy(), labels[:, c].double().numpy()).coef_
        got = probes.direction[c].double().numpy()
        np.testing.assert_allclose(got, expected / np.linalg.norm(expected), atol=1e-5)
        scores, truth = (rows @ probes.direction[c]).numpy(), labels[:, c].numpy()
        best = max(f1_score(truth, scores >= cut) for cut in scores)
        assert f1_score(truth, probes.say(rows)[:, c].numpy()) == pytest.approx(best)


def test_ridge_probes_do_not_cut_between_equal_scores():
    rows = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    labels = torch.tensor([[True], [False], [False], [False]])
    probes = ridge_probes(rows, labels)
    assert probes.say(rows)[:, 0].tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="class 0 holds 4 of 4 rows"):
        ridge_probes(rows, torch.ones(4, 1, dtype=torch.bool))


@pytest.mark.parametrize("penalty", [0.003, 0.1])
def test_logistic_probes_are_scikit_learns(penalty):
    g = torch.Generator().manual_seed(0)
    rows = (torch.randn(300, 6, generator=g) * 3 + 2).double()
    labels = torch.stack(
        [rows[:, 0] > 3, rows[:, 1] + torch.randn(300, generator=g) > 0, coins(300, 1, 5)[:, 0]]
    ).T
    probes = logistic_probes(rows, labels, penalty=penalty, steps=500)
    size = (rows - rows.mean(dim=0)).square().mean().sqrt()
    for i in range(3):
        theirs = LogisticRegression(C=1 / (300 * penalty), tol=1e-10, max_iter=10_000)
        theirs.fit((rows / size).numpy(), labels[:, i].numpy())
        ours = torch.cat([probes.direction[i] * size, -probes.offset[i : i + 1]]).numpy()
        np.testing.assert_allclose(ours, [*theirs.coef_[0], theirs.intercept_[0]], rtol=2e-3, atol=2e-3)
        # rows nearer to the boundary than the two solutions are to each other may fall to either side
        far = np.abs(theirs.decision_function((rows / size).numpy())) > 0.02
        assert far.mean() > 0.9
        assert (probes.say(rows)[:, i].numpy() == theirs.predict((rows / size).numpy()))[far].all()


def test_probes_of_a_constant_class_and_of_constant_rows_are_finite():
    labels = torch.stack([torch.zeros(20, dtype=torch.bool), coins(20, 1, 0)[:, 0]]).T
    probes = logistic_probes(torch.ones(20, 3), labels)
    assert torch.isfinite(probes.direction).all()
    assert torch.isfinite(probes.offset).all()
    assert not probes.say(torch.ones(20, 3))[:, 0].any()


@pytest.mark.parametrize("fit", [ridge_probes, logistic_probes])
def test_bad_input_is_refused(fit):
    with pytest.raises(ValueError, match=r"rows have shape \(3, 2\), labels \(4, 1\) of torch\.bool"):
        fit(torch.ones(3, 2), coins(4, 1, 0))
    with pytest.raises(ValueError, match=r"torch\.float32; expected"):
        fit(torch.ones(4, 2), torch.ones(4, 1))
    with pytest.raises(ValueError, match="penalty is 0"):
        logistic_probes(torch.ones(4, 2), coins(4, 1, 0), penalty=0)
