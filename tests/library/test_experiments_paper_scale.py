"""The paper's run on a tiny Qwen2 on a CPU: what it states, what it refuses, killed and resumed."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Qwen2Config

from sae_experiments.paper_scale import cost as paper_cost
from sae_experiments.paper_scale import run as paper_scale
from sae_experiments.paper_scale import setup as paper_setup
from sae_lib import Normalisation, corpora, language_models, records

torch.set_num_threads(1)
ROOT = Path(paper_scale.__file__).resolve().parents[2]
CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 49_152, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the config of a Qwen2 of 2 layers, and a text that can be split."""
    folder = tmp_path_factory.mktemp("tiny")
    Qwen2Config(**CONFIG).save_pretrained(folder / "qwen2")
    (folder / "text").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        words = torch.randint(0, 2000, (400,), generator=generator).tolist()
        (folder / "text" / f"{i}.txt").write_text(" ".join(map(str, words)))
    return folder


def arguments(tiny, folder, **changes):
    options = {
        "model": tiny / "qwen2", "corpora": tiny / "text", "layers": [0, 1], "methods": ["gba", "topk"],
        "k": 4, "width": 64, "tokens": 6400, "batch-size": 64, "held-out-tokens": 1000, "scored-tokens": 500,
        "folder": folder, "device": "cpu",
    } | changes  # fmt: skip
    given = ["--random-weights"] if options.pop("random", True) else []
    for name, value in options.items():
        given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return given


# ---- the kept config


def test_the_kept_config_is_the_published_one():
    """1,543,714,304 parameters, as the hub counts them, and by hand from the shapes of Qwen2."""
    config = paper_setup.config_of("Qwen/Qwen2.5-1.5B")
    assert type(config) is Qwen2Config
    d, wide, kv = 1536, 8960, 2 * 128
    block = 2 * d * d + d + 2 * (d * kv + kv) + 3 * d * wide + 2 * d
    assert paper_cost.parameters(config) == (151_936 * d + 28 * block + d, block)
    assert paper_cost.parameters(config)[0] == 1_543_714_304
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.tie_word_embeddings
    assert config.num_hidden_layers > max(paper_setup.parser("").get_default("layers"))


def test_contestants_are_the_ones_the_text_names():
    made = paper_setup.methods(50)
    assert (made["gba-iclr"].htf, made["gba-iclr"].ltf) == (0.5, 1e-3)
    assert (made["gba"].htf, made["gba"].ltf) == (0.1, 1e-3)
    assert made["topk"].k == 50


# ---- what it needs


def test_memory_of_weights_and_moments_is_counted_from_the_tensors():
    config = Qwen2Config(**CONFIG)
    parts = paper_cost.memory(config, paper_cost.Size(96, 64, 640, untied=True, weight_bytes=4))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert parts["language model"] == sum(p.numel() * p.element_size() for p in model.parameters())
    for untied, name in ((True, "topk"), (False, "gba")):
        method = paper_setup.methods(4)[name]
        sae = method.build(32, 96, normalisation=Normalisation(), seed=0)
        matrices = sum(p.numel() * 4 for p in sae.parameters() if p.ndim == 2)
        parts = paper_cost.memory(config, paper_cost.Size(96, 64, 640, untied, weight_bytes=4))
        assert parts["autoencoder, gradient and Adam"] == 4 * matrices


def bytes_of_tensors(step):
    """Most bytes that a call's own tensors hold at a time, by PyTorch's count: no allocator adds to it."""
    gc.collect()  # what an earlier profile saw allocated would count as freed here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("name", ["gba-iclr", "topk"])
def test_a_step_takes_no_more_memory_than_stated(name):
    """The dense step of GBA, and TopK with dead latents, at sizes where B × M is nearly all there is."""
    batch, width, d = 1024, 8192, 16
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(0))
    method = paper_setup.methods(50)[name]
    sae = method.build(d, width, normalisation=Normalisation(), seed=0)
    run = method.start(sae, x)
    if name == "topk":
        run.dead[:2000] = True

    def step():
        forward = run if name == "topk" else run.dense
        forward(sae, x).loss.backward()

    step()
    stated = paper_cost.memory(Qwen2Config(**CONFIG), paper_cost.Size(width, batch, batch, True, 4))["a step"]
    assert stated / 2 < bytes_of_tensors(step) <= stated


def test_the_statement_needs_no_model_and_no_gpu(capsys):
    assert paper_scale.main(["--estimate", "--random-weights", "--device", "cpu"]) is None
    said = capsys.readouterr().out
    assert "Qwen/Qwen2.5-1.5B (random weights, seed 0): 1.54 billion parameters, layers 2, 13, 26" in said
    assert "18 runs (code and wikipedia; gba-iclr, gba, topk) of 100,000,000 tokens, 65,536 latents" in said
    assert "download: nothing" in said
    assert "there is no GPU here" in said
    paper_scale.main(["--estimate", "--device", "cpu"])
    assert "download: up to 3.1 GB of weights" in capsys.readouterr().out


def test_without_a_gpu_only_small_runs_are_made():
    with pytest.raises(SystemExit, match=r"no GPU here.*--width up to 16,384 and --tokens up to 1,000,000"):
        paper_scale.main(["--random-weights", "--device", "cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(SystemExit, match="--device is cuda, and PyTorch sees no GPU here"):
        paper_scale.main(["--random-weights", "--device", "cuda"])


def test_a_layer_the_model_has_not_is_said_before_anything_is_loaded(tiny, tmp_path):
    with pytest.raises(SystemExit, match=r"layer 2 of 2: allowed 0\.\.1"):
        paper_scale.main(arguments(tiny, tmp_path, layers=[0, 2]))


def test_too_little_memory_is_said_before_anything_is_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_cost, "available", lambda _: 2**20)
    monkeypatch.setattr(paper_scale, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(
        SystemExit, match=r"GiB are needed on cpu, 0.0 GiB are free; lower --batch-size \(64\)"
    ):
        paper_scale.main(arguments(tiny, tmp_path))


def test_an_unreachable_hub_names_the_flag(tmp_path, monkeypatch):
    def unreachable(name, **_):
        raise FileNotFoundError(f"no language model {name!r}")

    monkeypatch.setattr(language_models, "load", unreachable)
    with pytest.raises(SystemExit, match=r"'Qwen/Qwen2.5-1.5B'.*--random-weights runs the same architecture"):
        paper_scale.main(
            ["--width", "64", "--tokens", "1000", "--batch-size", "64", "--device", "cpu", "--folder", "x"]
        )


def test_a_data_set_out_of_reach_names_the_packaged_texts(tiny, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(corpora, "hugging_face", unreachable)
    with pytest.raises(SystemExit, match=r"no corpus 'someone/texts:code': no network. The packaged ones"):
        paper_scale.main(arguments(tiny, tmp_path, corpora="someone/texts:code"))


def test_columns_of_data_sets_reach_the_reader(monkeypatch):
    asked = []
    monkeypatch.setattr(corpora, "hugging_face", lambda *a, **k: asked.append((a, k)))
    paper_setup.corpus("someone/texts:code", 7)
    paper_setup.corpus("someone/texts", 7)
    assert asked == [
        (("someone/texts",), {"column": "code", "max_documents": 7}),
        (("someone/texts",), {"column": "text", "max_documents": 7}),
    ]


# ---- the runs


@pytest.mark.slow
def test_runs_are_measured_recorded_and_not_made_twice(tiny, tmp_path, capsys, monkeypatch):
    path = paper_scale.main(arguments(tiny, tmp_path, price=2.0))
    said = capsys.readouterr().out
    assert "time, estimated from this calibration" in said
    assert "at 2 an hour" in said
    rows = records.read(path).rows
    assert [(row["layer"], row["method"]) for row in rows] == [
        (0, "gba"), (0, "topk"), (1, "gba"), (1, "topk"),
    ]  # fmt: skip
    for row in rows:
        assert row["model"] == "qwen2 (random weights, seed 0)"
        assert row["random_weights"] is True
        assert row["tokens"] == 6400
        assert 0 < row["nmse"] < 1
        assert row["active_fraction"] == row["l0"] / 64
        assert row["n_held_out"] >= 900
        assert row["peak_memory_gib"] > 0.1
        assert row["tokens_per_second"] == pytest.approx(6400 / row["seconds"])
    assert all(row["l0"] <= 4 for row in rows if row["method"] == "topk")
    assert not list(tmp_path.rglob("checkpoint.safetensors"))
    assert path.parent.parent == tmp_path, "a small run must not pass for the paper's"

    # one more method: the four that are done stay, and are not trained again
    trained = []
    real = paper_scale.sae_lib.train
    monkeypatch.setattr(
        paper_scale.sae_lib, "train",
        lambda *a, **k: trained.append(k["folder"]) or real(*a, **k) if "folder" in k else real(*a, **k),
    )  # fmt: skip
    assert paper_scale.main(arguments(tiny, tmp_path, methods=["gba", "topk", "gba-iclr"])) == path
    assert len(trained) == 2
    again = records.read(path).rows
    assert [row for row in again if row["method"] != "gba-iclr"] == rows


def test_the_record_of_the_paper_is_for_its_size_alone():
    parse = paper_setup.parser("").parse_args
    assert paper_scale.at_paper_size(parse(["--random-weights"]))
    assert not paper_scale.at_paper_size(parse(["--tokens", "60000"]))
    assert not paper_scale.at_paper_size(parse(["--model", "smollm2-135m"]))


@pytest.mark.slow
def test_killed_the_same_command_goes_on_to_the_same_weights(tiny, tmp_path, monkeypatch):
    one = {"layers": [1], "methods": ["gba"], "tokens": 64 * 900}
    command = [
        sys.executable,
        "-m",
        "sae_experiments.paper_scale",
        *arguments(tiny, tmp_path / "killed", **one),
    ]
    # as many threads as here, or the bits would differ
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while not (found := list((tmp_path / "killed").rglob("checkpoint.safetensors"))):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("row.json"))
    before = json.loads((found[0].parent / "seconds.json").read_text())
    resumed = records.read(paper_scale.main(arguments(tiny, tmp_path / "killed", **one))).rows[0]
    unbroken = records.read(paper_scale.main(arguments(tiny, tmp_path / "unbroken", **one))).rows[0]
    weights = [load_file(next((tmp_path / name).rglob("sae_weights.safetensors"))) for name in
               ("killed", "unbroken")]  # fmt: skip
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert resumed["seconds"] > before > 0
    timing = {"seconds", "tokens_per_second", "peak_memory_gib"}
    assert {k: v for k, v in resumed.items() if k not in timing} == {
        k: v for k, v in unbroken.items() if k not in timing
    }
