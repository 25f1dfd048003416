"""SynthSAEBench: the connection between this library and SAELens, checked against SAELens's own runner."""

from dataclasses import replace

import pytest
import torch

import sae_lib
from sae_experiments.records import synthsaebench as record
from sae_experiments.synthsaebench import Benchmark, train_sae_lens

sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")

SMALL = Benchmark(n_features=192, d_in=32, roots=2, seed=7)
WIDTH = 48
RECIPES = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [8, 24, WIDTH]},
    "jumprelu": {"normalize_activations": "expected_average_only_in", "l0_coefficient": 0.1},
}


# --- the model --------------------------------------------------------------------------------------


def test_defaults_are_the_published_configuration():
    """Compared with the numbers of the benchmark's documentation."""
    config = Benchmark().config().to_dict()
    assert (config["num_features"], config["hidden_dim"]) == (16384, 768)
    assert (config["bias"], config["seed"]) == (0.5, 42)
    zipf = config["firing_probability"]
    assert (zipf["generator_name"], zipf["exponent"], zipf["max_prob"], zipf["min_prob"]) == (
        "zipfian", 0.5, 0.4, 5e-4,
    )  # fmt: skip
    tree = config["hierarchy"]
    assert (tree["total_root_nodes"], tree["branching_factor"], tree["max_depth"]) == (128, 4, 3)
    assert tree["mutually_exclusive_portion"] == 1.0
    assert tree["compensate_probabilities"]
    assert tree["scale_children_by_parent"]
    assert (config["correlation"]["rank"], config["correlation"]["correlation_scale"]) == (25, 0.1)
    assert (config["orthogonalization"]["num_steps"], config["orthogonalization"]["lr"]) == (100, 3e-4)
    mean, sd = config["mean_firing_magnitudes"], config["std_firing_magnitudes"]
    assert (mean["generator_name"], mean["start"], mean["end"]) == ("linear", 5.0, 4.0)
    assert (sd["generator_name"], sd["mean"], sd["std"]) == ("folded_normal", 0.5, 0.5)


def test_rows_are_coefficients_times_dictionary_plus_bias():
    rows, coefficients = SMALL.sample(500)
    bias = SMALL.model.feature_dict.bias.detach()
    assert bias.norm() == pytest.approx(SMALL.bias)
    assert torch.allclose(rows, coefficients @ SMALL.dictionary + bias, atol=1e-5)
    assert torch.allclose(SMALL.dictionary.norm(dim=1), torch.ones(SMALL.n_features), atol=1e-5)


def test_children_fire_with_their_parents_and_without_their_siblings():
    _, coefficients = SMALL.sample(4000)
    fires = coefficients > 0

    def descend(node):
        families.append((node.feature_index, [child.feature_index for child in node.children]))
        for child in node.children:
            descend(child)

    families = []
    for root in SMALL.model.hierarchy.roots:
        descend(root)
    families = [(parent, children) for parent, children in families if children]
    assert len(families) == SMALL.roots * (1 + 4 + 16)
    for parent, children in families:
        assert not (fires[:, children].any(dim=1) & ~fires[:, parent]).any()
        assert fires[:, children].sum(dim=1).max() <= 1


def test_without_hierarchy_and_correlation_firings_are_independent_bernoulli():
    plain = replace(SMALL, roots=0, correlation=0)
    fires = (plain.sample(20_000)[1] > 0).float()
    expected = plain.config().firing_probability.generate(plain.n_features)
    error = (fires.mean(dim=0) - expected) / (expected * (1 - expected) / len(fires)).sqrt()
    assert error.abs().max() < 4.5
    often = fires[:, expected > 0.05]
    correlation = torch.corrcoef(often.T) - torch.eye(often.shape[1])
    assert correlation.abs().max() < 4.5 / len(fires) ** 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_features": 0}, "n_features is 0; expected at least 1"),
        ({"roots": 3}, "roots is 3, each of 85 features; expected 0 … 2 for 192 features"),
        ({"correlation": 1.5}, "correlation is 1.5"),
        ({"bias": -1.0}, "bias is -1.0"),
        ({"distinct": 0}, "distinct is 0"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


# --- batches ----------------------------------------------------------------------------------------


def take(source, count, **settings):
    batches = source.batches(64, **settings)
    return [next(batches) for _ in range(count)]


def test_a_batch_depends_on_seed_and_number_alone():
    whole = take(SMALL, 4, seed=3)
    torch.manual_seed(123)
    assert torch.equal(take(SMALL, 1, seed=3, start=2)[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(take(SMALL, 1, seed=4)[0], whole[0])


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    take(SMALL, 2, seed=0)
    SMALL.sample(10)
    assert torch.equal(torch.rand(3), expected)


def test_distinct_batches_come_round_again():
    some = replace(SMALL, distinct=3)
    batches = take(some, 7, seed=3)
    assert torch.equal(batches[0], batches[3])
    assert torch.equal(batches[1], batches[4])
    assert all(torch.equal(a, b) for a, b in zip(batches[:3], take(SMALL, 3, seed=3), strict=True))
    assert torch.equal(take(some, 1, seed=3, start=5)[0], batches[2])


@pytest.mark.parametrize("kind", ["unit", "scale"])
def test_normalised_batches(kind):
    raw, served = take(SMALL, 1, seed=0)[0], take(replace(SMALL, normalise=kind), 1, seed=0)[0]
    if kind == "unit":
        assert torch.allclose(served, torch.nn.functional.normalize(raw, dim=1))
    else:
        assert 0.6 < served.norm(dim=1).mean() < 1.7
        ratio = served / raw
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


# --- SAELens's trainer ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", RECIPES)
def test_equals_the_runner_bit_by_bit(architecture, tmp_path):
    """SAELens's SyntheticSAERunner, end to end, against our path to the same trainer."""
    from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig

    settings = RECIPES[architecture]
    _, config_class = sae_lens.registry.get_sae_training_class(architecture)
    torch.manual_seed(11)
    runner = SyntheticSAERunner(
        SyntheticSAERunnerConfig(
            synthetic_model=SMALL.config(),
            sae=config_class(d_in=SMALL.d_in, d_sae=WIDTH, **settings),
            training_samples=40 * 64,
            batch_size=64,
            lr=1e-3,
            eval_samples=2000,
            output_path=str(tmp_path / "runner"),
            logger=sae_lens.LoggingConfig(log_to_wandb=False),
        ),
        override_synthetic_model=SMALL.model,
    )
    runner.run()
    torch.manual_seed(11)
    train_sae_lens(
        SMALL, architecture, settings, folder=tmp_path / "ours",
        width=WIDTH, steps=40, batch_size=64, lr=1e-3, own_rows=True,
    )  # fmt: skip
    from safetensors.torch import load_file

    theirs, ours = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("runner", "ours"))
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert torch.equal(theirs[name], ours[name]), name


@pytest.mark.slow
def test_shared_rows_and_their_own_rows_agree_within_noise(tmp_path):
    """The same training on the batches of ``Benchmark`` and on SAELens's own: same distribution of rows."""
    scores = {True: [], False: []}
    for own in scores:
        for seed in range(3):
            torch.manual_seed(seed)
            train_sae_lens(
                SMALL, "topk", {"k": 4}, folder=tmp_path, width=WIDTH, steps=300, batch_size=256,
                lr=3e-3, seed=seed, own_rows=own,
            )  # fmt: skip
            scores[own].append(SMALL.score(tmp_path, rows=5000)["explained_variance"])
    mean = {own: sum(values) / 3 for own, values in scores.items()}
    assert mean[False] > 0.6
    assert mean[True] == pytest.approx(mean[False], abs=0.05)


def test_training_is_deterministic_and_depends_on_the_seed(tmp_path):
    from safetensors.torch import load_file

    def weights(seed):
        train_sae_lens(
            SMALL, "batchtopk", {"k": 4}, folder=tmp_path, width=WIDTH, steps=10, batch_size=64, seed=seed
        )
        return load_file(tmp_path / "sae_weights.safetensors")["W_dec"]

    first = weights(0)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_their_training_gets_raw_rows_whatever_the_scaling(tmp_path):
    from safetensors.torch import load_file

    for name, data in (("raw", SMALL), ("scaled", replace(SMALL, normalise="unit"))):
        train_sae_lens(data, "topk", {"k": 4}, folder=tmp_path / name, width=WIDTH, steps=5, batch_size=64)
    raw, scaled = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("raw", "scaled"))
    assert all(torch.equal(raw[name], scaled[name]) for name in raw)


def test_unknown_architecture(tmp_path):
    with pytest.raises(ValueError, match="'top_k'"):
        train_sae_lens(SMALL, "top_k", {}, folder=tmp_path, width=WIDTH, steps=1)


# --- scores -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_autoencoder_of_ours_scores_after_reloading_as_in_memory(tmp_path):
    """L0 and explained variance by SAELens's loaded copy, against our own forward pass on new rows."""
    data = replace(SMALL, normalise="unit")
    method = sae_lib.GroupBiasAdaptation(groups=4)
    sae, _ = sae_lib.train(data, method, width=WIDTH, steps=300, batch_size=256, lr=0.03, seed=0)
    sae.save(tmp_path)
    found = data.score(tmp_path, rows=20_000)
    rows, coefficients = SMALL.sample(20_000, seed=1)
    error = (sae.reconstruct(rows) - rows).square().sum() / (rows - rows.mean(dim=0)).square().sum()
    codes = sae.encode(rows)
    assert found["explained_variance"] == pytest.approx(1 - error.item(), abs=0.02)
    assert found["l0"] == pytest.approx((codes != 0).sum(dim=1).float().mean().item(), rel=0.03)
    assert found["true_l0"] == pytest.approx((coefficients > 0).sum(dim=1).float().mean().item(), rel=0.03)
    mcc = sae_lib.metrics.mean_correlation_coefficient(sae, data.dictionary)
    assert 0 < found["mcc"] <= 1
    assert found["mcc"] >= mcc - 1e-4  # theirs takes |cosine|
    assert data.score(tmp_path, rows=20_000) == found


def test_the_true_features_score_near_one(tmp_path):
    """Upper end: decoder rows equal to the most frequent features."""
    often = (SMALL.sample(20_000)[1] > 0).float().mean(dim=0).topk(WIDTH).indices
    sae = sae_lib.SparseAutoencoder(SMALL.d_in, WIDTH)
    sae.weight.data.copy_(SMALL.dictionary[often])
    sae.bias.data.fill_(-2.5)
    sae.save(tmp_path)
    found = SMALL.score(tmp_path, rows=5000)
    assert found["mcc"] == pytest.approx(1, abs=1e-4)
    assert found["uniqueness"] == 1


def test_untrained_and_never_firing(tmp_path):
    train_sae_lens(SMALL, "topk", {"k": 4}, folder=tmp_path / "untrained", width=WIDTH, steps=0)
    assert SMALL.score(tmp_path / "untrained", rows=2000)["mcc"] < 0.6
    silent = sae_lib.SparseAutoencoder(SMALL.d_in, WIDTH)
    silent.bias.data.fill_(-1e6)
    silent.save(tmp_path / "silent")
    found = SMALL.score(tmp_path / "silent", rows=2000)
    assert (found["dead"], found["l0"], found["f1"]) == (1.0, 0.0, 0.0)


# --- the script behind the record -------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    """What makes the record, at a size of seconds."""
    data = {"n_features": 192, "d_in": 32, "roots": 2, "distinct": 4}
    tiny = {"data": data, "width": 64, "batch_size": 128, "steps": 30, "rows": 2000, "target": 4.0}
    monkeypatch.setitem(record.SIZES, "small", record.SIZES["small"] | tiny)
    return record


def test_the_script_trains_every_method_and_variant(script):
    for method in (*script.METHODS, *script.NULLS):
        found = script.run(method, {"jumprelu": 0.1, "gba": 0.2}.get(method, 4), 1e-3, 0, "small")
        assert 0 < found["mcc"] < 1, method
    for change in ("flat", "independent", "scale", "untied"):
        found = script.run("gba", 0.2, 1e-2, 0, "small", change=change)
        assert 0 < found["mcc"] < 1, change


def test_refitted_gates_fire_as_often_as_their_features(script):
    data = replace(SMALL, normalise="unit")
    sae = sae_lib.SparseAutoencoder(data.d_in, 16, normalisation=data.normalisation)
    sae.weight.data.copy_(data.dictionary[:16])
    script.refit(sae, data)
    rows, coefficients = data.sample(20_000, seed=5)
    rate = (sae.encode(rows) != 0).float().mean(dim=0)
    assert torch.allclose(rate, (coefficients[:, :16] > 0).float().mean(dim=0), rtol=0.15, atol=0.005)


def test_the_best_trial_is_near_the_target_or_the_nearest(script):
    tried = [{"l0": 6.5, "mcc": 0.6}, {"l0": 5.6, "mcc": 0.7}, {"l0": 9.0, "mcc": 0.9}]
    assert script.best(tried, 6.0) == tried[1]
    assert script.best(tried[2:], 6.0) == tried[2]
