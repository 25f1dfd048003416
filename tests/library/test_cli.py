"""The command line as a user meets it: a process, its exit status and what it prints."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

import sae_lib
from sae_lib import activations, cli, training
from sae_lib.cli.harvest import Kind
from sae_lib.cli.methods import MethodName, method_of
from sae_lib.cli.methods import settings as method_settings
from sae_lib.methods import METHODS
from sae_lib.normalisation import KINDS

SAE = shutil.which("sae", path=str(Path(sys.executable).parent))

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def sae(*arguments, code=0):
    done = subprocess.run(
        [SAE, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert done.returncode == code, done.stderr
    return done


def in_process(monkeypatch, capsys, *arguments):
    """The same entry point without the seconds a new process takes; returns exit status and stderr."""
    monkeypatch.setattr(sys, "argv", ["sae", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "toy"
    done = sae("train", folder, "--data", "imbalanced", "--width", 64, "--steps", 60, "--htf", 0.2)
    assert "step 60: nmse" in done.stdout
    return folder


@pytest.mark.slow
def test_train_writes_an_autoencoder_log_and_checkpoint(trained):
    # Windows removes the lock
    assert {p.name for p in trained.iterdir()} - {".lock"} == {
        "cfg.json", "sae_weights.safetensors", "checkpoint.safetensors", "metrics.jsonl",
    }  # fmt: skip
    loaded = sae_lib.load(trained)
    assert (loaded.d_in, loaded.width, loaded.activation) == (42, 64, "jumprelu")
    assert loaded.metadata["training"]["method"]["htf"] == 0.2


def test_evaluate_agrees_with_the_library(trained):
    printed = json.loads(sae("evaluate", trained, "--data", "imbalanced", "--n-rows", 5000).stdout)
    data = sae_lib.synthetic.preset("imbalanced")
    loaded = sae_lib.load(trained)
    assert printed["frr_0.8"] == sae_lib.metrics.feature_recovery_rate(loaded, data.dictionary, 0.8)
    nmse = sae_lib.metrics.reconstruction(loaded, data.rows[:5000]).nmse
    assert printed["nmse"] == pytest.approx(nmse, rel=1e-5)
    assert printed["n_rows"] == 5000


@pytest.mark.slow
def test_resume_continues_a_longer_wait(trained):
    done = sae(
        "train", trained, "--data", "imbalanced", "--width", 64, "--steps", 60, "--htf", 0.2, "--resume"
    )
    assert "step 60" in done.stdout


@pytest.mark.slow
def test_show_config_prints_and_does_nothing(tmp_path):
    shown = json.loads(
        sae(
            "train", tmp_path / "x", "--data", "imbalanced", "--method", "topk", "--k", 5, "--show-config"
        ).stdout
    )
    assert shown["method"] == METHODS["topk"](k=5).describe()
    assert shown["batch_size"] == 512
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["harvest", "train", "evaluate", "dashboard"])
def test_help_shows_an_example(command):
    assert f"sae {command} runs/" in sae(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "x", "--data", "imbalanced", "--widht", "3"], "No such option: --widht"),
        (["train", "x", "--data", "imbalanced", "--width", "0"], "greater than or equal to 1"),
        (["train", "x", "--data", "imbalanced", "--htf", "1.5"], "0 < ltf ≤ htf ≤ 1"),
        (
            ["train", "x", "--data", "imbalanced", "--method", "lasso"],
            "'gba', 'ba', 'modified_ba', 'l1'",
        ),
        (
            ["train", "x", "--data", "imbalanced", "--k", "5"],
            "--k does not apply to method gba; it has",
        ),
        (
            ["train", "x", "--data", "imbalanced", "--method", "topk", "--k", "2.5"],
            "k is 2.5; expected",
        ),
        (["train", "x", "--data", "imbalanced", "--method-warmup", "3"], "--method-warmup does not apply"),
        (
            ["train", "x", "--data", "imbalanced", "--method", "matryoshka", "--prefixes", "half"],
            "--prefixes is 'half'; expected numbers with commas",
        ),
        (
            ["train", "x", "--data", "imbalanced", "--method", "matryoshka", "--prefixes", ""],
            "--prefixes is",
        ),
        (
            ["train", "x", "--data", "imbalanced", "--method", "modified_ba", "--batch-size", "512"],
            "fires on 2.56 rows of a batch, too few to find a direction; expected 20, that is, at least 4000",
        ),
        (["train", "x", "--data", "imbalanced", "--freeze", "encoder"], "gba is tied here"),
        (["train", "x", "--data", "nowhere"], "imbalanced, "),
        (["train", "x", "--data", "imbalanced", "--resume"], "no checkpoint to resume from"),
        (["train", "x"], "--data"),
        (["evaluate", "nowhere", "--data", "imbalanced"], "nowhere/cfg.json does not exist"),
        (["evaluate", "nowhere"], "nothing to measure"),
        (["dashboard", "x", "--data", "y", "--out", "z.html", "--latents", "some"], "--latents is 'some'"),
        (["dashboard", "x", "--data", "y", "--out", "."], "--out is ., a folder"),
        (["dashboard", "x", "--data", "y", "--out", "z.html"], "x/cfg.json does not exist"),
        (["harvest", "x", "--site", "resid_post.40"], "allowed 0..29"),
        (["harvest", "x", "--site", "residual.1"], "resid_post"),
        (["harvest", "x", "--corpus", "the-web"], "standard-library"),
        (["harvest", "x", "--tokens", "-1"], "greater than or equal to 1"),
        (["harvest", "x", "--max-norm", "0.5"], "max_norm is 0.5; expected above 1"),
        (["harvest", "x", "--model-dtype", "int8"], "'auto', 'float32', 'bfloat16'"),
        (["harvest", "x", "--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
    ],
)
def test_mistakes_fail_at_once_with_what_is_allowed(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, errors = in_process(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not any(tmp_path.iterdir())


def test_data_of_another_dimension_is_refused(trained, monkeypatch, capsys):
    code, errors = in_process(monkeypatch, capsys, "evaluate", trained, "--data", "uniform")
    assert code == 2
    assert "d_in 42, the data 128" in errors


@pytest.mark.slow
def test_every_method_trains_and_is_evaluated(tmp_path, monkeypatch, capsys):
    for name, freeze in [*((name, None) for name in METHODS), ("batch_topk", "soft-decoder")]:
        out = tmp_path / f"{name}-{freeze}"
        options = ["--method", name, "--width", 48, "--steps", 5, *(["--freeze", freeze] if freeze else [])]
        code, errors = in_process(monkeypatch, capsys, "train", out, "--data", "imbalanced", *options)
        assert (code, errors) == (0, "")
        described = sae_lib.load(out).metadata["training"]["method"]
        assert (described["base"] if freeze else described)["name"] == name
        arguments = ["sae", "evaluate", str(out), "--data", "imbalanced", "--n-rows", "500"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            cli.main()
        printed = json.loads(capsys.readouterr().out)
        assert 0 <= printed["mcc"] <= 1
        assert printed["l0"] > 0


def test_every_setting_of_every_method_has_an_option_that_reaches_it():
    by_type = {bool: True, int: 3, float: 0.05}
    special = {"start_bias": "zero", "prefixes": "0.2,0.5", "epsilon": 1e-7}
    for name, cls in METHODS.items():
        hints, known = get_type_hints(cls), method_settings()
        for field in dataclasses.fields(cls):
            key = next(key for key, setting in known.items() if setting.field == field.name)
            given = special[field.name] if field.name in special else by_type[hints[field.name]]
            method = method_of(name, {"k": None, key: given})
            assert getattr(method, field.name) == ((0.2, 0.5) if field.name == "prefixes" else given)
    # one option --k for whole and for fractional numbers
    whole = method_of("topk", {"k": 5.0}).k
    assert (whole, type(whole)) == (5, int)
    assert method_of("jumprelu", {"method_warmup": 7}).warmup == 7
    assert method_of("topk", {}, "soft-decoder") == sae_lib.Frozen(sae_lib.TopK(), "soft decoder")


def test_help_has_a_text_and_a_default_for_every_setting():
    shown = {key: setting.help for key, setting in method_settings().items()}
    assert (
        shown["every"] == "gba, ba: Optimiser steps between two applications of the bias rule.  [default: 10]"
    )
    assert shown["target_frequency"].startswith("ba: Ceiling of the")
    assert ". modified_ba: Share p of each batch" in shown["target_frequency"]
    assert shown["target_frequency"].endswith("  [default: ba: 0.05; modified_ba: 0.005]")
    ends = {
        "tied": "[default: gba, ba: tied; topk, batch_topk, matryoshka: no-tied]",
        "coefficient": "[default: l1, gated: 0.03; jumprelu: 0.01]",
        "prefixes": "[default: 0.03125,0.09375,0.21875,0.46875]",
        "k": "[default: 32]",
    }
    assert all(shown[key].endswith(end) for key, end in ends.items())
    for name, cls in METHODS.items():
        for field in dataclasses.fields(cls):
            (text,) = (
                s.help for s in method_settings().values() if s.field == field.name and name in s.types
            )
            assert field.metadata["help"].rstrip(".") in text


@pytest.mark.parametrize("command", ["harvest", "train", "evaluate", "dashboard"])
def test_every_option_has_a_text_and_shows_its_default(command):
    wide = {"terminal_width": 100_000, "max_content_width": 100_000}
    printed = CliRunner().invoke(cli.app, [command, "--help"], **wide).stdout
    for parameter in typer.main.get_command(cli.app).commands[command].params:
        assert parameter.help, f"{parameter.name} has no help"
        # a list of defaults is shown as words
        default = parameter.default[0] if isinstance(parameter.default, list) else parameter.default
        shown = isinstance(default, str | int | float) and not isinstance(default, bool)
        assert parameter.help + (f"  [default: {default}" if shown else "") in printed


def test_defaults_of_the_command_are_those_of_the_library():
    command, function = (inspect.signature(f).parameters for f in (cli.train, training.train))
    shared = {
        "batch_size",
        "schedule",
        "warmup",
        "seed",
        "checkpoint_every",
        "parallel",
        "lr",
        "steps",
        "tokens",
    }
    assert {name: command[name].default for name in shared} == {
        name: function[name].default for name in shared
    }


def test_rules_of_a_harvest_are_those_of_the_library(tmp_path):
    command, function = (inspect.signature(f).parameters for f in (cli.harvest, activations.harvest_sites))
    shared = {"block_size", "dtype", "max_norm", "normalisation", "seed", "skip_first", "spread"}
    assert {name: command[name].default for name in shared} == {
        name: function[name].default for name in shared
    }
    options = ["--no-spread", "--max-norm", 0, "--model-dtype", "auto", "--corpus", "installed-packages"]
    shown = json.loads(sae("harvest", tmp_path / "x", *options, "--show-config").stdout)
    chosen = {name: shown[name] for name in ("spread", "max_norm", "skip_first", "model_dtype", "corpus")}
    assert chosen == {
        "spread": False, "max_norm": None, "skip_first": 4, "model_dtype": "auto",
        "corpus": "installed-packages",
    }  # fmt: skip


def test_choices_offered_are_the_ones_that_exist():
    assert set(get_args(MethodName)) == set(METHODS)
    assert set(get_args(Kind)) == set(KINDS)


@pytest.mark.slow
def test_the_road_from_a_language_model_to_an_autoencoder(tmp_path):
    """The default model, its first block, little text: harvest, train, evaluate, splice."""
    store, out = tmp_path / "store", tmp_path / "sae"
    where = ["--corpus", "wikipedia"]
    done = sae("harvest", store, *where, "--site", "resid_post.0", "--tokens", 1500, "--block-size", 64)
    assert "rows of dimension 576" in done.stdout
    # an unfinished harvest would go on here; a finished one is opened
    assert sae("harvest", store, *where, "--site", "resid_post.0", "--tokens", 1500, "--block-size", 64)
    refused = sae("harvest", store, *where, "--site", "resid_post.1", "--tokens", 1500, code=2)
    assert "begun with other settings" in refused.stderr
    several = ["--site", "attn_out.0", "--site", "resid_post.0", "--tokens", 1500, "--block-size", 64]
    done = sae("harvest", tmp_path / "several", *where, *several)
    assert [line.split(" in ")[1] for line in done.stdout.splitlines()] == [
        str(tmp_path / "several" / site) for site in ("attn_out.0", "resid_post.0")
    ]
    assert (tmp_path / "several/resid_post.0/manifest.json").read_text() == (
        store / "manifest.json"
    ).read_text()
    sae("train", out, "--data", store, "--width", 128, "--steps", 20, "--batch-size", 64, "--centre")
    printed = json.loads(
        sae("evaluate", out, "--data", store, *where, "--faithfulness-tokens", 128, "--block-size", 64).stdout
    )
    assert 0 < printed["nmse"] < 1
    assert printed["ce_recovered"] <= 1
    assert printed["n_tokens"] <= 128
    page = tmp_path / "page.html"
    assert "12 dashboards in" in sae("dashboard", out, "--data", store, "--out", page, "--latents", 12).stdout
    assert "Licence: Wikipedia, CC BY-SA 4.0" in page.read_text(encoding="utf-8")
    config = json.loads((out / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
    assert config["metadata"]["model_name"] == "smollm2-135m"

    shard = next(store.glob("*.safetensors"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(bytes(damaged))
    assert shard.name in sae("train", tmp_path / "x", "--data", store, "--width", 8, code=2).stderr
