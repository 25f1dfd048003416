"""Autoencoders that SAELens made, against SAELens itself, and through every measurement of the book."""

import json
import math
import sys

import pytest
import torch
from lm_fixtures import D_MODEL, FAMILIES, language_model, random_blocks
from rounding import clear_rows

import sae_lib
from sae_experiments.synthsaebench import Benchmark, train_sae_lens
from sae_lib import cli, language_models, metrics
from sae_lib.interventions import ablate, logit_weights, splice, steer
from sae_lib.metrics.cooccurrence import cooccurrence
from sae_lib.metrics.faithfulness import faithfulness
from sae_lib.storage import StorageError

sae_lens = pytest.importorskip("sae_lens", reason="optional extra: pip install sae_lib[bench]")
torch.set_num_threads(1)
WIDTH = 48
SITE = "resid_post.1"
# architecture, options
KINDS = [
    ("standard", {}),
    ("jumprelu", {}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
]
OPTIONS = [
    {"apply_b_dec_to_input": before, "normalize_activations": scaling}
    for before in (True, False)
    for scaling in ("none", "constant_norm_rescale")
]


def random_one(architecture, settings, folder, seed=0, d_in=D_MODEL):
    """One of SAELens's inference autoencoders with every parameter random, saved; decoder rows not unit."""
    sae_class, config_class = sae_lens.registry.get_sae_class(architecture)
    config = config_class(d_in=d_in, d_sae=WIDTH, **settings)
    config.metadata.hook_name, config.metadata.model_name = "blocks.1.hook_resid_post", "tiny"
    theirs = sae_class(config)
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) * (0.4 if "W" in name else 0.3))
        theirs.W_dec *= torch.linspace(0.2, 3, WIDTH)[:, None]
        if architecture == "jumprelu":
            theirs.threshold.abs_()
    theirs.save_model(folder)
    return sae_lens.SAE.load_from_disk(str(folder))


def rows_for(d_in=D_MODEL, n=300):
    return 2 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(9)) + 0.5


@torch.no_grad()
def check_same(ours, theirs, rows, codes_factor=1.0):
    """Codes (SAELens's, times the norm it took out of W_dec) and reconstructions are the same.

    Looked at are rows whose latents all fire or stay silent by more than rounding.
    """
    clear = clear_rows(ours, rows)
    assert clear.double().mean() > 0.9
    rows = rows[clear]
    codes, expected = ours.encode(rows), theirs.encode(rows) * codes_factor
    assert 0 < (expected != 0).double().mean() < 1
    assert torch.equal(codes != 0, expected != 0)
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.reconstruct(rows), theirs(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(("architecture", "settings"), KINDS)
def test_codes_and_reconstructions_are_saelens_own(architecture, settings, options, tmp_path):
    theirs = random_one(architecture, settings | options, tmp_path)
    # "constant_norm_rescale" brings rows to norm √d, ours to 1
    factor = D_MODEL**-0.5 if options["normalize_activations"] != "none" else 1.0
    check_same(sae_lib.load(tmp_path), theirs, rows_for(), factor)


@pytest.mark.parametrize(("architecture", "settings"), KINDS)
def test_saved_again_it_is_still_the_same_and_says_where_it_comes_from(architecture, settings, tmp_path):
    theirs = random_one(architecture, settings | OPTIONS[2], tmp_path / "a")
    sae_lib.load(tmp_path / "a").save(tmp_path / "b")
    again = sae_lens.SAE.load_from_disk(str(tmp_path / "b"))
    rows = rows_for()
    with torch.no_grad():
        torch.testing.assert_close(again(rows), theirs(rows), rtol=1e-4, atol=1e-4)
    assert again.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert sae_lib.load(tmp_path / "b").metadata["sae_lens"]["model_name"] == "tiny"


TRAINED = [
    ("standard", {"l1_coefficient": 0.05}),
    ("standard", {"l1_coefficient": 0.05, "normalize_activations": "expected_average_only_in"}),
    ("jumprelu", {"l0_coefficient": 0.1, "jumprelu_init_threshold": 0.05}),
    ("topk", {"k": 4}),
    ("topk", {"k": 4, "rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": False}),
    ("batchtopk", {"k": 4, "normalize_activations": "expected_average_only_in"}),
    ("matryoshka_batchtopk", {"k": 4, "matryoshka_widths": [12, WIDTH]}),
]


@pytest.fixture(scope="module")
def bench():
    return Benchmark(n_features=192, d_in=D_MODEL, roots=2, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "settings"), TRAINED)
def test_what_saelens_trains_is_loaded_as_it_is(architecture, settings, bench, tmp_path):
    train_sae_lens(bench, architecture, settings, folder=tmp_path, width=WIDTH, steps=60, batch_size=64)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    check_same(sae_lib.load(tmp_path), theirs, bench.sample(300)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalize_activations": "layer_norm"}, "normalise the rows yourself"),
        ({"normalize_activations": 3}, "is 3; expected 'none'"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no'; expected true or false"),
        ({"rescale_acts_by_decoder_norm": 1}, "rescale_acts_by_decoder_norm is 1"),
        ({"architecture": "gated"}, "expected one of jumprelu, standard, topk"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_with_a_remedy(change, message, tmp_path):
    random_one("topk", {"k": 3}, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(StorageError, match=message):
        sae_lib.load(tmp_path)


def test_the_remedy_for_a_mean_norm_works(tmp_path):
    """Folded by SAELens as the message says, codes are those of the scaled rows."""
    theirs = random_one("jumprelu", {"normalize_activations": "expected_average_only_in"}, tmp_path / "a")
    rows = rows_for()
    factor = math.sqrt(D_MODEL) / rows.norm(dim=1).mean().item()
    with torch.no_grad():
        codes, output = theirs.encode(rows * factor), theirs(rows * factor) / factor
    theirs.fold_activation_norm_scaling_factor(factor)
    theirs.save_model(tmp_path / "b")
    ours = sae_lib.load(tmp_path / "b")
    torch.testing.assert_close(ours.encode(rows), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.reconstruct(rows), output, rtol=1e-4, atol=1e-4)


# ---- through the measurements


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.mark.parametrize("options", OPTIONS[::3], ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(("architecture", "settings"), KINDS)
def test_every_measurement_takes_it(architecture, settings, options, lm, tmp_path):
    theirs = random_one(architecture, settings | options, tmp_path / "a")
    random_one(architecture, settings | options, tmp_path / "b", seed=1)
    sae, other = sae_lib.load(tmp_path / "a"), sae_lib.load(tmp_path / "b")
    blocks = random_blocks(4, 16)
    raw = lm.activations(blocks, SITE).flatten(0, 1)
    with torch.no_grad():
        codes, output = theirs.encode(raw), theirs(raw)

    measured = metrics.reconstruction(sae, raw)
    assert measured.l0 == pytest.approx((codes != 0).double().sum(1).mean().item())
    error, power = (output - raw).square().sum(), raw.square().sum()
    assert measured.nmse == pytest.approx((error / power).item(), rel=1e-4)

    statistics = metrics.latent_statistics(sae, raw)
    assert torch.equal(statistics.firing_rate, (codes != 0).double().mean(dim=0))
    directions = torch.nn.functional.normalize(theirs.W_dec.detach(), dim=1)
    torch.testing.assert_close(sae.decoder_rows, directions)
    assert metrics.pairwise_mcc([sae, other]) < 1 == pytest.approx(metrics.pairwise_mcc([sae, sae]))
    mcs = metrics.max_cosine_similarity(sae, sae)
    assert (metrics.consistency_curve(mcs, statistics, rule="z-score") == 1).all()

    fired = (codes != 0).long()
    assert cooccurrence(sae.encode(raw)).firings.tolist() == fired.sum(dim=0).tolist()

    score = faithfulness(lm, {"it": sae}, SITE, blocks)["it"]
    expected = faithfulness(lm, {"it": Theirs(theirs)}, SITE, blocks)["it"]
    assert score.ce_spliced == pytest.approx(expected.ce_spliced, rel=1e-4)
    assert score.kl_spliced == pytest.approx(expected.kl_spliced, rel=1e-3)

    with splice(lm, SITE, sae):
        spliced = lm.logits(blocks)
    with torch.no_grad(), lm.replaced(SITE, theirs):
        torch.testing.assert_close(spliced, lm.logits(blocks), rtol=1e-3, atol=1e-3)

    latent = int(codes.sum(dim=0).argmax())
    without = codes.clone()
    without[:, latent] = 0
    with torch.no_grad():
        # SAELens's decoder wants the encoder to have seen the rows before
        theirs.encode(raw)
        changed = theirs.decode(without).view(4, 16, -1)
    with ablate(lm, SITE, sae, [latent], error="dropped"):
        ablated = lm.logits(blocks)
    with lm.replaced(SITE, lambda _: changed):
        torch.testing.assert_close(ablated, lm.logits(blocks), rtol=1e-3, atol=1e-3)
    clean = lm.logits(blocks)
    with steer(lm, SITE, sae, latent, 0.0):
        assert torch.equal(lm.logits(blocks), clean)
    shift = (
        3 * directions[latent] * (raw.norm(dim=1, keepdim=True) if sae.normalisation.kind == "unit" else 1)
    )
    with steer(lm, SITE, sae, latent, 3.0):
        steered = lm.logits(blocks)
    with lm.replaced(SITE, lambda acts: acts + shift.expand_as(raw).view_as(acts)):
        torch.testing.assert_close(steered, lm.logits(blocks), rtol=1e-3, atol=1e-3)
    written = logit_weights(lm, sae, [latent])
    gain, head = lm.model.model.norm.weight, lm.model.lm_head.weight
    torch.testing.assert_close(written[0], head @ (gain * directions[latent]), rtol=1e-3, atol=1e-4)


class Theirs:
    """A foreign autoencoder as :func:`faithfulness` wants it."""

    def __init__(self, sae):
        self.reconstruct = sae


@pytest.mark.parametrize("family", FAMILIES)
def test_one_that_gives_the_mean_has_exactly_the_mean_ablation_loss(family, tmp_path):
    """W_dec = 0: everything ablated, through the whole chain of files."""
    lm, blocks = language_model(family), random_blocks(4, 16)
    mean = lm.activations(blocks, SITE)[:, 2:].flatten(0, 1).mean(dim=0)
    theirs = random_one("standard", OPTIONS[2], tmp_path)
    with torch.no_grad():
        theirs.W_dec.zero_()
        theirs.b_dec.copy_(mean)
    theirs.save_model(tmp_path)
    score = faithfulness(lm, {"it": sae_lib.load(tmp_path)}, SITE, blocks, mean=mean)["it"]
    assert (score.ce_spliced, score.kl_spliced) == (score.ce_mean, score.kl_mean)
    assert (score.ce_recovered, score.kl_recovered) == (0, 0)


# ---- the command line


def evaluate(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["sae", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    return (stopped.value.code or 0), said.out, said.err


def without_names(folder, **metadata):
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] = {"sae_lens_version": "6.54.12", **metadata}
    (folder / "cfg.json").write_text(json.dumps(config))


def test_evaluate_takes_the_site_from_the_file_or_the_command(monkeypatch, capsys, lm, tmp_path):
    random_one("topk", {"k": 5}, tmp_path)
    monkeypatch.setattr(language_models, "load", lambda *_, **__: lm)
    common = (tmp_path, "--corpus", "wikipedia", "--faithfulness-tokens", 64, "--block-size", 32)
    code, named, _ = evaluate(monkeypatch, capsys, *common)
    assert code == 0
    assert json.loads(named)["n_tokens"] > 0
    without_names(tmp_path)
    for site in (SITE, "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"):
        assert evaluate(monkeypatch, capsys, *common, "--site", site)[1] == named
    assert evaluate(monkeypatch, capsys, *common, "--site", "resid_post.2")[1] != named
    code, _, err = evaluate(monkeypatch, capsys, *common)
    assert code == 2
    assert "name it with --site" in err
    without_names(tmp_path, hook_name="blocks.1.attn.hook_z")
    code, _, err = evaluate(monkeypatch, capsys, *common)
    assert code == 2
    assert "blocks.1.attn.hook_z" in err
    assert "--site" in err


def test_evaluate_says_which_model_an_autoencoder_is_for(monkeypatch, capsys, lm, tmp_path):
    random_one("standard", {}, tmp_path, d_in=8)
    monkeypatch.setattr(language_models, "load", lambda *_, **__: lm)
    code, _, err = evaluate(monkeypatch, capsys, tmp_path, "--faithfulness-tokens", 64)
    assert code == 2
    assert "reads 8 numbers a row, tiny-llama has 32; the model it was trained on is tiny" in err
